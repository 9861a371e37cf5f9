"""Confidence intervals of scores and of paired differences between two models on the same questions.

Pure arithmetic on counts and plain numbers: used by the evaluate stage, by the score table and by the
report. Knows no model, no file and no array library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence limits; `n` is how many questions or samples it rests on."""

    value: float
    low: float
    high: float
    n: int

    @property
    def decided(self) -> bool:
        """Whether zero lies outside: for a difference, whether the sign is settled at this level."""
        return self.low > 0 or self.high < 0


def wilson(correct: int, n: int, level: float = LEVEL) -> Interval:
    """Score interval of a proportion (Wilson 1927; recommended by Brown, Cai and DasGupta 2001, section 3).

    Keeps its coverage near 0 and 1, where value +- 1.96 standard errors does not. ValueError unless n >= 1.
    """
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"expected 0 <= correct <= n and n >= 1, got {correct} of {n}")
    z = _quantile(level)
    centre = (correct + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(correct * (n - correct) / n + z * z / 4)
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == n else centre + half
    return Interval(correct / n, low, high, n)


def paired_proportions(
    first: Mapping[str, bool], second: Mapping[str, bool], level: float = LEVEL
) -> Interval:
    """Share correct in `first` minus share correct in `second`, on the questions (by id) that both answered.

    Only the questions on which the two differ carry information, so the interval is much narrower than two
    separate ones. Limits: Agresti and Min 2005 (Statistics in Medicine 24:729-740, section 3), the normal
    interval after adding 1/2 to each cell of the 2 x 2 table. ValueError if no question is shared.
    """
    shared = first.keys() & second.keys()
    if not shared:
        raise ValueError("the two have no question in common; evaluate both on the same questions")
    wins = sum(first[q] and not second[q] for q in shared)
    losses = sum(second[q] and not first[q] for q in shared)
    n = len(shared)
    more, fewer, total = wins + 0.5, losses + 0.5, n + 2
    centre = (more - fewer) / total
    half = _quantile(level) * math.sqrt((more + fewer) - (more - fewer) ** 2 / total) / total
    return Interval((wins - losses) / n, max(-1.0, centre - half), min(1.0, centre + half), n)


def ratio(parts: Sequence[tuple[float, float]], level: float = LEVEL) -> Interval:
    """Sum of numerators over sum of denominators, e.g. bits over bytes, with samples as the unit of chance.

    Tokens of one conversation are not independent, so the variance is that of a ratio over samples
    (Cochran, Sampling Techniques, 3rd edition, section 6.3: linearisation). One sample gives infinite limits.
    """
    value, residuals = _linearised(parts)
    return _around(value, residuals, level)


def paired_ratios(
    first: Mapping[str, tuple[float, float]], second: Mapping[str, tuple[float, float]], level: float = LEVEL
) -> Interval:
    """Ratio of `first` minus that of `second` over the samples (by id) of both; limits as in `ratio`."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise ValueError("the two have no sample in common; evaluate both on the same data")
    value_1, residuals_1 = _linearised([first[s] for s in shared])
    value_2, residuals_2 = _linearised([second[s] for s in shared])
    return _around(value_1 - value_2, [a - b for a, b in zip(residuals_1, residuals_2, strict=True)], level)


def _linearised(parts: Sequence[tuple[float, float]]) -> tuple[float, list[float]]:
    size = math.fsum(d for _, d in parts)
    if not size > 0:
        raise ValueError(f"expected a positive sum of denominators, got {size:g} over {len(parts)} samples")
    value = math.fsum(n for n, _ in parts) / size
    mean = size / len(parts)
    return value, [(n - value * d) / mean for n, d in parts]


def _around(value: float, residuals: Sequence[float], level: float) -> Interval:
    n = len(residuals)
    if n < 2:
        return Interval(value, -math.inf, math.inf, n)
    error = math.sqrt(math.fsum(r * r for r in residuals) / (n * (n - 1)))
    half = _quantile(level) * error
    return Interval(value, value - half, value + half, n)


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2)
