"""Stage fuse from folders to a folder: what it writes, what it learns, what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from fusechat_stages.entry import run_local
from safetensors import safe_open
from safetensors.torch import load_file, save_file

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
