"""What a fusion's parameters and its runtime say, checked once and typed from there on.

Called by fuse. `Recipe` holds what changes the result (it is hashed into the address), `Means` what only
changes how fast it comes. Knows no data and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

STRATEGIES = ("Pairwise", "MultiTeacher", "SFT")
CHOICES = {
    "profile": ("Corrected", "Published"),
    "strategy": STRATEGIES,
    "loss": ("ce", "kl"),
    "choice": ("MinCE",),
    "scheduler": ("cosine", "linear", "constant"),
    "dtype": ("bfloat16", "float32"),
}
BOUNDS = {
    "lmWeight": (0.0, 1.0),
    "temperature": (1e-3, 1e3),
    "epochs": (1, 10_000),
    "learningRate": (0.0, 10.0),
    "warmupRatio": (0.0, 1.0),
    "weightDecay": (0.0, 10.0),
    "globalBatch": (1, 1 << 20),
    "maxLength": (2, 1 << 22),
    "maxGradNorm": (0.0, 1e9),
    "microBatch": (1, 1 << 20),
    "processes": (1, 4096),
    "nodes": (1, 4096),
    "checkpointSeconds": (0.0, 1e9),
}


@dataclass(frozen=True)
class Recipe:
    """The parameters of stage fuse, named as in the FusionRun. Defaults are FuseChat's published flags."""

    profile: str = "Corrected"
    strategy: str = "Pairwise"
    loss: str = "ce"
    lmWeight: float = 0.9
    temperature: float = 1.0
    choice: str = "MinCE"
    withPivot: bool = True
    epochs: int = 3
    learningRate: float = 5e-6
    scheduler: str = "cosine"
    warmupRatio: float = 0.03
    weightDecay: float = 0.0
    globalBatch: int = 128
    maxLength: int = 2048
    seed: int = 42
    dtype: str = "bfloat16"
    maxGradNorm: float = 1.0
    microBatch: int = 4
    """Samples whose rows are averaged together: of profile Published only, whose loss is a mean of means."""

    @classmethod
    def read(cls, params: Mapping[str, Any], runtime: Mapping[str, Any]) -> Self:
        """ValueError names the parameter, what was given and what is allowed.

        Published hashes its micro-batch and world size; where a plan did not, the runtime's micro-batch
        stands in. The world size itself is read nowhere: a mean of equal means does not depend on it.
        """
        given = {"microBatch": runtime.get("microBatch") or cls.microBatch, **params}
        if unknown := sorted(set(given) - {f.name for f in fields(cls)} - {"worldSize"}):
            raise ValueError(f"fuse: unknown parameter {unknown[0]!r}; known are {_names(cls)}")
        return cls(
            **{f.name: _checked(f.name, given[f.name], f.default) for f in fields(cls) if f.name in given}
        )

    @property
    def distils(self) -> bool:
        """Whether there is a distribution to learn; a control has none."""
        return self.strategy != "SFT"

    @property
    def published(self) -> bool:
        return self.profile == "Published"

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Means:
    """How the work is done: changes no value beyond rounding, and is not part of the address."""

    processes: int = 1
    """Ranks on each machine."""
    nodes: int = 1
    microBatch: int = 4
    """Samples of `maxLength` that fit the memory at once; shorter ones share the same token budget."""
    tokensPerBatch: int = 0
    """The budget itself, in padded tokens; 0: microBatch * maxLength."""
    checkpointSeconds: float = 600.0
    gradientCheckpointing: bool = True
    attention: str = "auto"
    device: str = ""

    @classmethod
    def read(cls, runtime: Mapping[str, Any]) -> Self:
        """Keys of other stages are ignored: one mapping serves the whole step."""
        known = {f.name: f for f in fields(cls)}
        return cls(**{
            name: _checked(name, value, known[name].default)
            for name, value in runtime.items()
            if name in known and value is not None
        })  # fmt: skip

    def tokens(self, recipe: Recipe) -> int:
        return self.tokensPerBatch or self.microBatch * recipe.maxLength

    def json(self) -> dict[str, Any]:
        return asdict(self)


def _names(kind: type) -> str:
    return ", ".join(f.name for f in fields(kind))


def _checked(name: str, value: Any, default: Any) -> Any:
    kind = type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"fuse: {name} must be of type {kind.__name__}, got {value!r}")
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(f"fuse: {name} must be one of {', '.join(CHOICES[name])}, got {value!r}")
    low, high = BOUNDS.get(name, (value, value))
    if not low <= value <= high:
        raise ValueError(f"fuse: {name} must be between {low:g} and {high:g}, got {value!r}")
    return value
