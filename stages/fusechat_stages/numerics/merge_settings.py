"""A merge's parameters, checked: what stage merge was asked for.

Made from the step's params; read by merging and merge_published. The names are the FusionRun's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METHODS = ("sce", "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp", "varm")
VARIANTS = ("fuseai", "paper", "mergekit")
PROFILES = ("Corrected", "Published")
NORMALIZED = ("linear", "ties")
"""What divides by the sum of the weights unless told otherwise: as in mergekit."""


def uniform(targets: int) -> tuple[float, ...]:
    return (1.0 / targets,) * targets


@dataclass(frozen=True)
class Settings:
    """What the method reads of these; the rest is ignored.

    variant, select_topk: sce. weights, normalize: linear, task_arithmetic, ties, dare; scale (lambda): these
    but linear. density: ties (share trimmed to), dare (probability to keep); seed: dare. t: slerp, 0 is the
    first target and 1 the second.
    """

    method: str
    profile: str
    variant: str
    select_topk: float
    density: float
    weights: tuple[float, ...]
    scale: float
    normalize: bool
    t: float
    seed: int

    @classmethod
    def of(cls, params: Mapping[str, Any], targets: int) -> Settings:
        """From the step's params, for so many targets. ValueError says what is wrong with them."""
        method = _one_of("method", params.get("method", "sce"), METHODS)
        normalize = params.get("normalize")
        found = cls(
            method=method,
            profile=_one_of("profile", params.get("profile", "Corrected"), PROFILES),
            variant=_one_of("variant", params.get("variant", "fuseai"), VARIANTS),
            select_topk=_within("selectTopK", params.get("selectTopK", 0.1), 0, 1),
            density=_within("density", params.get("density", 0.5), 0, 1),
            weights=tuple(float(w) for w in params.get("weights") or [1.0] * targets),
            scale=_within("lambda", params.get("lambda", 1.0), -100, 100),
            normalize=method in NORMALIZED if normalize is None else bool(normalize),
            t=_within("t", params.get("t", 0.5), 0, 1),
            seed=int(params.get("seed", 42)),
        )
        found._check(targets)
        return found

    def _check(self, targets: int) -> None:
        weights, averaged = list(self.weights), self.method in ("linear", "task_arithmetic", "dare_linear")
        wrong = [
            (not targets, "a merge needs at least one target, got none; name at least one source"),
            (
                self.method == "slerp" and targets != 2,
                f"slerp lies between exactly two targets, got {targets}; take another merge.method",
            ),
            (
                len(weights) != targets,
                f"there are {len(weights)} weights for {targets} targets; give one weight per target",
            ),
            (
                not all(math.isfinite(w) for w in weights),
                f"weights must be finite numbers, got {weights}; correct merge.weights",
            ),
            (
                self.method.startswith("dare") and self.density == 0,
                "density 0 keeps nothing, expected more than 0; raise merge.density",
            ),
            (
                averaged and self.normalize and not sum(weights),
                f"the weights {weights} sum to 0 and cannot be normalised; change merge.weights",
            ),
        ]
        for is_wrong, sentence in wrong:
            if is_wrong:
                raise ValueError(sentence)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}; correct merge.{name}")
    return str(value)


def _within(name: str, value: Any, low: float, high: float) -> float:
    if not low <= value <= high:  # a NaN fails here too
        raise ValueError(f"{name} is {value!r}, expected {low} to {high}; correct merge.{name}")
    return float(value)
