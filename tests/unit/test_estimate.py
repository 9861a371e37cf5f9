"""What a run costs before it starts, and that every example can be planned."""

from pathlib import Path

import pytest
from fusechat import estimate, outline
from fusechat.spec import load

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def told(path):
    run = load(path)
    seen = outline.offline(run)
    return seen, estimate.estimate(run, seen)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_run_that_can_be_planned(path):
    seen, found = told(path)
    assert len(found.steps) == len(seen.plan.steps)
    assert f"{len(found.steps)} steps" in outline.text(seen)


def test_the_papers_run_costs_what_its_sizes_say():
    _, found = told(next(path for path in EXAMPLES if path.name == "fusechat-7b.yaml"))
    cost = {step.name: step for step in found.steps}
    tokens = 95_000 * estimate.TOKENS_PER_SAMPLE
    assert cost["extract-qwen"].flops == 2 * 72e9 * tokens
    assert cost["extract-mixtral"].flops == 2 * 56e9 * tokens
    assert cost["fuse-qwen"].flops == 8 * 7e9 * tokens * 3
    assert cost["fetch-qwen"].bytes == 144e9


def test_the_gpu_is_named_and_an_unknown_one_refused():
    _, found = told(EXAMPLES[0])
    assert "GPU-hours of H100" in estimate.text(found, "H100")
    with pytest.raises(ValueError, match="unknown GPU 'TPU', expected one of A100"):
        estimate.text(found, "TPU")


def test_local_files_are_measured(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w.safetensors").write_bytes(b"x" * 2000)
    (tmp_path / "d.jsonl").write_bytes(b"x" * 400)
    source = {"name": "a", "uri": f"file://{tmp_path}/model"}
    spec = {
        "pivot": {**source, "name": "p"},
        "sources": [source],
        "dataset": {"uri": f"file://{tmp_path}/d.jsonl"},
    }
    run = load(
        {"apiVersion": "fusechat.io/v1alpha1", "kind": "FusionRun", "metadata": {"name": "t"}, "spec": spec}
    )
    cost = {step.name: step for step in estimate.estimate(run, outline.offline(run)).steps}
    assert cost["extract-a"].flops == 2 * 1000 * 100
