"""What the report tells of a run: its record, and what it reads from the artifacts that the steps left.

Used by report. Everything is optional: an artifact that is gone, a benchmark that was not asked, a method
without coefficients leave their place empty and, where a reader would wonder, a note. Knows the store's
interface; draws nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusechat.errors import MissingInput
from fusechat.scores import Subject, read_outcomes

CURVE_POINTS = 240
"""Points kept of a training curve: means over equal shares of the steps."""


@dataclass(frozen=True)
class StepFacts:
    """One step of the run's record, with a default for all that a record may lack."""

    name: str
    stage: str
    address: str | None = None
    state: str = "Pending"
    cached: bool = False
    seconds: float = 0.0
    attempts: int = 0
    error: str | None = None
    source: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    subject: tuple[str, str] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """A training: per kept point the optimiser step and every number that `training.jsonl` has there."""

    subject: tuple[str, str]
    points: Sequence[Mapping[str, float]]

    def of(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of one number, where it is there and finite."""
        found = [(p["step"], p[key]) for p in self.points if key in p]
        return [(x, y) for x, y in found if math.isfinite(y)]


@dataclass(frozen=True)
class Coefficients:
    """What each target weighs in the merge: `tensors` has (tensor name, one coefficient per label)."""

    labels: tuple[str, ...]
    method: str
    tensors: Sequence[tuple[str, tuple[float, ...]]]


@dataclass(frozen=True)
class RunFacts:
    """All that the page shows."""

    name: str
    uid: str
    profile: str
    generation: int
    started: str
    seconds: float | None
    store: str | None
    steps: tuple[StepFacts, ...]
    subjects: Mapping[str, tuple[Subject, ...]]
    curves: tuple[Curve, ...]
    coefficients: Coefficients | None
    notes: tuple[str, ...]

    def of_stage(self, stage: str) -> list[StepFacts]:
        return [step for step in self.steps if step.stage == stage]

    @property
    def fused(self) -> StepFacts | None:
        """The step that made the fused model."""
        made = [s for s in self.steps if s.subject and s.subject[0] == "Fused" and s.stage != "evaluate"]
        return made[0] if made else None


def gather(store: Any, record: Mapping[str, Any]) -> RunFacts:
    """Read what the record's steps left in `store` (its `manifest` and `read`)."""
    steps = tuple(_step(step) for step in record.get("steps", ()))
    artifacts = _Artifacts(store)
    subjects = _subjects(steps, artifacts)
    curves = tuple(_curves(steps, artifacts))
    coefficients = _coefficients(steps, artifacts)
    return RunFacts(
        name=str(record.get("run", "")),
        uid=str(record.get("uid", "")),
        profile=str(record.get("profile", "")),
        generation=int(record.get("generation") or 1),
        started=str(record.get("startedAt", "")),
        seconds=record.get("seconds"),
        store=record.get("store"),
        steps=steps,
        subjects=subjects,
        curves=curves,
        coefficients=coefficients,
        notes=tuple(artifacts.missing),
    )


def thinned(points: Sequence[Mapping[str, Any]], limit: int = CURVE_POINTS) -> list[dict[str, float]]:
    """At most `limit` points: means over equally many steps each, so that noise shrinks and no end is cut."""
    size = max(1, math.ceil(len(points) / limit))
    found = []
    for first in range(0, len(points), size):
        chunk = points[first : first + size]
        keys = [k for k, v in chunk[0].items() if isinstance(v, int | float) and not isinstance(v, bool)]
        values = {k: [float(p[k]) for p in chunk if isinstance(p.get(k), int | float)] for k in keys}
        found.append({k: math.fsum(v) / len(v) for k, v in values.items()})
    return found


def layer_of(tensor: str) -> int | None:
    """The layer a tensor belongs to: the first whole part of its name that is a number."""
    return next((int(part) for part in tensor.split(".") if part.isdigit()), None)


def by_layer(
    found: Coefficients,
) -> tuple[list[tuple[int, tuple[float, ...]]], list[tuple[str, tuple[float, ...]]]]:
    """(layer, mean coefficients of its tensors), and the tensors that stand outside of the layers."""
    layers: dict[int, list[tuple[float, ...]]] = {}
    outside = []
    for name, values in found.tensors:
        layer = layer_of(name)
        if layer is None:
            outside.append((name, values))
        else:
            layers.setdefault(layer, []).append(values)
    means = [(n, tuple(math.fsum(c) / len(c) for c in zip(*layers[n], strict=True))) for n in sorted(layers)]
    return means, outside


class _Artifacts:
    """Texts of artifacts; what is gone is remembered and never fatal to a page about the rest."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.missing: list[str] = []

    def text(self, step: StepFacts, name: str) -> str | None:
        """A small file of the step's artifact, None if the step did not end or the file is gone."""
        if step.address is None or step.state != "Succeeded":
            return None
        try:
            manifest = self._store.manifest(step.address)
            if manifest is None:
                raise MissingInput(f"{step.address} is not in the store")
            entry = manifest.entry(name)
            return (
                bytes(self._store.read(entry, 0, entry.size)).decode("utf-8", "replace") if entry.size else ""
            )
        except MissingInput:
            self.missing.append(f"{step.name}: {name} could not be read, what it tells is left out")
            return None


def _step(record: Mapping[str, Any]) -> StepFacts:
    subject = record.get("subject")
    return StepFacts(
        name=str(record["name"]),
        stage=str(record["stage"]),
        address=record.get("address"),
        state=str(record.get("state", "Pending")),
        cached=bool(record.get("cached")),
        seconds=float(record.get("seconds") or 0.0),
        attempts=int(record.get("attempts") or 0),
        error=record.get("error"),
        source=record.get("source"),
        inputs=dict(record.get("inputs") or {}),
        subject=(str(subject["kind"]), str(subject["name"])) if subject else None,
        params=dict(record.get("params") or {}),
        metrics=dict(record.get("metrics") or {}),
    )


_OUTCOMES = {"exactMatch": "answers.jsonl", "perplexity": "samples.jsonl"}


def _subjects(steps: Sequence[StepFacts], artifacts: _Artifacts) -> dict[str, tuple[Subject, ...]]:
    found: dict[str, list[Subject]] = {}
    for step in steps:
        if step.stage != "evaluate" or not step.subject or not step.metrics:
            continue
        benchmark = str(step.metrics.get("benchmark") or step.params.get("benchmark") or "exactMatch")
        text = artifacts.text(step, _OUTCOMES[benchmark]) if benchmark in _OUTCOMES else None
        outcomes = read_outcomes(text.split("\n")) if text else {}
        found.setdefault(benchmark, []).append(Subject(*step.subject, step.metrics, outcomes))
    return {benchmark: tuple(subjects) for benchmark, subjects in found.items()}


def _curves(steps: Sequence[StepFacts], artifacts: _Artifacts) -> Iterator[Curve]:
    for step in steps:
        if step.stage == "fuse" and (text := artifacts.text(step, "training.jsonl")):
            lines = [json.loads(line) for line in text.split("\n") if line.strip()]
            yield Curve(step.subject or ("Target", step.name), thinned(lines))


def _coefficients(steps: Sequence[StepFacts], artifacts: _Artifacts) -> Coefficients | None:
    for step in steps:
        if step.stage == "merge" and (text := artifacts.text(step, "coefficients.json")):
            return _read_coefficients(json.loads(text))
    return None


def _read_coefficients(found: Mapping[str, Any]) -> Coefficients | None:
    """What merge writes: {"method", "targets": [label], "tensors": {name: [a coefficient per label]}}."""
    labels = tuple(str(label) for label in found["targets"])
    tensors = [(str(name), tuple(map(float, values))) for name, values in found["tensors"].items()]
    return Coefficients(labels, str(found["method"]), tensors) if tensors else None
