"""Profile Published's fusion loss is the release's, on what the original trainer computed."""

import json
import re
from pathlib import Path

import pytest
import torch
from fusechat_stages.numerics.losses import fusion_loss_, published_teacher
from safetensors.torch import load_file

from tests.conftest import find_shared

NAME = re.compile(r"(?P<pivot>ref|noref)_(?P<loss>ce|kl)_T(?P<T>[\d.]+)_w(?P<w>[\d.]+)")


def cases() -> list[tuple[Path, str]]:
    shared = find_shared()
    found = sorted((shared / "golden" / "fuse").glob("case*_values.json")) if shared else []
    return [(path, name) for path in found for name in json.loads(path.read_text())["values"]]


def supervised(case: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """bool [B, L] of the rows (the position before a label), and the gold ids of those rows."""
    labels = torch.tensor([s["labels"] + [-100] * (case["L"] - len(s["labels"])) for s in case["features"]])
    rows = torch.zeros_like(labels, dtype=torch.bool)
    rows[:, :-1] = labels[:, 1:] != -100
    return rows, labels[:, 1:][rows[:, :-1]]


def chosen(sample: dict, with_pivot: bool) -> tuple[list, list]:
    """MinCE in bfloat16, ties to the pivot; a row that alignment left empty keeps the pivot's."""
    ce, fused_ce = (torch.tensor(sample[k], dtype=torch.bfloat16) for k in ("metric_ce", "fused_metric_ce"))
    own = list(zip(sample["per_step_indices"], sample["per_step_logits"], strict=True))
    if with_pivot and not fused_ce < ce:
        return [i for i, _ in own], [s for _, s in own]
    fused = zip(sample["fused_per_step_indices"], sample["fused_per_step_logits"], strict=True)
    rows = [row if row[0] else pivot for row, pivot in zip(fused, own, strict=True)]
    return [i for i, _ in rows], [s for _, s in rows]


def padded(rows: list[list], fill: float, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([row + [fill] * (10 - len(row)) for row in rows], dtype=dtype)


@pytest.mark.parametrize(("values", "name"), cases(), ids=lambda v: v if isinstance(v, str) else v.stem)
def test_loss_and_gradient_norms_are_the_original_trainers(values: Path, name: str):
    case = json.loads(values.read_text())
    stem = values.name.removesuffix("_values.json")
    case["features"] = json.loads(values.with_name(f"{stem}_features.json").read_text())
    tensors = load_file(values.with_name(f"{stem}_tensors.safetensors"))
    want, told = case["values"][name], NAME.fullmatch(name)
    weight, temperature = float(told["w"]), float(told["T"])

    rows_BL, gold_R = supervised(case)
    picked = [chosen(s, told["pivot"] == "ref") for s in case["features"]]
    index = rows_BL.nonzero().tolist()
    ids_RK = padded([picked[b][0][t] for b, t in index], -1, torch.int64)
    scores_RK = padded([picked[b][1][t] for b, t in index], float("-inf"), torch.float32)
    teacher = published_teacher(ids_RK, scores_RK, temperature, told["loss"])
    logits_RV, rows = tensors["model_logits"][rows_BL].clone(), len(gold_R)
    lm, fuse = fusion_loss_(logits_RV, gold_R, teacher, weight / rows, (1 - weight) / rows)

    assert lm.item() / rows == pytest.approx(want["lm_loss"], abs=1e-5)
    assert fuse.item() / rows == pytest.approx(want["fuse_loss"], abs=1e-5)
    loss = (weight * lm.item() + (1 - weight) * fuse.item()) / rows
    assert loss == pytest.approx(want["loss"], abs=1e-5)
    assert logits_RV.norm().item() == pytest.approx(want["grad_l2"], abs=1e-5)
    assert logits_RV.abs().sum().item() == pytest.approx(want["grad_abs_sum"], rel=1e-5)
    original = tensors[f"{name}.grad_logits"].float()[rows_BL]
    assert torch.allclose(logits_RV, original, atol=2e-5, rtol=2e-3)
    assert tensors[f"{name}.grad_logits"].float()[~rows_BL].abs().max() == 0
