"""What a method must know of a whole tensor before it merges a tile: coefficients, and which elements count.

Used by merging, whose table names a study per method: zero to three passes over the stream. Knows arrays
only. Shapes as there: T targets, N elements of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fusechat_stages.numerics.merge_select import Picker, Threshold, TopK
from fusechat_stages.numerics.merge_settings import Settings, uniform
from fusechat_stages.numerics.merge_tiles import Stream, Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

MERGEKIT_FLOOR = 1e-6
"""mergekit's sce: below this sum of mean squares its coefficients are uniform, and no divisor is smaller."""

HELD = 1 << 18
"""Elements of about the threshold's variance that are held to save a pass; rounded deltas may have more."""

PARALLEL = 0.9995
"""Cosine beyond which slerp interpolates linearly (Shoemake 1985; mergekit's bound)."""


@dataclass(frozen=True)
class Facts:
    """What the study of one tensor found: a coefficient per target, and which elements count.

    `thresholds`: one for sce (on the variance between targets), one per target for ties (on |delta|).
    """

    coefficients: tuple[float, ...]
    thresholds: tuple[Threshold, ...] = ()

    @property
    def selected(self) -> int | None:
        """Elements that passed the thresholds, of all targets together; None where there is no threshold."""
        return sum(t.count for t in self.thresholds) if self.thresholds else None


def given(stream: Stream, settings: Settings) -> Facts:
    """The user's weights: no pass."""
    return Facts(settings.weights)


def sce(stream: Stream, settings: Settings) -> Facts:
    """Select and calculate of SCE (arXiv 2408.07990, section 3.3 and Algorithm 1).

    The k = selectTopK * n elements of greatest variance between targets are selected (n: elements whose
    variance is not 0; in Algorithm 1 all), and a target's coefficient is its share in their sum of squares.
    """
    threshold, squares = _selected(stream, settings)
    floor = MERGEKIT_FLOOR * stream.numel if settings.variant == "mergekit" else 0.0
    return Facts(_shares(squares, floor), (threshold,))


def _selected(stream: Stream, settings: Settings) -> tuple[Threshold, list[float]]:
    """What is selected, and each target's sum of squares over it."""
    if settings.select_topk >= 1:
        return _squares_of(stream, Threshold.everything(stream.numel))
    top = TopK()
    for tile in stream.tiles():
        top.count(variance(tile))
    population = top.seen if settings.variant == "paper" else top.nonzero
    if not top.aim(int(settings.select_topk * population)):
        return _squares_of(stream, top.threshold())
    if top.inside <= HELD:
        return _finished(stream, top)
    for tile in stream.tiles():
        top.refine(variance(tile))
    return _squares_of(stream, top.threshold())


def _squares_of(stream: Stream, threshold: Threshold) -> tuple[Threshold, list[float]]:
    """One more pass, the threshold being known."""
    picker = Picker(threshold)
    parts = []
    for tile in stream.tiles():
        if threshold.value < 0:
            parts.append(_squares(tile.deltas()))
        else:
            parts.append(_squares(tile.deltas_at(indices(picker.mask(variance(tile))))))
    return threshold, _sums(parts, stream.targets)


def _finished(stream: Stream, top: TopK) -> tuple[Threshold, list[float]]:
    """Threshold and squares in the same pass: the few elements near the threshold are held until its end."""
    parts, held, near = [], [], []
    for tile in stream.tiles():
        values = variance(tile)
        above, inside = top.split(values)
        held.append(values.numpy()[inside])
        parts.append(_squares(tile.deltas_at(torch.from_numpy(above))))
        near.append(tile.deltas_at(torch.from_numpy(inside)))
    order, threshold = top.best(np.concatenate(held))
    parts.append(_squares(torch.cat(near, 1).index_select(1, torch.from_numpy(order))))
    return threshold, _sums(parts, stream.targets)


def varm(stream: Stream, settings: Settings) -> Facts:
    """Variation ratio (arXiv 2402.16107, section 3.4): a target's share in the sum of squared deltas."""
    return Facts(_shares(_sums([_squares(tile.deltas()) for tile in stream.tiles()], stream.targets)))


def ties(stream: Stream, settings: Settings) -> Facts:
    """Trim of TIES (arXiv 2306.01708): the density * numel largest |delta| of each target."""
    if settings.density >= 1:
        return Facts(settings.weights, (Threshold.everything(stream.numel),) * stream.targets)
    tops = [TopK() for _ in range(stream.targets)]
    for tile in stream.tiles():
        for top, delta_N in zip(tops, tile.deltas().abs_(), strict=True):
            top.count(delta_N)
    unsettled = [top for top in tops if top.aim(int(settings.density * stream.numel))]
    if unsettled:  # then all are: their counts are the same
        for tile in stream.tiles():
            for top, delta_N in zip(tops, tile.deltas().abs_(), strict=True):
                top.refine(delta_N)
    return Facts(settings.weights, tuple(top.threshold() for top in tops))


def slerp(stream: Stream, settings: Settings) -> Facts:
    """The two factors of spherical interpolation between two targets (Shoemake 1985)."""
    first, second, product = _sums([_products(tile.targets()) for tile in stream.tiles()], 3)
    return Facts(slerp_factors(first, second, product, settings.t))


def slerp_factors(first: float, second: float, product: float, t: float) -> tuple[float, float]:
    """Factors of two vectors, from their squared norms and dot product, at `t` of the arc between them."""
    lengths = math.sqrt(first) * math.sqrt(second)
    cosine = product / lengths if lengths else 0.0
    if abs(cosine) > PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def variance(tile: Tile) -> torch.Tensor:
    """float32[N]: variance over the targets of their deltas, which is that of their values, left in `x_TN`.

    Taken about the first target: identical targets give exactly 0, and nothing cancels (the squares' mean is
    at most 2 T times the variance).
    """
    values = tile.targets()
    others = torch.sub(values[1:], values[0], out=tile.y_TN[1:])
    mean = torch.sum(others, 0, out=tile.b_N).div_(len(values))
    squares = torch.sum(others.mul_(others), 0, out=tile.a_N)
    return squares.div_(len(values)).addcmul_(mean, mean, value=-1).clamp_(min=0)


def _squares(deltas_TN: torch.Tensor) -> NDArray[np.float64]:
    """float64[T]. float32 within a tile (pairwise summation), exact beyond it: see `_sums`."""
    return (deltas_TN * deltas_TN).sum(1).double().numpy()


def _products(pair_2N: torch.Tensor) -> NDArray[np.float64]:
    """float64[3]: squared norms of both rows, and their dot product."""
    first, second = pair_2N
    sums = [(first * first).sum(), (second * second).sum(), (first * second).sum()]
    return torch.stack(sums).double().numpy()


def _sums(parts: Sequence[NDArray[np.float64]], width: int) -> list[float]:
    """Column sums, correctly rounded whatever the order of the parts."""
    return [math.fsum(row[column] for row in parts) for column in range(width)]


def _shares(squares: Sequence[float], floor: float = 0.0) -> tuple[float, ...]:
    total = math.fsum(squares)
    return tuple(s / total for s in squares) if total > floor else uniform(len(squares))


def indices(mask: NDArray[np.bool_]) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(mask))
