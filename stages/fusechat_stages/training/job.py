"""One fusion's work order: what a rank must know, in plain values, and where the rank stands.

Made by fuse, read by the loop; goes to other processes as JSON. Knows how to say it and nothing of doing it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from fusechat_stages.training.recipe import Means, Recipe


@dataclass(frozen=True)
class World:
    """A rank's place: `local` among the ranks of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class Job:
    """Paths are of this machine. `store`: {uri, endpoint, region}; None keeps checkpoints in a folder."""

    recipe: Recipe
    means: Means
    examples: Path
    model: Path
    scratch: Path
    target: Path
    vocabulary: int
    address: str
    attempt: str
    store: Mapping[str, Any] | None = None

    def text(self) -> str:
        paths = {name: str(getattr(self, name)) for name in ("examples", "model", "scratch", "target")}
        return json.dumps({**asdict(self), **paths})

    @classmethod
    def parse(cls, text: str) -> Self:
        told = json.loads(text)
        paths = {name: Path(told[name]) for name in ("examples", "model", "scratch", "target")}
        return cls(**{**told, **paths, "recipe": Recipe(**told["recipe"]), "means": Means(**told["means"])})


class Host(Protocol):
    """Whom the loop reports to: the stage's output, or the pipe to the process that has it."""

    @property
    def stopping(self) -> bool: ...

    def progress(self, done: float, total: float, unit: str, **facts: Any) -> None: ...
