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


def plan(run: FusionRun, pins: Mapping[str, str] | None = None) -> Plan:
    """The plan of a run. `pins` are resolve's answers by origin; what they lack leaves addresses pending."""
    known = {**user_pins(run), **(pins or {})}
    made = tuple(_addressed(steps(run, known), known))
    unpinned = tuple(name for name in origins(run) if name not in known)
    meta = run.metadata
    return Plan(meta.name, meta.uid or meta.name, meta.generation or 1, run.spec.profile, made, unpinned)


def resolve_step(run: FusionRun, nonce: str, names: tuple[str, ...]) -> Step:
    """The step that pins `names`; the nonce makes every asking its own step, for its answer may differ."""
    asked = {name: origin.asked() for name, origin in origins(run).items() if name in names}
    params = {"origins": asked, "nonce": nonce}
    return Step("resolve", "resolve", params, address=address("resolve", VERSIONS["resolve"], params, {}))


def report_step(plan: Plan, nonce: str) -> Step:
    """The step that writes the run's page; made anew by every run, and outside of every cache."""
    params = {"nonce": nonce, "title": plan.run}
    where = address("report", VERSIONS["report"], params, {})
    return Step("report", "report", params, address=where, runtime={"run": f"runs/{plan.uid}.json"})


def _addressed(steps: Iterator[Step], pins: Mapping[str, str]) -> Iterator[Step]:
    known: dict[str, str | None] = {}
    for step in steps:
        inputs = {role: known[name] for role, name in step.inputs.items()}
        pinned = step.params.get("pin", "") is not None and all(inputs.values())
        ready = {role: str(where) for role, where in inputs.items()}
        where = address(step.stage, step.version, step.params, ready) if pinned else None
        known[step.name] = where
        yield replace(step, address=where)
