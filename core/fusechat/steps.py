"""What a plan is made of: steps, their subjects, and the stages' versions. Values only.

Used by plan and recipe, by progress, the runner and the operator. Knows no spec and no store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VERSIONS: Mapping[str, int] = {
    "resolve": 1,
    "fetch": 1,
    "extract": 1,
    "align": 1,
    "filter": 1,
    "fuse": 1,
    "merge": 2,
    "evaluate": 1,
    "report": 1,
}
"""The version of each stage that this plan is for; a stage refuses another. Raised when its bytes change."""


@dataclass(frozen=True)
class Subject:
    """Whom an evaluation scores: kind is Pivot, Source, Control, Target or Fused."""

    kind: str
    name: str


@dataclass(frozen=True)
class Step:
    """One node. `inputs` are steps by role; `address` is None while something before it is not pinned.

    `version` is its stage's, 0 before the plan has said it.
    """

    name: str
    stage: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None
    shards: int = 1
    runtime: Mapping[str, Any] = field(default_factory=dict)
    subject: Subject | None = None
    source: str | None = None
    version: int = 0


@dataclass(frozen=True)
class Plan:
    """Steps in an order that respects their inputs. `unpinned` names the origins that resolve must pin.

    `versions`: of the stages that the steps are for.
    """

    run: str
    uid: str
    generation: int
    profile: str
    steps: tuple[Step, ...]
    unpinned: tuple[str, ...] = ()
    versions: Mapping[str, int] = field(default_factory=lambda: VERSIONS)

    def step(self, name: str) -> Step:
        """The step of that name; KeyError with the names there are."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(f"no step {name!r}; the steps are {', '.join(s.name for s in self.steps)}")

    def successors(self, name: str) -> tuple[Step, ...]:
        """The steps that read this one."""
        return tuple(step for step in self.steps if name in step.inputs.values())

    def sinks(self) -> tuple[Step, ...]:
        """The steps that a run is made for: those that no other step reads, and the fused model."""
        fused = [
            step
            for step in self.steps
            if step.subject == Subject("Fused", "fused") and step.stage != "evaluate"
        ]
        read = {name for step in self.steps for name in step.inputs.values()}
        ends = [step for step in self.steps if step.name not in read and step.stage != "report"]
        return tuple({step.name: step for step in [*ends, *fused]}.values())

    def input_addresses(self, step: Step) -> dict[str, str]:
        """Addresses of a step's inputs by role; all are known once the step's own is."""
        found = {role: self.step(name).address for role, name in step.inputs.items()}
        assert all(found.values()), f"{step.name} is asked for before its inputs are pinned"
        return {role: str(where) for role, where in found.items()}
