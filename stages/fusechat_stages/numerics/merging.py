"""Merging in weight space, profile Corrected: float32 throughout, one tensor as a stream of tiles.

Called by stage merge, once per tensor. METHODS is the table: each row studies the stream (zero to three
passes, for what the whole tensor must tell) and then combines tile by tile. Knows arrays only;
merge_published has the same table in the released code's arithmetic. Memory: a workspace, whatever the
tensor's size.

Shapes: T targets, N elements of a tile. delta = target - base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fusechat_stages.numerics import merge_study
from fusechat_stages.numerics.merge_select import Picker
from fusechat_stages.numerics.merge_settings import Settings
from fusechat_stages.numerics.merge_study import MERGEKIT_FLOOR, Facts
from fusechat_stages.numerics.merge_tiles import Stream, Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST = torch.finfo(torch.float32).tiny
Study = Callable[[Stream, Settings], Facts]
Combine = Callable[[Tile, Facts, Sequence[Picker], Settings], torch.Tensor]
Write = Callable[[Tile, torch.Tensor], None]


@dataclass(frozen=True)
class Method:
    """A row of the table: `study` reads the stream, `combine` makes float32[N] of a tile."""

    study: Study
    combine: Combine


def merge_tensor(stream: Stream, settings: Settings, write: Write) -> Facts:
    """Merge one tensor. `write(tile, merged_N)` gets float32, in order, and must use it before it returns.

    ValueError if a target or the base holds a NaN or an infinity, naming it.
    """
    method = METHODS[settings.method]
    facts = method.study(stream, settings)
    pickers = [Picker(threshold) for threshold in facts.thresholds]
    for tile in stream.tiles():
        write(tile, method.combine(tile, facts, pickers, settings))
    return facts


# Combinations: each returns the merged values, float32[N]


def _weighted_sum(tile: Tile, facts: Facts, pickers: Sequence[Picker], settings: Settings) -> torch.Tensor:
    """sum_j c_j target_j: linear and slerp."""
    if settings.normalize:  # the same in other words, with the rounding errors of small deltas
        return _weighted_deltas(tile, facts, pickers, settings)
    return torch.mv(tile.targets().T, _row(facts.coefficients), out=tile.a_N)


def _weighted_deltas(tile: Tile, facts: Facts, pickers: Sequence[Picker], settings: Settings) -> torch.Tensor:
    """base + lambda * sum_j c_j delta_j: task arithmetic (arXiv 2212.04089), dare_linear, varm, linear."""
    deltas = _dropped(tile, settings)
    total = sum(facts.coefficients) if settings.normalize else 1.0
    merged = torch.mv(deltas.T, _row([settings.scale * c / total for c in facts.coefficients]), out=tile.a_N)
    return merged.add_(tile.base_N)


def _consensus(tile: Tile, facts: Facts, pickers: Sequence[Picker], settings: Settings) -> torch.Tensor:
    """Elect and merge of TIES (ties, dare_ties): of the weighted deltas, those with the sign of their sum."""
    deltas = _dropped(tile, settings)
    for picker, delta_N in zip(pickers, deltas, strict=False):
        delta_N.mul_(_float(picker.mask(torch.abs(delta_N, out=tile.a_N)), tile.b_N))
    weights = _row(facts.coefficients)
    sign = _keep_majority(deltas.mul_(weights[:, None]), tile.a_N, tile.one_N)
    merged = torch.sum(deltas, 0, out=tile.b_N).mul_(sign)
    if settings.normalize:
        divisor = torch.mv(deltas.sign_().T, weights, out=tile.c_N)
        divisor[divisor.abs() < 1e-8] = 1
        merged.div_(divisor)
    return merged.mul_(settings.scale).add_(tile.base_N)


def _sce_combine(tile: Tile, facts: Facts, pickers: Sequence[Picker], settings: Settings) -> torch.Tensor:
    """Erase of SCE and the sum: fuseai on every element, paper and mergekit on the selected ones."""
    threshold = facts.thresholds[0]
    if settings.variant == "fuseai" or threshold.value < 0:
        deltas = tile.deltas()
        return _erased(deltas, facts, settings, tile).add_(tile.base_N)
    chosen = merge_study.indices(pickers[0].mask(merge_study.variance(tile)))
    return tile.base().index_add_(0, chosen, _erased(tile.deltas_at(chosen), facts, settings, None))


def _erased(deltas_TN: torch.Tensor, facts: Facts, settings: Settings, tile: Tile | None) -> torch.Tensor:
    """sum_j c_j delta_j over the targets with the majority's sign, divided by their c_j's sum but in paper.

    Overwrites the deltas. With a tile, its buffers are used.
    """
    a, one = (tile.a_N, tile.one_N) if tile else (None, torch.ones(deltas_TN.shape[1]))
    coefficients = _row(facts.coefficients)
    sign = _keep_majority(deltas_TN, a, one)
    merged = torch.mv(deltas_TN.T, coefficients, out=tile.b_N if tile else None).mul_(sign)
    if settings.variant != "paper":
        divisor = torch.mv(deltas_TN.sign_().T, coefficients, out=tile.c_N if tile else None)
        merged.div_(divisor.clamp_(min=MERGEKIT_FLOOR if settings.variant == "mergekit" else SMALLEST))
    return merged


def _keep_majority(deltas_TN: torch.Tensor, out: torch.Tensor | None, one_N: torch.Tensor) -> torch.Tensor:
    """Set to 0 what has not the sign of its column's sum (0 counts as +) and make the rest positive.

    Returns that sign, float32[N] of +1 and -1.
    """
    total = torch.sum(deltas_TN, 0, out=out).add_(0.0)  # -0.0 + 0.0 is 0.0: its sign is +
    sign = torch.copysign(one_N, total, out=total)
    deltas_TN.mul_(sign).clamp_(min=0)
    return sign


def _dropped(tile: Tile, settings: Settings) -> torch.Tensor:
    """The deltas; for DARE (arXiv 2311.03099) each kept with probability density and divided by it.

    The choice depends on seed, tensor, target and element alone: not on the order of the work.
    """
    deltas = tile.deltas()
    if not settings.method.startswith("dare") or settings.density >= 1:
        return deltas
    for target, delta_N in enumerate(deltas):
        key = hashlib.blake2b(f"{settings.seed}/{target}/{tile.name}".encode(), digest_size=16).digest()
        source = np.random.Philox(key=int.from_bytes(key, "little"), counter=tile.index << 64)
        words = source.random_raw((tile.size + 1) // 2).view(np.uint32)[: tile.size]
        delta_N.mul_(_float(words < np.uint32(settings.density * 2**32), tile.a_N))
    return deltas.mul_(1 / settings.density)


def _row(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _float(mask: NDArray[np.bool_], out: torch.Tensor) -> torch.Tensor:
    return out.copy_(torch.from_numpy(mask.view(np.uint8)))


METHODS = {
    "sce": Method(merge_study.sce, _sce_combine),
    "linear": Method(merge_study.given, _weighted_sum),
    "task_arithmetic": Method(merge_study.given, _weighted_deltas),
    "ties": Method(merge_study.ties, _consensus),
    "dare_linear": Method(merge_study.given, _weighted_deltas),
    "dare_ties": Method(merge_study.given, _consensus),
    "slerp": Method(merge_study.slerp, _weighted_sum),
    "varm": Method(merge_study.varm, _weighted_deltas),
}
