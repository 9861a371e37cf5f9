"""The whole fusion on one machine, as a person runs it: all stages, cached again, edited, twice at once."""

import json
import re
from pathlib import Path

import pytest
from fusechat.plan import plan
from fusechat.spec import load

from tests import tiny
from tests.cli import Home, reproducible

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny.build(folder)
    return folder


@pytest.fixture(scope="module")
def first(models, tmp_path_factory):
    """One run of two sources from nothing: its home and how it ended."""
    home = Home(tmp_path_factory.mktemp("home"))
    return home, home.fusechat("run", models / "run.yaml")


def made_now(home: Home, before: set[str]) -> set[str]:
    """Stage/source names of the artifacts that were published since."""
    return set(home.manifests()) - before


def test_a_run_ends_with_a_score_table_a_page_and_one_last_line(first, models):
    home, ended = first
    assert ended.code == 0, ended.out
    assert ended.last.startswith("small: Succeeded in")
    for subject in ("Pivot", "Source", "Control", "Target", "Fused"):
        assert subject in ended.out
    page = (home.folder / "runs" / "small" / "report.html").read_text()
    assert "<html" in page
    assert "fuse-a" in page


def test_every_step_of_the_plan_is_published_at_its_address(first, models):
    home, _ = first
    found = home.manifests()
    pins = next(m for m in found.values() if m.stage == "resolve").metrics["pins"]
    made = plan(load(models / "run.yaml"), pins)
    assert {step.address for step in made.steps} <= set(found)
    for step in made.steps:
        manifest = found[step.address]
        assert dict(manifest.params) == json.loads(json.dumps(step.params))
        assert {role: ref.address for role, ref in manifest.inputs.items()} == made.input_addresses(step)
        assert all(ref.digest == found[ref.address].digest for ref in manifest.inputs.values())


def test_the_runs_references_name_all_that_it_made_its_page_too(first):
    home, _ = first
    with home.store() as store:
        (refs,) = [store.get_json(found.key) for found in store.keys("refs/")]
    assert set(refs["addresses"]) == set(home.manifests())


def test_what_the_stages_say_fits_together(first, models):
    home, _ = first
    by_name = {}
    found = home.manifests()
    pins = next(m for m in found.values() if m.stage == "resolve").metrics["pins"]
    for step in plan(load(models / "run.yaml"), pins).steps:
        by_name[step.name] = found[step.address].metrics
    assert by_name["fetch-dataset"]["samples"] == 24
    rows = by_name["extract-pivot"]["rows"]
    assert rows > 24
    for source in ("a", "b"):
        assert by_name[f"align-{source}"]["rows"] == rows
        assert by_name[f"filter-{source}"]["samples"] == by_name["extract-pivot"]["samples"]
        assert by_name[f"fuse-{source}"]["steps"] == -(-by_name[f"filter-{source}"]["kept"] // 8)
    assert by_name["evaluate-fused"]["n"] == 12


def test_the_fused_model_loads_and_is_the_merge_of_the_targets(first, models, tmp_path):
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM

    home, ended = first
    got = home.fusechat("get", models / "run.yaml", "--to", tmp_path)
    assert got.code == 0, got.out
    (uri,) = re.findall(r"^model +(s3://\S+)$", ended.out, re.MULTILINE)
    again = home.fusechat("get", uri, "--to", tmp_path)
    assert (again.code, again.last) == (0, got.last)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    base = load_file(models / "pivot" / "model.safetensors")
    shards = sorted(tmp_path.glob("*.safetensors"))
    fused = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert fused.keys() == base.keys()
    assert all(
        fused[name].shape == base[name].shape and fused[name].dtype == base[name].dtype for name in base
    )
    assert any((fused[name] != base[name]).any() for name in base)
    assert (tmp_path / "tokenizer.json").read_bytes() == (models / "pivot" / "tokenizer.json").read_bytes()


def test_a_second_run_computes_nothing(first, models):
    home, _ = first
    before = home.attempts()
    ended = home.fusechat("run", models / "run.yaml")
    assert ended.code == 0, ended.out
    assert "everything was cached" in ended.last
    new = {address for address, seen in home.attempts().items() if seen != before.get(address)}
    assert {address.split("/")[0] for address in new} == {"resolve", "report"}


def test_a_new_source_computes_its_own_pair_the_merge_and_the_fused_score(first, models):
    home, _ = first
    before = home.attempts()
    path = tiny.write_run(models, ["a", "b", "c"])
    ended = home.fusechat("run", path)
    assert ended.code == 0, ended.out
    found = home.manifests()
    pins = {
        name: pin for m in found.values() if m.stage == "resolve" for name, pin in m.metrics["pins"].items()
    }
    made = plan(load(path), pins)
    ran = {step.name for step in made.steps if step.address not in before}
    ran_by_records = {s.name for s in made.steps if home.attempts()[s.address] != before.get(s.address)}
    assert ran == ran_by_records == {
        "fetch-c", "extract-c", "align-c", "filter-c", "fuse-c", "merge",
        "evaluate-source-c", "evaluate-target-c", "evaluate-fused",
    }  # fmt: skip
    tiny.write_run(models, ["a", "b"])


def test_two_runners_at_once_publish_each_artifact_once_and_both_end_well(models, first, tmp_path):
    home = Home(tmp_path / "home")
    running = [home.start("run", models / "run.yaml") for _ in range(2)]
    outs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outs
    published = {a: sum(bool(r.get("published")) for r in seen) for a, seen in home.attempts().items()}
    assert set(published.values()) == {1}
    reference = reproducible(first[0].manifests())
    assert reproducible(home.manifests()).items() <= reference.items()


def test_plan_status_and_logs_tell_what_is_there(first, models):
    home, _ = first
    told = home.fusechat("plan", models / "run.yaml")
    assert "23 steps: 23 cached, 0 to compute" in told.out
    assert "GPU-hours of A100" in told.out
    assert home.fusechat("status", models / "run.yaml").last == "small: Succeeded"
    assert home.fusechat("logs", models / "run.yaml", "fuse-a").code == 0
    unknown = home.fusechat("logs", models / "run.yaml", "nonsense")
    assert (unknown.code, "no log of a step 'nonsense'" in unknown.out) == (64, True)


def test_retry_makes_a_step_anew(first, models):
    home, _ = first
    merge = next(a for a in home.manifests() if a.startswith("merge/"))
    before = home.manifests()
    ended = home.fusechat("retry", models / "run.yaml", "merge", "--quiet")
    assert ended.code == 0, ended.out
    after = home.manifests()
    anew = [a for a in before if before[a].attempt != after[a].attempt and a.split("/")[0] == "merge"]
    assert merge in before
    assert len(anew) == 1
    assert home.fusechat("retry", models / "run.yaml", "nonsense").code == 64
