"""Merging in weight space, profile Corrected: float32 throughout, one tensor as a stream of tiles.

Called by stage merge, once per tensor. METHODS is the table: each row studies the stream (zero to three
passes, for what the whole tensor must tell) and then combines tile by tile. Knows arrays only;
merge_published has the same table in the released code's arithmetic. Memory: a workspace, whatever the
tensor's size.

Shapes: T targets, N elements of a tile. delta = target - base.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fusechat_stages.numerics.merge_select import Picker, Threshold, TopK
from fusechat_stages.numerics.merge_settings import Settings, uniform
from fusechat_stages.numerics.merge_tiles import Stream, Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST = torch.finfo(torch.float32).tiny
MERGEKIT_FLOOR = 1e-6
"""mergekit's sce: below this sum of mean squares its coefficients are uniform, and no divisor is smaller."""

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


# Studies


def _given(stream: Stream, settings: Settings) -> Facts:
    """The user's weights: no pass."""
    return Facts(settings.weights)


def _sce_study(stream: Stream, settings: Settings) -> Facts:
    """Select and calculate of SCE (arXiv 2408.07990, section 3.3 and Algorithm 1).

    The k = selectTopK * n elements of greatest variance between targets are selected (n: elements whose
    variance is not 0; in Algorithm 1 all), and a target's coefficient is its share in their sum of squares.
    """
    threshold = _most_varying(stream, settings)
    squares = _sums(_selected_squares(stream, threshold), stream.targets)
    floor = MERGEKIT_FLOOR * stream.numel if settings.variant == "mergekit" else 0.0
    return Facts(_shares(squares, floor), (threshold,))


def _most_varying(stream: Stream, settings: Settings) -> Threshold:
    if settings.select_topk >= 1:
        return Threshold.everything(stream.numel)
    top = TopK()
    for tile in stream.tiles():
        top.count(_variance(tile))
    population = top.seen if settings.variant == "paper" else top.nonzero
    if top.aim(int(settings.select_topk * population)):
        for tile in stream.tiles():
            top.refine(_variance(tile))
    return top.threshold()


def _selected_squares(stream: Stream, threshold: Threshold) -> Iterator[NDArray[np.float64]]:
    """Per tile, per target: the sum of squares of the selected deltas."""
    picker = Picker(threshold)
    for tile in stream.tiles():
        chosen = None if threshold.value < 0 else _indices(picker.mask(_variance(tile)))
        deltas = tile.deltas()
        yield _squares(deltas if chosen is None else deltas.index_select(1, chosen))


def _varm_study(stream: Stream, settings: Settings) -> Facts:
    """Variation ratio (arXiv 2402.16107, section 3.4): a target's share in the sum of squared deltas."""
    return Facts(_shares(_sums((_squares(t.deltas()) for t in stream.tiles()), stream.targets)))


def _ties_study(stream: Stream, settings: Settings) -> Facts:
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


def _slerp_study(stream: Stream, settings: Settings) -> Facts:
    """The two factors of spherical interpolation between two targets (Shoemake 1985)."""
    first, second, product = _sums((_products(t.targets()) for t in stream.tiles()), 3)
    return Facts(slerp_factors(first, second, product, settings.t))


def slerp_factors(first: float, second: float, product: float, t: float) -> tuple[float, float]:
    """Factors of two vectors, from their squared norms and dot product, at `t` of the arc between them."""
    lengths = math.sqrt(first) * math.sqrt(second)
    cosine = product / lengths if lengths else 0.0
    if abs(cosine) > PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


# Combinations: each returns the merged values, float32[N]


def _weighted_sum(tile: Tile, facts: Facts, pickers: Sequence[Picker], settings: Settings) -> torch.Tensor:
    """sum_j c_j target_j: linear and slerp."""
    if settings.normalize:
        return _weighted_deltas(
            tile, facts, pickers, settings
        )  # the same, with a small delta's rounding error
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
    chosen = _indices(pickers[0].mask(_variance(tile)))
    deltas = tile.deltas().index_select(1, chosen)
    return tile.base_N.index_add_(0, chosen, _erased(deltas, facts, settings, None))


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


# Sums


def _variance(tile: Tile) -> torch.Tensor:
    """float32[N]: variance over the targets of their deltas, which is that of their values.

    Taken about the first target: identical targets give exactly 0, and nothing cancels (the squares' mean is
    at most 2 T times the variance).
    """
    values = tile.targets()
    others = values[1:].sub_(values[0])
    squares = torch.sum(torch.mul(others, others, out=tile.y_TN[1:]), 0, out=tile.a_N)
    mean = torch.sum(others, 0, out=tile.b_N).div_(len(values))
    return squares.div_(len(values)).addcmul_(mean, mean, value=-1).clamp_(min=0)


def _squares(deltas_TN: torch.Tensor) -> NDArray[np.float64]:
    """float64[T]. float32 within a tile (pairwise summation), exact beyond it: see `_sums`."""
    return (deltas_TN * deltas_TN).sum(1).double().numpy()


def _products(pair_2N: torch.Tensor) -> NDArray[np.float64]:
    """float64[3]: squared norms of both rows, and their dot product."""
    first, second = pair_2N
    sums = [(first * first).sum(), (second * second).sum(), (first * second).sum()]
    return torch.stack(sums).double().numpy()


def _sums(parts: Iterator[NDArray[np.float64]], width: int) -> list[float]:
    """Column sums, correctly rounded whatever the order of the parts."""
    rows = list(parts)
    return [math.fsum(row[column] for row in rows) for column in range(width)]


def _shares(squares: Sequence[float], floor: float = 0.0) -> tuple[float, ...]:
    total = math.fsum(squares)
    return tuple(s / total for s in squares) if total > floor else uniform(len(squares))


def _row(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _indices(mask: NDArray[np.bool_]) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(mask))


def _float(mask: NDArray[np.bool_], out: torch.Tensor) -> torch.Tensor:
    return out.copy_(torch.from_numpy(mask.view(np.uint8)))


METHODS = {
    "sce": Method(_sce_study, _sce_combine),
    "linear": Method(_given, _weighted_sum),
    "task_arithmetic": Method(_given, _weighted_deltas),
    "ties": Method(_ties_study, _consensus),
    "dare_linear": Method(_given, _weighted_deltas),
    "dare_ties": Method(_given, _consensus),
    "slerp": Method(_slerp_study, _weighted_sum),
    "varm": Method(_varm_study, _weighted_deltas),
}
