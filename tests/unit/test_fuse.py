"""Stage fuse from folders to a folder: what it writes, what it learns, what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fusechat.errors import BadData
from fusechat_stages import fuse
from fusechat_stages.artifacts import FolderInput, FolderOutput, Stopped
from fusechat_stages.entry import run_local
from fusechat_stages.shards import read_rows, write_rows
from safetensors.torch import load_file

from tests.fuse_case import RECIPE, RUNTIME, make_case


def fused(tmp_path: Path, inputs: dict, runtime: dict | None = None, name: str = "out", **params) -> Path:
    run_local("fuse", {**RECIPE, **params}, inputs, tmp_path / name, {**RUNTIME, **(runtime or {})})
    return tmp_path / name


def curve(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("params", "sources"),
    [
        ({}, 1),
        ({"loss": "kl", "temperature": 2.0}, 1),
        ({"withPivot": False}, 1),
        ({"strategy": "MultiTeacher"}, 2),
        ({"strategy": "SFT"}, 0),
        ({"dtype": "bfloat16"}, 1),
        ({"profile": "Published", "dtype": "bfloat16"}, 1),
    ],
    ids=str,
)
def test_target_is_a_full_model_under_the_pivots_names(tmp_path: Path, params: dict, sources: int):
    case = make_case(tmp_path / "in", sources=max(1, sources))
    inputs = case.inputs(*range(sources)) if sources else case.control
    out = fused(tmp_path, inputs, epochs=2, **params)
    pivot, target = (load_file(f / "model.safetensors") for f in (case.root / "model", out))
    assert {n: t.shape for n, t in target.items()} == {n: t.shape for n, t in pivot.items()}
    want = torch.bfloat16 if params.get("profile") == "Published" else torch.float32
    assert {t.dtype for t in target.values()} == {want}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (case.root / "model" / name).read_bytes()
    metrics, lines = json.loads((out / "metrics.json").read_text()), curve(out)
    assert metrics["steps"] == len(lines) == lines[-1]["step"]
    assert metrics["weightsMoved"] > 0.5
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert ("fuseLoss" in metrics) == bool(sources)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_the_same_run_gives_the_same_bytes(tmp_path: Path):
    inputs = make_case(tmp_path / "in").inputs()
    first, second = (fused(tmp_path, inputs, name=name) for name in ("a", "b"))
    assert bytes_of(first) == bytes_of(second)


def test_micro_batches_change_the_curve_by_rounding_only(tmp_path: Path):
    inputs = make_case(tmp_path / "in").inputs()
    whole = curve(fused(tmp_path, inputs, name="a"))
    small = curve(fused(tmp_path, inputs, {"tokensPerBatch": 32, "gradientCheckpointing": True}, name="b"))
    assert [x["loss"] for x in small] == pytest.approx([x["loss"] for x in whole], abs=1e-5)


def test_master_weights_stay_float32_under_bfloat16(tmp_path: Path):
    """At a rate that bfloat16 cannot represent as a change, Published stands still and Corrected moves."""
    case = make_case(tmp_path / "in", dtype=torch.bfloat16)
    params = {"dtype": "bfloat16", "learningRate": 1e-6, "warmupRatio": 0.0}
    moved = {}
    for profile in ("Corrected", "Published"):
        out = fused(tmp_path, case.inputs(), name=profile, profile=profile, **params)
        moved[profile] = json.loads((out / "metrics.json").read_text())["weightsMoved"]
    assert moved["Published"] < 0.2
    assert moved["Corrected"] > 0.9


def test_win_share_and_weights_moved_are_reported(tmp_path: Path):
    case = make_case(tmp_path / "in", sources=2)
    out = fused(tmp_path, case.inputs(), strategy="MultiTeacher")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["winShare"] == pytest.approx(sum(metrics["wins"]))
    assert len(metrics["wins"]) == 2
    assert 0 < metrics["winShare"] < 1
    assert 0.5 < metrics["distilledShare"] < 1
    assert "seconds" not in metrics


class StopsAt(FolderOutput):
    """SIGTERM during step `step`."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder, RUNTIME)
        self._at = step

    def progress(self, done: float, total: float, unit: str, **facts: object) -> None:
        if done >= self._at - 1:
            self._stop.set()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stopped_run_goes_on_where_it_was_and_ends_with_the_same_bytes(tmp_path: Path, dtype: str):
    inputs = make_case(tmp_path / "in").inputs()
    params = {**RECIPE, "epochs": 2, "dtype": dtype}
    fused(tmp_path, inputs, name="straight", epochs=2, dtype=dtype)
    for step in (2, 4):
        out = StopsAt(tmp_path / "halting", step)
        with pytest.raises(Stopped, match=f"saved at step {step} of 6"):
            fuse.run(params, {role: FolderInput(path) for role, path in inputs.items()}, out)
        assert not (tmp_path / "halting" / "model.safetensors").exists()
    fused(tmp_path, inputs, name="halting", epochs=2, dtype=dtype)
    assert bytes_of(tmp_path / "halting") == bytes_of(tmp_path / "straight")


def test_an_attempt_that_is_stopped_before_its_first_step_does_not_load_a_model_first(tmp_path: Path):
    case = make_case(tmp_path / "in")
    (case.root / "model" / "model.safetensors").unlink()
    out = FolderOutput(tmp_path / "out", RUNTIME)
    out._stop.set()
    with pytest.raises(Stopped, match="before this attempt's first step"):
        fuse.run(RECIPE, {role: FolderInput(path) for role, path in case.inputs().items()}, out)


def test_an_older_checkpoint_of_the_attempt_is_forgotten(tmp_path: Path):
    inputs = make_case(tmp_path / "in").inputs()
    out = StopsAt(tmp_path / "halting", 5)
    out.runtime["checkpointSeconds"] = 1e-9
    with pytest.raises(Stopped):
        fuse.run({**RECIPE, "epochs": 3}, {r: FolderInput(p) for r, p in inputs.items()}, out)
    assert [p.parent.name for p in out.folder.rglob("manifest.json")] == ["5"]


def test_a_loss_that_is_not_finite_ends_the_run_with_a_sentence(tmp_path: Path):
    """Scores that a filter should have dropped, in the last samples of the order."""
    case = make_case(tmp_path / "in")
    path = case.root / "pivot" / "block-00001.arrow"
    rows = read_rows(path)
    write_rows(path, replace(rows, scores=np.full_like(rows.scores, np.nan)))
    with pytest.raises(BadData, match=r"the loss became nan .* at step \d of 3; .* Lower fuse.learningRate"):
        fused(tmp_path, case.inputs())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strategy": "SFT"}, "takes 0 aligned inputs, got 1"),
        ({"loss": "mse"}, "loss must be one of ce, kl"),
        ({"maxLength": 4}, "no sample is left to train on"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(tmp_path: Path, given: dict, says: str):
    case = make_case(tmp_path / "in")
    with pytest.raises(ValueError, match=says):
        fused(tmp_path, case.inputs(), **given)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_an_extract_of_another_tokenizer_is_refused(tmp_path: Path):
    case = make_case(tmp_path / "in")
    path = case.root / "pivot" / "block-00000.arrow"
    rows = read_rows(path)
    write_rows(path, replace(rows, input_ids=rows.input_ids + 40))
    with pytest.raises(ValueError, match=r"token id \d+, its tokenizer only 48 ids"):
        fused(tmp_path, case.inputs())


def test_flash_attention_is_refused_where_it_cannot_run(tmp_path: Path):
    with pytest.raises(ValueError, match="flash-attn cannot be used here"):
        fused(tmp_path, make_case(tmp_path / "in").inputs(), {"attention": "flash_attention_2"})
