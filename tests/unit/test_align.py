"""The stage align from folder to folder: both profiles, all ops, its metrics, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fusechat_stages import align, align_published, shards
from fusechat_stages.entry import run_local
from fusechat_stages.shards import EMPTY, EXACT, ONE_HOT

from tests.tokenizers import byte_level, sentencepiece
from tests.unit.align_cases import conversations, write_block

ANY_END = {"name": "openchat_3.5", "endOfTurn": "model"}
CORRECTED = {
    "profile": "Corrected",
    "method": "Bytes",
    "pivotTemplate": "openchat_3.5",
    "sourceTemplate": "qwen",
}
PUBLISHED = {"profile": "Published", "pivotTemplate": "openchat_3.5", "sourceTemplate": ANY_END}
MODELS = ("pivotModel", "sourceModel")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two models' tokenizers, and two blocks of extracts of each under both profiles."""
    root = tmp_path_factory.mktemp("align")
    tokenizers = {"pivot": sentencepiece(), "source": byte_level()}
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(root / f"{name}Model")
    for profile, scores in (("Corrected", "logprobs"), ("Published", "logits")):
        told = CORRECTED if profile == "Corrected" else PUBLISHED
        for name, tokenizer in tokenizers.items():
            (root / profile / name).mkdir(parents=True)
            for block in range(2):
                write_block(
                    root / profile / name / shards.block_name(block), tokenizer, told[f"{name}Template"],
                    conversations(), scores=scores, seed=block + len(name),
                    only=[1, 2, 4] if (name, block) == ("source", 1) else None,
                )  # fmt: skip
    return root


def inputs(made: Path, profile: str, **more: Path) -> dict[str, Path]:
    sides = {name: made / profile / name for name in ("pivot", "source")}
    return {**sides, **{name: made / name for name in MODELS}, **more}


@pytest.fixture(scope="module")
def counted(made) -> Path:
    run_local("align", {"op": "count", **PUBLISHED}, inputs(made, "Published"), made / "counts")
    return made / "counts"


def make_map(made: Path, counted: Path, method: str) -> Path:
    told = {**{name: made / name for name in MODELS}, "counts": counted}
    run_local("align", {"op": "map", **PUBLISHED, "method": method}, told, made / f"map-{method}")
    return made / f"map-{method}"


def test_corrected_rows(made, tmp_path):
    metrics = run_local("align", {"op": "rows", **CORRECTED}, inputs(made, "Corrected"), tmp_path)
    blocks = [shards.read_aligned(tmp_path / shards.block_name(block)) for block in range(2)]
    pivots = [shards.read_rows(made / "Corrected" / "pivot" / shards.block_name(block)) for block in range(2)]
    for aligned, pivot in zip(blocks, pivots, strict=True):
        assert aligned.ids == pivot.ids
        np.testing.assert_array_equal(aligned.row_offsets, pivot.row_offsets)
    kinds = np.concatenate([aligned.kind for aligned in blocks])
    assert metrics["samples"] == 14
    assert metrics["rows"] == len(kinds)
    assert metrics["empty"] == (kinds == EMPTY).sum()
    assert metrics["exact"] == (kinds == EXACT).sum() > 0
    assert metrics["oneHot"] == 0
    assert metrics["coverage"] == pytest.approx(1 - metrics["emptyRate"])
    total = metrics["mass"] + metrics["massTail"] + metrics["massLost"]
    assert total == pytest.approx(metrics["rows"] - metrics["empty"], rel=1e-3)
    assert metrics["sourceWins"] == sum(int((b.ce_source < b.ce_pivot).sum()) for b in blocks)


@pytest.mark.parametrize("method", ["MS", "EM", "MinED"])
def test_published_rows(method, made, counted, tmp_path):
    table = make_map(made, counted, method)
    told = inputs(made, "Published", map=table)
    metrics = run_local("align", {"op": "rows", **PUBLISHED, "method": method}, told, tmp_path / "out")
    target = json.loads((table / "map.json").read_text())
    assert len(target) == len(byte_level())
    assert metrics["oneHot"] > 0
    total = metrics["mass"] + metrics["massTail"] + metrics["massLost"]
    aligned = shards.read_aligned(tmp_path / "out" / "block-00000.arrow")
    pivot = shards.read_rows(made / "Published" / "pivot" / "block-00000.arrow")
    hot = np.flatnonzero(aligned.kind == ONE_HOT)
    gold = pivot.input_ids[
        np.repeat(pivot.input_offsets[:-1], np.diff(pivot.row_offsets)) + pivot.positions() + 1
    ]
    np.testing.assert_array_equal(aligned.topk_ids[hot, 0], gold[hot])
    assert aligned.meta["scores"] == "logits"
    if method != "EM":  # EM may keep nothing of a row, which is EMPTY then and still has its tail
        assert total == pytest.approx(metrics["rows"] - metrics["empty"], rel=1e-3)


def test_the_warping_is_done_once_and_gives_the_same(made, counted, tmp_path, monkeypatch):
    told = inputs(made, "Published", map=make_map(made, counted, "MS"))
    params = {"op": "rows", **PUBLISHED, "method": "MS"}
    run_local("align", params, told, tmp_path / "again")
    monkeypatch.setattr(align_published.dtw, "align_strings", None)
    run_local("align", params, {**told, "counts": counted}, tmp_path / "once")
    for block in range(2):
        name = shards.block_name(block)
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_counts_do_not_depend_on_the_blocks(cut, made, counted, tmp_path):
    """The same samples in other blocks give the same sums, and so the same map."""
    tokenizers = {"pivot": sentencepiece(), "source": byte_level()}
    talks, places = conversations(), list(range(len(conversations())))
    for name, tokenizer in tokenizers.items():
        (tmp_path / name).mkdir()
        for block, first in enumerate(range(0, len(talks), cut)):
            write_block(
                tmp_path / name / shards.block_name(block), tokenizer, PUBLISHED[f"{name}Template"], talks,
                scores="logits", only=places[first : first + cut],
            )  # fmt: skip
    told = {name: tmp_path / name for name in tokenizers} | {name: made / name for name in MODELS}
    run_local("align", {"op": "count", **PUBLISHED}, told, tmp_path / "counts")
    whole = np.load(counted / "counts-00000.npy")
    parts = [np.load(path) for path in sorted((tmp_path / "counts").glob("counts-*.npy"))]
    joined = np.concatenate(parts, axis=1)
    keys, place = np.unique(joined[0], return_inverse=True)
    np.testing.assert_array_equal(keys, whole[0])
    np.testing.assert_array_equal(np.bincount(place, weights=joined[1]), whole[1])


def test_one_vocabulary_joins_rows_where_the_supervised_ids_agree(made, tmp_path):
    """Published, one vocabulary: rows straight through, up to the first other supervised id of a turn."""
    pivot = shards.read_rows(made / "Published" / "pivot" / "block-00000.arrow")
    changed = pivot.input_ids.copy()
    at = int(pivot.input_offsets[0]) + int(pivot.turn_start[0]) + 2
    changed[at] += 1
    source = shards.Rows(**{**vars(pivot), "input_ids": changed, "scores": pivot.scores - np.float16(1)})
    for name, rows in (("pivot", pivot), ("source", source)):
        (tmp_path / name).mkdir()
        shards.write_rows(tmp_path / name / "block-00000.arrow", rows)
    told = {name: tmp_path / name for name in ("pivot", "source")} | dict.fromkeys(
        MODELS, made / "pivotModel"
    )
    params = {"op": "rows", **PUBLISHED, "method": "MS"}
    metrics = run_local("align", params, {**told, "map": made}, tmp_path / "out")
    aligned = shards.read_aligned(tmp_path / "out" / "block-00000.arrow")
    first = int(pivot.turn_end[0] - pivot.turn_start[0])
    joined = np.r_[np.arange(2), np.arange(first, len(pivot.ce))]
    assert aligned.kind[:first].tolist() == [EXACT, EXACT, *[EMPTY] * (first - 2)]
    np.testing.assert_array_equal(aligned.topk_ids[joined], source.topk_ids[joined])
    np.testing.assert_array_equal(aligned.scores[joined], source.scores[joined])
    assert metrics["exactRate"] == len(joined) / len(pivot.ce)
    assert metrics["massLost"] == 0
    counts = run_local("align", {"op": "count", **PUBLISHED}, told, tmp_path / "counts")
    assert counts["pairs"] == 0


def test_the_published_metric_is_rounded_to_half_at_every_step(made):
    pivot = shards.read_rows(made / "Published" / "pivot" / "block-00000.arrow")
    found = align_published.metric_ce(pivot)
    for s in range(pivot.samples):
        ce = pivot.ce[pivot.row_offsets[s] : pivot.row_offsets[s + 1]].astype(np.float16)
        total = np.float16(ce.astype(np.float32).sum())
        assert found[s] == np.float32(np.float16(total / np.float16(len(ce))))


def test_a_not_finite_row_leaves_the_metrics_finite(made, tmp_path):
    told = inputs(made, "Corrected")
    shutil.copytree(told["source"], tmp_path / "source")
    rows = shards.read_rows(tmp_path / "source" / "block-00000.arrow")
    scores = rows.scores.copy()
    scores[3] = np.nan
    shards.write_rows(
        tmp_path / "source" / "block-00000.arrow", shards.Rows(**{**vars(rows), "scores": scores})
    )
    told["source"] = tmp_path / "source"
    metrics = run_local("align", {"op": "rows", **CORRECTED}, told, tmp_path / "out")
    assert np.isfinite(metrics["mass"])


def rewritten(folder: Path, to: Path, **changed) -> Path:
    """A copy of an extract with arrays of its first block changed by functions."""
    shutil.copytree(folder, to)
    rows = shards.read_rows(to / "block-00000.arrow")
    shards.write_rows(
        to / "block-00000.arrow",
        shards.Rows(
            **{**vars(rows), **{name: change(getattr(rows, name)) for name, change in changed.items()}}
        ),
    )
    return to


BAD = [
    ("an unknown op", {"op": "sort", **CORRECTED}, {}, "op is 'sort', expected one of rows"),
    (
        "a method of the other profile",
        {**CORRECTED, "op": "rows", "method": "MS"},
        {},
        "'MS' under profile 'Corr",
    ),
    ("a method of nobody", {**PUBLISHED, "op": "rows", "method": "DTW"}, {}, "method 'DTW' under profile"),
    ("an unknown profile", {**CORRECTED, "op": "rows", "profile": "Best"}, {}, "profile 'Best'"),
    ("no vocabulary map", {**PUBLISHED, "op": "rows", "method": "MS"}, {}, "got no input map"),
    ("no counts", {**PUBLISHED, "op": "map", "method": "MS"}, {}, "got no input counts"),
    (
        "an unknown template",
        {**CORRECTED, "op": "rows", "sourceTemplate": "vicuna"},
        {},
        "'vicuna' is not known",
    ),
    (
        "fewer blocks on one side",
        {**CORRECTED, "op": "rows"},
        {"source": "one block"},
        "2 blocks and the source's 1",
    ),
    (
        "samples of another dataset",
        {**CORRECTED, "op": "rows"},
        {"source": "other ids"},
        "blocks of one dataset",
    ),
    (
        "another tokenizer's ids",
        {**CORRECTED, "op": "rows"},
        {"source": "big ids"},
        "extracted with another tokenizer",
    ),
    (
        "another tokenizer's ids",
        {**PUBLISHED, "op": "count"},
        {"source": "big ids"},
        "extracted with another tokeni",
    ),
    (
        "logits where log-probabilities go",
        {**CORRECTED, "op": "rows"},
        {"source": "logits"},
        "aligns logprobs",
    ),
    (
        "a map of another length",
        {**PUBLISHED, "op": "rows", "method": "MS"},
        {"map": "short"},
        "has 3 entries",
    ),
    (
        "a map to ids that are not",
        {**PUBLISHED, "op": "rows", "method": "MS"},
        {"map": "far"},
        "up to id 99999",
    ),
    ("no tokenizer", {**CORRECTED, "op": "rows"}, {"sourceModel": "empty"}, "no tokenizer in it"),
]


def spoiled(kind: str, made: Path, profile: str, tmp_path: Path) -> Path:
    source, to = made / profile / "source", tmp_path / "spoiled"
    if kind == "one block":
        shutil.copytree(source, to)
        (to / "block-00001.arrow").unlink()
    elif kind in ("short", "far"):
        to.mkdir()
        table = [0, 1, 2] if kind == "short" else [99999] * len(byte_level())
        (to / "map.json").write_text(json.dumps(table))
    elif kind == "empty":
        to.mkdir()
    else:
        changes = {
            "other ids": {"ids": lambda ids: [f"x-{id}" for id in ids]},
            "big ids": {"input_ids": lambda ids: ids + 5000},
            "logits": {"meta": lambda meta: {**meta, "scores": "logits"}},
        }
        rewritten(source, to, **changes[kind])
    return to


@pytest.mark.parametrize(("name", "params", "replaced", "message"), BAD, ids=[case[0] for case in BAD])
def test_bad_input_is_one_sentence(name, params, replaced, message, made, tmp_path):
    profile = params["profile"] if params["profile"] in align.METHODS else "Corrected"
    told = inputs(made, profile)
    told |= {role: spoiled(kind, made, profile, tmp_path) for role, kind in replaced.items()}
    with pytest.raises(ValueError, match=message):
        run_local("align", params, told, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.arrow"))


def test_logprobs_where_logits_go(made, counted, tmp_path):
    told = inputs(made, "Published", map=make_map(made, counted, "EM"))
    told["source"] = rewritten(
        told["source"], tmp_path / "source", meta=lambda meta: {**meta, "scores": "logprobs"}
    )
    with pytest.raises(ValueError, match="aligns logits"):
        run_local("align", {"op": "rows", **PUBLISHED, "method": "EM"}, told, tmp_path / "out")


def test_a_warping_of_another_extract_is_refused(made, counted, tmp_path):
    shutil.copytree(counted, tmp_path / "counts")
    np.save(tmp_path / "counts" / "spans-00000.npy", np.zeros((2, 3), np.int32))
    told = inputs(made, "Published", map=make_map(made, counted, "MS"), counts=tmp_path / "counts")
    with pytest.raises(ValueError, match="the warping of block 0 is for 3 ids"):
        run_local("align", {"op": "rows", **PUBLISHED, "method": "MS"}, told, tmp_path / "out")


def test_ms_needs_a_token_to_fall_back_on(made, counted, tmp_path):
    bare = byte_level(control=())
    bare.eos_token = None
    bare.save_pretrained(tmp_path / "model")
    told = {"pivotModel": tmp_path / "model", "sourceModel": made / "sourceModel", "counts": counted}
    with pytest.raises(ValueError, match="neither unk nor eos"):
        run_local("align", {"op": "map", **PUBLISHED, "method": "MS"}, told, tmp_path / "out")
