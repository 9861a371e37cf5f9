"""The report tells a run truly, on one page that needs nothing else and trusts no name."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fusechat.errors import MissingInput
from fusechat.intervals import wilson
from fusechat.scores import Subject
from fusechat_stages import report
from fusechat_stages.artifacts import FolderOutput
from fusechat_stages.report_charts import Scale, Series, interval_chart, line_chart, radar_chart, ticks
from fusechat_stages.report_data import by_layer, gather, thinned
from fusechat_stages.report_graph import duration, layout
from fusechat_stages.report_html import el, table
from fusechat_stages.report_scores import verdict

from tests.unit.report_example import Example, FolderStore

NASTY = '<script>alert("x")</script> & \'"'


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return Example(tmp_path_factory.mktemp("store"))


class Page(HTMLParser):
    """Tags in order, the text of the body, and whether every element is closed by its own end tag."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_the_page_is_well_formed_and_needs_nothing_else(example):
    source = example.page()
    page = Page(source)
    assert page.tags.count("html") == page.tags.count("main") == page.tags.count("h1") == 1
    assert not {"script", "link", "img", "iframe", "object", "video", "base", "form"} & set(page.tags)
    assert not [
        name for name, _ in page.attributes if name in ("src", "href", "action") or name.startswith("on")
    ]
    assert "url(" not in source
    assert "@import" not in source
    assert ("content", report.POLICY) in page.attributes


def test_every_chart_is_named_and_has_its_table(example):
    source = example.page()
    page = Page(source)
    assert page.tags.count("svg") >= 7
    assert source.count('role="img"') == page.tags.count("svg")
    for part in source.split("<svg")[1:]:
        assert part.split(">", 1)[1].startswith("<title>")
    for part in source.split("<section")[1:]:
        assert "<table" in part


def test_the_page_tells_the_run(example):
    text = Page(example.page()).text
    for words in (
        "The fused model answers",
        "points above the pivot",
        "the best target (prose)",
        "s3://fusechat/demo/merge/",
        "profile Corrected",
        f"Steps {len(example.steps)}: {sum(not s['cached'] for s in example.steps)} computed, 5 cached",
        "5 min 21 s",
        "layer 5",
        "41.7%",
        "99.3%",
        "Empty answers, wrong unless that was expected: pivot 3",
    ):
        assert words in text, words


def test_scores_on_the_page_are_the_manifests(example):
    text = Page(example.page()).text
    for step in example.steps:
        if step["stage"] == "evaluate":
            assert f"{step['metrics']['score']:.3f}" in text


def test_no_name_of_a_user_is_taken_as_markup(tmp_path):
    nasty = Example(tmp_path, name=NASTY, sources=("a<b>&\"'", "<i>"))
    nasty.find("merge")["error"] = NASTY
    nasty.find("merge")["state"] = "Failed"
    nasty.record["profile"] = nasty.record["startedAt"] = nasty.record["store"] = NASTY
    nasty.find("control-sft")["subject"]["name"] = NASTY
    page = Page(nasty.page(title=NASTY + "\x00\x1b"))
    assert not {"script", "i", "b"} & set(page.tags)
    assert NASTY in page.text
    assert "\x00" not in page.text


CUTS = {
    "no evaluation": lambda step: step["stage"] != "evaluate",
    "no merge": lambda step: step["stage"] != "merge",
    "no training": lambda step: step["stage"] != "fuse",
    "fetches only": lambda step: step["stage"] == "fetch",
    "nothing": lambda step: False,
}


@pytest.mark.parametrize("cut", CUTS)
def test_what_a_run_lacks_leaves_the_rest(example, cut):
    kept = [step for step in example.steps if CUTS[cut](step)]
    facts = gather(example.store, {**example.record, "steps": kept})
    page = Page(report.page(facts, "t"))
    assert ("Scores" in page.text) is any(s["stage"] == "evaluate" for s in kept)
    assert ("Merge coefficients" in page.text) is any(s["stage"] == "merge" for s in kept)
    assert not facts.notes


def test_a_record_without_anything_still_gives_a_page():
    assert "Steps" in Page(report.page(gather(FolderStore(Path("nowhere")), {}), "t")).text


def test_an_artifact_that_is_gone_is_said_and_not_fatal(tmp_path):
    one = Example(tmp_path)
    (one.store.folder / one.find("fuse-math")["address"] / "training.jsonl").unlink()
    text = Page(one.page()).text
    assert "fuse-math: training.jsonl could not be read" in text
    assert "Loss on the gold text" in text


def test_failed_and_waiting_steps_are_named(tmp_path):
    one = Example(tmp_path)
    one.find("merge").update(state="Failed", error="the disk is full")
    one.find("fuse-prose").update(state="Pending", seconds=0, attempts=0)
    text = Page(one.page()).text
    assert "failed: the disk is full" in text
    assert "Failed merge" in text
    assert "pending" in text


def test_the_stage_writes_the_page_from_the_run_s_record(example, tmp_path):
    (example.store.folder / "runs").mkdir(exist_ok=True)
    (example.store.folder / "runs/u1.json").write_text(json.dumps(example.record))
    out = FolderOutput(tmp_path, {"run": "runs/u1.json"})
    out.store = example.store
    report.run({"nonce": "n", "title": "My <run>"}, {}, out)
    source = (tmp_path / "report.html").read_text()
    assert "<title>My &lt;run&gt;: FuseChat report</title>" in source
    assert out.metrics["steps"] == len(example.steps)
    out.runtime["run"] = "runs/none.json"
    with pytest.raises(MissingInput, match=r"runs/none\.json"):
        report.run({"nonce": "n", "title": ""}, {}, out)


def test_one_training_with_all_sources_tells_how_often_each_was_chosen(tmp_path):
    one = Example(tmp_path)
    one.record["steps"] = [s for s in one.steps if s["stage"] != "fuse"]
    fuse = {
        **one.find("fuse-math"),
        "name": "fuse",
        "inputs": {"aligned.0": "align-math", "aligned.1": "align-prose"},
    }
    one.record["steps"].append({**fuse, "subject": {"kind": "Fused", "name": "fused"}})
    fuse["metrics"]["wins"] = [0.123, 0.345]
    text = Page(one.page()).text
    assert "98.0% 12.3%" in text
    assert "98.0% 34.5%" in text


def test_a_run_of_many_sources_stays_small_and_readable(tmp_path):
    big = Example(tmp_path, sources=tuple(f"source-{i}" for i in range(12)))
    source = big.page()
    assert len(source) < 400_000
    assert "The best 3 of 12 targets are drawn." in source


def test_layers_are_means_of_their_tensors(example):
    found, outside = by_layer(gather(example.store, example.record).coefficients)
    tensors = example.coefficients()["tensors"]
    assert [n for n, _ in found] == list(range(6))
    assert outside == [("model.embed_tokens.weight", (0.5, 0.5))]
    assert all(sum(values) == pytest.approx(1) for _, values in found)
    assert set(tensors) >= {"model.embed_tokens.weight"}


def test_thinned_curves_keep_mean_and_ends():
    points = [{"step": i, "loss": float(i % 7), "none": None} for i in range(1, 1001)]
    found = thinned(points, limit=100)
    assert len(found) == 100
    assert sum(p["loss"] for p in found) / 100 == pytest.approx(sum(p["loss"] for p in points) / 1000)
    assert found[0]["step"] < 11
    assert found[-1]["step"] > 990
    assert "none" not in found[0]
    assert thinned([]) == []
    assert thinned(points[:3]) == [{"step": float(i), "loss": float(i)} for i in (1, 2, 3)]


TICKS = [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.451, 0.662, [0.45, 0.5, 0.55, 0.6, 0.65, 0.7]), (3, 3, None)]


@pytest.mark.parametrize(("low", "high", "want"), TICKS)
def test_ticks_are_round_and_cover_the_values(low, high, want):
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert want is None or found == want


def test_what_is_counted_has_whole_ticks():
    assert ticks(1, 3, 8, least=1) == [1, 2, 3]


GAPS = [
    ({"a": True, "b": False}, {"a": True, "b": False}, "level with the pivot"),
    ({"a": True, "b": True}, {"a": True, "b": False}, "50.0 points above the pivot (within chance)"),
    ({str(i): False for i in range(99)}, {str(i): True for i in range(99)}, "100.0 points below the pivot."),
]


@pytest.mark.parametrize(("fused", "pivot", "said"), GAPS)
def test_the_head_says_no_more_than_the_interval_does(fused, pivot, said):
    subjects = [
        Subject(kind, kind, {"score": sum(x.values()) / len(x), "n": len(x), "ci95": [0, 1]}, x)
        for kind, x in (("Fused", fused), ("Pivot", pivot))
    ]
    facts = replace(gather(FolderStore(Path("nowhere")), {}), subjects={"exactMatch": tuple(subjects)})
    assert said in " ".join(verdict(facts))


def test_a_dot_stands_where_its_value_is():
    chart = interval_chart("t", [("a", wilson(50, 100)), ("b", wilson(0, 100))], "score")
    dots = [float(part.split('"')[0]) for part in chart.split('<circle cx="')[1:]]
    lines = [float(part.split('"')[0]) for part in chart.split(' x1="')[1:]]
    assert dots[0] > dots[1]
    assert min(lines) <= dots[1]
    assert Scale(0, 1, 10, 20)(0.5) == 15


def test_values_that_are_not_finite_are_left_out():
    nan = float("nan")
    chart = line_chart("t", [Series("a", [(1, nan), (2, 3.0), (3, math.inf)])], "x", "y")
    chart += radar_chart("t", ["a", "b", "c"], [("m", [0.1, nan, 0.3])])
    assert "nan" not in chart
    assert "inf" not in chart


def test_elements_escape_text_and_keep_elements():
    assert el("p", "a<b & c", el("b", "x"), None, 3) == "<p>a&lt;b &amp; c<b>x</b>3</p>"
    assert el("p", title='"><x') == '<p title="&quot;&gt;&lt;x"></p>'
    assert el("line", x1=1.50, class_="a", stroke_width=2.0) == '<line x1="1.5" class="a" stroke-width="2"/>'
    assert 'scope="row">n' in table("c", ["h"], [["n"]])


SECONDS = [(0.04, "0.0 s"), (9.96, "10.0 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]


@pytest.mark.parametrize(("seconds", "said"), SECONDS)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said


def test_every_step_has_a_place_of_its_own_right_of_its_inputs(example):
    steps = gather(example.store, example.record).steps
    places = layout(steps)
    assert len(set(places.values())) == len(steps)
    assert all(places[source][0] < places[s.name][0] for s in steps for source in s.inputs.values())
