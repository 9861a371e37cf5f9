"""Merging in weight space, profile Published: the arithmetic of the released code, whole tensors at a time.

Called by stage merge, once per tensor. Computes in the base's dtype, as FuseChat's fork of mergekit did, with
torch.topk choosing among equal values: so the bits are those of FuseChat-7B-v2.0's recipe on a CPU. Knows
arrays only. Memory: about three times the tensor of every model. Use merging unless the release must be
reproduced.

Shapes: T targets; the rest is the tensor's own shape. delta = target - base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

from fusechat_stages.numerics.merge_select import Threshold
from fusechat_stages.numerics.merge_settings import Settings, uniform
from fusechat_stages.numerics.merge_study import MERGEKIT_FLOOR, Facts, slerp_factors

CHUNK = 1 << 16
"""Elements whose variance is taken at a time: torch.var over the first dimension runs at 10 M elements/s."""

Merged = tuple[torch.Tensor, Facts]


def merge_tensor(
    name: str, base: torch.Tensor, targets: Sequence[torch.Tensor], settings: Settings
) -> Merged:
    """The merged tensor, in the base's dtype, and the coefficients. `targets` have the base's shape.

    ValueError if a value is not finite. `name` seeds DARE's choice.
    """
    cast = [target.to(base.dtype) for target in targets]
    if not all(bool(torch.isfinite(t).all()) for t in (base, *cast)):
        raise ValueError(f"tensor {name} holds values that are not finite, expected finite weights")
    return METHODS[settings.method](name, base, cast, settings)


def _sce(name: str, base: torch.Tensor, targets: Sequence[torch.Tensor], settings: Settings) -> Merged:
    """SCE (arXiv 2408.07990, Algorithm 1) in its three variants; see merging for what tells them apart."""
    deltas = torch.stack([target - base for target in targets])
    chosen, threshold = _select(deltas, settings)
    coefficients = _calculate(chosen, settings)
    merging = deltas if settings.variant == "fuseai" else chosen
    agree = _agrees(merging, merging.sum(0)).to(base.dtype)
    shares = _column(coefficients, merging) * agree
    merged = (merging * shares).sum(0)
    if settings.variant != "paper":
        merged = merged / _divisor(shares.sum(0), settings)
    return base + merged, Facts(coefficients, (threshold,))


def _select(deltas: torch.Tensor, settings: Settings) -> tuple[torch.Tensor, Threshold]:
    """The deltas with all but the most varying elements 0, and how many those are."""
    elements = deltas[0].numel()
    if settings.select_topk >= 1:
        return deltas, Threshold.everything(elements)
    variance = _variance(deltas)
    population = elements if settings.variant == "paper" else int(torch.count_nonzero(variance))
    k = int(settings.select_topk * population)
    mask = torch.zeros_like(variance)
    found = torch.topk(variance, k)
    mask[found.indices] = 1
    lowest = float(found.values[-1]) if k else float("inf")
    return deltas * mask.view(deltas.shape[1:]), Threshold(lowest, 0, k)


def _variance(deltas: torch.Tensor) -> torch.Tensor:
    """Population variance over the targets, flat, in the deltas' dtype; in float64 before, as torch.var."""
    flat = deltas.reshape(len(deltas), -1)
    variance = torch.empty_like(flat[0])
    for start in range(0, flat.shape[1], CHUNK):
        part = flat[:, start : start + CHUNK].double()
        variance[start : start + CHUNK] = (part - part.mean(0)).square_().mean(0)
    return variance


def _calculate(chosen: torch.Tensor, settings: Settings) -> tuple[float, ...]:
    """The targets' shares in the squares: the fork's as Python floats of rounded sums, mergekit's rounded."""
    if settings.variant == "mergekit":
        means = (chosen**2).mean(dim=list(range(1, chosen.dim())))
        total = means.sum().item()
        return uniform(len(chosen)) if abs(total) < MERGEKIT_FLOOR else tuple((means / total).tolist())
    squares = [torch.sum(delta**2).item() / delta.numel() for delta in chosen]
    total = sum(squares)
    return tuple(square / total for square in squares) if total else uniform(len(chosen))


def _divisor(shares: torch.Tensor, settings: Settings) -> torch.Tensor:
    return (
        shares.clamp(min=MERGEKIT_FLOOR)
        if settings.variant == "mergekit"
        else shares.masked_fill(shares == 0, 1)
    )


def _linear(name: str, base: torch.Tensor, targets: Sequence[torch.Tensor], settings: Settings) -> Merged:
    """In float32 and rounded once: the one method that mergekit computes so."""
    merged = torch.zeros_like(base, dtype=torch.float32)
    for target, weight in zip(targets, settings.weights, strict=True):
        merged.add_(target, alpha=weight)
    if settings.normalize:
        merged.div_(sum(settings.weights))
    return merged.to(base.dtype), Facts(settings.weights)


def _deltas(name: str, base: torch.Tensor, targets: Sequence[torch.Tensor], settings: Settings) -> Merged:
    """task_arithmetic, ties, dare_linear and dare_ties: trim or drop, elect, weigh; as mergekit does."""
    sparse = {"ties": _trimmed, "dare_linear": _dropped, "dare_ties": _dropped}.get(settings.method)
    deltas = torch.stack([t - base for t in targets])
    if sparse and settings.density < 1:
        deltas = torch.stack([sparse(delta, settings, f"{j}/{name}") for j, delta in enumerate(deltas)])
    weights = _column(settings.weights, deltas)
    weighted = deltas * weights
    if settings.method in ("ties", "dare_ties"):
        agree = _agrees(weighted, weighted.sum(0))
        weighted, weights = weighted * agree, weights * agree
    merged = weighted.sum(0)
    if settings.normalize:
        divisor = weights.sum(0)
        merged = merged / divisor.masked_fill(divisor.abs() < 1e-8, 1)
    return base + (merged if settings.scale == 1 else merged * settings.scale), Facts(settings.weights)


def _trimmed(delta: torch.Tensor, settings: Settings, key: str) -> torch.Tensor:
    """Only the density * numel largest magnitudes."""
    mask = torch.zeros_like(delta)
    order = delta.abs().view(-1).argsort(descending=True)  # decides among equal ones as mergekit does
    mask.view(-1)[order[: int(settings.density * delta.numel())]] = 1
    return delta * mask


def _dropped(delta: torch.Tensor, settings: Settings, key: str) -> torch.Tensor:
    """Each element kept with probability density and divided by it; `key` and the seed choose which."""
    digest = hashlib.blake2b(f"{settings.seed}/{key}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    kept = torch.bernoulli(torch.full(delta.shape, settings.density), generator=generator)
    return delta * kept.to(delta.dtype) / settings.density


def _slerp(name: str, base: torch.Tensor, targets: Sequence[torch.Tensor], settings: Settings) -> Merged:
    """In float32, as mergekit; the factors in float64."""
    first, second = (target.float() for target in targets)
    pairs = ((first, first), (second, second), (first, second))
    squared, other, product = (float((a.double() * b).sum()) for a, b in pairs)
    factors = slerp_factors(squared, other, product, settings.t)
    return (factors[0] * first + factors[1] * second).to(base.dtype), Facts(factors)


def _varm(name: str, base: torch.Tensor, targets: Sequence[torch.Tensor], settings: Settings) -> Merged:
    """VaRM as released: ratios in float32, equal if any target has not moved; the sum in the dtype."""
    means = [float(torch.sum((target.float() - base.float()) ** 2)) / base.numel() for target in targets]
    ratios = uniform(len(targets)) if 0 in means else tuple(mean / sum(means) for mean in means)
    merged = sum(ratio * target for ratio, target in zip(ratios, targets, strict=True))
    return torch.as_tensor(merged).to(base.dtype), Facts(ratios)


def _agrees(deltas: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Whether each delta has its column's sign; a column that sums to 0 counts as positive."""
    return deltas.sign() == (total >= 0).to(deltas.dtype) * 2 - 1


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """The values in the dtype of `like`, as a tensor that multiplies its first dimension."""
    return torch.tensor(values, dtype=like.dtype).view(-1, *[1] * (like.dim() - 1))


Function = Callable[[str, torch.Tensor, Sequence[torch.Tensor], Settings], Merged]
METHODS: dict[str, Function] = {
    "sce": _sce,
    "linear": _linear,
    "task_arithmetic": _deltas,
    "ties": _deltas,
    "dare_linear": _deltas,
    "dare_ties": _deltas,
    "slerp": _slerp,
    "varm": _varm,
}
