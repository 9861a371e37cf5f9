"""What to do next: a plan and what is known of its steps -> what to start, what waits, how it ends.

Pure and level-based. Called again after every event by the local runner and by the operator's reconcile;
asks nothing and starts nothing. Knows no process, no Pod and no store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fusechat.plan import Plan, Step
from fusechat.spec import FusionRun


class State(StrEnum):
    """A step's state. CACHED and DONE are published; CACHED was so before this run looked."""

    PENDING = "Pending"
    RUNNING = "Running"
    CACHED = "Cached"
    DONE = "Succeeded"
    FAILED = "Failed"


PUBLISHED = (State.CACHED, State.DONE)

BUG_CODES = frozenset({64, 65, 66, 70})
"""Exit codes that trying again cannot mend; 66 is looked at once more, after its input was made anew."""


@dataclass(frozen=True)
class Observed:
    """What is known of one step: its state, its published metrics, and how its last attempt ended."""

    state: State = State.PENDING
    metrics: Mapping[str, Any] = field(default_factory=dict)
    failures: int = 0
    exit_code: int | None = None
    error: str = ""


@dataclass(frozen=True)
class Decision:
    """`start`: in order of preference; `waiting`: why a step does not; `outcome`: None while it goes on."""

    start: tuple[Step, ...]
    waiting: Mapping[str, str]
    outcome: str | None = None
    message: str = ""


def needed(plan: Plan, published: Callable[[Step], bool]) -> set[str]:
    """Names of the steps that must be made, probed from the sinks backwards: a cached run costs its sinks."""
    missing: set[str] = set()
    hits: dict[str, bool] = {}

    def visit(step: Step) -> None:
        if step.name in hits:
            return
        hits[step.name] = step.address is not None and published(step)
        if not hits[step.name]:
            missing.add(step.name)
            for name in dict.fromkeys(step.inputs.values()):
                visit(plan.step(name))

    for sink in plan.sinks():
        visit(sink)
    return missing


def decide(
    plan: Plan, observed: Mapping[str, Observed], *, slots: int, gates: Mapping[str, float]
) -> Decision:
    """The next move. `observed` names the steps that this run needs; a step that it lacks is not needed.

    A step whose address another step makes already waits for that one. After a failure nothing new starts
    that depends on it, and what is independent goes on: its artifacts stay and are hits next time.
    """
    seen = {s.name: observed[s.name] for s in plan.steps if s.name in observed}
    closed = _closed_gates(plan, observed, gates)
    waiting, ready = _sorted_out(plan, seen, closed)
    running = sum(o.state is State.RUNNING for o in seen.values())
    start = tuple(ready[: max(0, slots - running)])
    if start or running:
        return Decision(start, waiting)
    if all(o.state in PUBLISHED for o in seen.values()):
        return Decision((), {}, "Succeeded", "")
    failed = [f"{name}: {o.error}" for name, o in seen.items() if o.state is State.FAILED]
    if failed or closed:
        return Decision((), waiting, "Failed", "; ".join([*failed, *closed.values()]))
    return Decision((), waiting, None, "")


def _sorted_out(
    plan: Plan, seen: Mapping[str, Observed], closed: Mapping[str, str]
) -> tuple[dict[str, str], list[Step]]:
    """(why each pending step waits, the pending steps that may start)."""
    waiting: dict[str, str] = {}
    ready: list[Step] = []
    taken = {plan.step(name).address for name, o in seen.items() if o.state is State.RUNNING}
    for name, state in seen.items():
        if state.state is not State.PENDING:
            continue
        step = plan.step(name)
        if reason := _obstacle(step, seen, closed):
            waiting[name] = reason
        elif step.address in taken:
            waiting[name] = "another step makes the same artifact"
        else:
            taken.add(step.address)
            ready.append(step)
    return waiting, sorted(ready, key=lambda step: -_weight(plan, step))


def _obstacle(step: Step, seen: Mapping[str, Observed], closed: Mapping[str, str]) -> str:
    if step.address is None:
        return "its inputs are not pinned yet"
    before = {name: seen[name].state for name in step.inputs.values() if name in seen}
    if failed := [name for name, state in before.items() if state is State.FAILED]:
        return f"{failed[0]} failed"
    if unfinished := [name for name, state in before.items() if state not in PUBLISHED]:
        return f"waits for {', '.join(sorted(set(unfinished)))}"
    return closed.get(step.name, "")


_STAGE_WEIGHT = {"fuse": 8, "extract": 4, "merge": 2}


def _weight(plan: Plan, step: Step) -> int:
    """How much of the plan's work hangs on a step: the longest path of stage weights from it on."""
    after = [_weight(plan, successor) for successor in plan.successors(step.name)]
    return _STAGE_WEIGHT.get(step.stage, 1) + max(after, default=0)


# gate -> (stage whose metrics it reads, the metric)
GATES: Mapping[str, tuple[str, str]] = {
    "keptShare": ("filter", "keptShare"),
    "alignmentCoverage": ("align", "coverage"),
    "winShare": ("filter", "winShare"),
}


def gates_of(run: FusionRun) -> dict[str, float]:
    """The thresholds that a run sets, by gate."""
    gates = run.spec.gates
    named = {
        "keptShare": gates.kept_share,
        "alignmentCoverage": gates.alignment_coverage,
        "winShare": gates.win_share,
    }
    return {name: float(least) for name, least in named.items() if least is not None}


def _closed_gates(plan: Plan, observed: Mapping[str, Observed], gates: Mapping[str, float]) -> dict[str, str]:
    """Fuse steps that a gate stops -> the sentence why. A gate changes no address: it only stops."""
    closed: dict[str, str] = {}
    for gate, least in gates.items():
        stage, metric = GATES[gate]
        for step in plan.steps:
            found = observed.get(step.name, Observed()).metrics.get(metric) if step.stage == stage else None
            if found is not None and found < least:
                sentence = (
                    f"gate {gate}: {step.name} has {found:.3g}, at least {least:g} is asked for; "
                    "nothing is lost: lower the gate, or look at the data, and run again"
                )
                closed |= dict.fromkeys(_fuses_after(plan, step), sentence)
    return closed


def _fuses_after(plan: Plan, step: Step) -> set[str]:
    found: set[str] = set()
    for successor in plan.successors(step.name):
        if successor.stage == "fuse":
            found.add(successor.name)
        else:
            found |= _fuses_after(plan, successor)
    return found
