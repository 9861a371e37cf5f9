"""The record of a run: every step with its state, time and metrics, as `runs/<uid>.json` has it.

Pure. Written by the local runner and the operator, read by the report and `fusechat status`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from fusechat.progress import PUBLISHED, Observed, State
from fusechat.steps import Plan, Step


class Measured(Protocol):
    """What of a manifest is told: its metrics."""

    @property
    def metrics(self) -> Mapping[str, Any]: ...


def record(
    plan: Plan,
    observed: Mapping[str, Observed],
    manifests: Mapping[str, Measured],
    seconds: Mapping[str, float],
    attempts: Mapping[str, int],
    started: float,
    now: float,
) -> dict[str, Any]:
    """`observed`, `manifests`, `seconds` and `attempts` are by step name; times are seconds since 1970.

    A step that `observed` lacks was not needed: what it would have made is cached, or nobody asks for it.
    """
    steps = []
    for step in plan.steps:
        seen = observed.get(step.name, Observed(State.CACHED))
        steps.append(
            {
                **_facts(step),
                "state": str(State.DONE) if seen.state in PUBLISHED else str(seen.state),
                "cached": seen.state is State.CACHED,
                "seconds": round(seconds.get(step.name, 0.0), 3),
                "attempts": attempts.get(step.name, 0),
                "error": seen.error,
                "metrics": dict(manifests[step.name].metrics if step.name in manifests else seen.metrics),
            }
        )
    return {
        "run": plan.run,
        "uid": plan.uid,
        "profile": plan.profile,
        "generation": plan.generation,
        "startedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(now - started, 3),
        "steps": steps,
    }


def _facts(step: Step) -> dict[str, Any]:
    """What the plan says of a step."""
    return {
        "name": step.name,
        "stage": step.stage,
        "source": step.source,
        "address": step.address,
        "inputs": dict(step.inputs),
        "subject": {"kind": step.subject.kind, "name": step.subject.name} if step.subject else None,
        "params": dict(step.params),
    }
