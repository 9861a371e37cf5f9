"""A FusionRun and its pins -> the DAG of content-addressed steps.

Pure. Called by the local runner, the operator and `fusechat plan`. Which steps there are is recipe's
knowledge; here they get their addresses. Knows no store, no process and no cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from fusechat.address import address
from fusechat.pins import origins, user_pins
from fusechat.recipe import steps, subjects
from fusechat.spec import FusionRun
from fusechat.steps import VERSIONS, Plan, Step, Subject

__all__ = ["VERSIONS", "Plan", "Step", "Subject", "plan", "report_step", "resolve_step", "subjects"]


def plan(
    run: FusionRun, pins: Mapping[str, str] | None = None, versions: Mapping[str, int] | None = None
) -> Plan:
    """The plan of a run. `pins` are resolve's answers by origin; what they lack leaves addresses pending.

    `versions`: of stages that the run began with, where they are not those of now.
    """
    known = {**user_pins(run), **(pins or {})}
    told = {**VERSIONS, **(versions or {})}
    made = tuple(_addressed(steps(run, known), known, told))
    unpinned = tuple(name for name in origins(run) if name not in known)
    meta = run.metadata
    uid, generation = meta.uid or meta.name, meta.generation or 1
    return Plan(meta.name, uid, generation, run.spec.profile, made, unpinned, told)


def resolve_step(run: FusionRun, nonce: str, names: tuple[str, ...]) -> Step:
    """The step that pins `names`; the nonce makes every asking its own step, for its answer may differ."""
    asked = {name: origin.asked() for name, origin in origins(run).items() if name in names}
    params, version = {"origins": asked, "nonce": nonce}, VERSIONS["resolve"]
    where = address("resolve", version, params, {})
    return Step("resolve", "resolve", params, address=where, version=version)


def report_step(plan: Plan, nonce: str) -> Step:
    """The step that writes the run's page; made anew by every run, and outside of every cache."""
    params, version = {"nonce": nonce, "title": plan.run}, plan.versions["report"]
    where = address("report", version, params, {})
    runtime = {"run": f"runs/{plan.uid}.json"}
    return Step("report", "report", params, address=where, runtime=runtime, version=version)


def _addressed(steps: Iterator[Step], pins: Mapping[str, str], versions: Mapping[str, int]) -> Iterator[Step]:
    known: dict[str, str | None] = {}
    for step in steps:
        inputs = {role: known[name] for role, name in step.inputs.items()}
        pinned = step.params.get("pin", "") is not None and all(inputs.values())
        ready = {role: str(where) for role, where in inputs.items()}
        version = versions[step.stage]
        where = address(step.stage, version, step.params, ready) if pinned else None
        known[step.name] = where
        yield replace(step, address=where, version=version)
