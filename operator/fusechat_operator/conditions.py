"""Conditions as kstatus reads them: how a run stands, in one sentence, since when. Pure.

`status` makes the rest of what a decided pass says; a run of which nothing can be decided says this alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fusechat_operator.fit import fit
from fusechat_operator.memory import Memory
from fusechat_operator.rest import RECONSIDERED


@dataclass(frozen=True)
class Verdict:
    """How the run stands. `state`: Running, Suspended, Stuck (waiting helps), Stalled or Succeeded."""

    state: str
    reason: str
    message: str


def timestamp(now: float) -> str:
    """Seconds since 1970 as Kubernetes writes them."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def refusal(
    found: Mapping[str, Any], memory: Memory, reason: str, message: str, now: float
) -> dict[str, Any]:
    """The status of a run that cannot be planned: what it had, Stalled, and why."""
    at = int(found["metadata"].get("generation", 1))
    verdict = Verdict("Stalled", reason, message)
    told = of(memory, verdict, at, None, now, found["spec"].get("suspend") is True)
    return fit({**found.get("status", {}), "observedGeneration": at, "conditions": told})


def held(found: Mapping[str, Any], memory: Memory, verdict: Verdict, now: float) -> dict[str, Any]:
    """The status of a run of which nothing can be decided, or nothing carried out: what it had, and why.

    Of a run that has ended only Ready is touched: how it ended is what its next decision begins with.
    """
    at, told = int(found["metadata"].get("generation", 1)), found.get("status", {})
    made = of(memory, verdict, at, None, now, found["spec"].get("suspend") is True)
    outcome = memory.conditions.get("Succeeded", {})
    if outcome.get("status") in ("True", "False") and outcome.get("reason") not in RECONSIDERED:
        ready = next(condition for condition in made if condition["type"] == "Ready")
        made = [ready if c["type"] == "Ready" else c for c in told["conditions"]]
        return fit({**told, "conditions": made})
    return fit({**told, "observedGeneration": at, "conditions": made})


def of(
    memory: Memory,
    verdict: Verdict,
    at: int,
    unpinned: Sequence[str] | None,
    now: float,
    suspended: bool = False,
) -> list[dict[str, Any]]:
    """Ready, Succeeded and Reproducible always; Reconciling and Stalled while true, Suspended once it was.

    `unpinned` None: the spec cannot be read, and whether it is reproducible stays as it was said.
    `suspended`: the spec says so, and what has to be said of it is something else just now.
    """
    going, stalled = verdict.state in ("Running", "Stuck", "Suspended"), verdict.state == "Stalled"
    succeeded = verdict.state == "Succeeded"
    wanted = {"Ready": ("True" if succeeded else "False", verdict.reason, verdict.message)}
    if going:
        wanted["Reconciling"] = ("True", verdict.reason, verdict.message)
    if stalled:
        wanted["Stalled"] = ("True", verdict.reason, verdict.message)
    outcome = "True" if succeeded else "False" if stalled else "Unknown"
    wanted["Succeeded"] = (outcome, verdict.reason, verdict.message)
    if verdict.state == "Suspended":
        wanted["Suspended"] = ("True", verdict.reason, verdict.message)
    elif suspended and memory.true("Suspended"):
        wanted["Suspended"] = ("True", "Suspended", "suspended by spec.suspend")
    elif "Suspended" in memory.conditions:  # says since when the run goes on, from which its deadline counts
        wanted["Suspended"] = ("False", "Resumed", "it went on")
    if reproducible := _reproducible(memory, unpinned):
        wanted["Reproducible"] = reproducible
    return [_condition(memory, kind, *facts, at, now) for kind, facts in wanted.items()]


def _reproducible(memory: Memory, unpinned: Sequence[str] | None) -> tuple[str, str, str] | None:
    if unpinned is None:
        before = memory.conditions.get("Reproducible", {})
        return (before["status"], before["reason"], before.get("message", "")) if before else None
    if unpinned:
        told = f"not pinned by the spec: {', '.join(unpinned)}; status.plan.pins has them"
        return "False", "NotPinned", told
    return "True", "Pinned", "every model and dataset is pinned by the spec"


def _condition(
    memory: Memory, kind: str, value: str, reason: str, message: str, at: int, now: float
) -> dict[str, Any]:
    before = memory.conditions.get(kind, {})
    since = before.get("lastTransitionTime") if before.get("status") == value else None
    return {
        "type": kind,
        "status": value,
        "reason": reason,
        "message": message[:4096],
        "observedGeneration": at,
        "lastTransitionTime": since or timestamp(now),
    }
