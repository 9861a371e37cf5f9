"""What one look adds to the metrics: steps that ended, their seconds, GPU seconds, the run's end. Pure.

Made by reconcile, counted by the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusechat.plan import Plan

from fusechat_operator.conditions import Verdict
from fusechat_operator.memory import Line, Memory
from fusechat_operator.scan_lines import Scan


@dataclass(frozen=True)
class Tally:
    """`steps` are (stage, Cached | Succeeded | Failed); `seconds` (stage, from its child's start to its end).

    `ended` is the reason with which the run has just ended, "" if it has not.
    """

    steps: tuple[tuple[str, str], ...] = ()
    seconds: tuple[tuple[str, float], ...] = ()
    gpu_seconds: float = 0.0
    ended: str = ""


NOTHING = Tally()


def tally(before: Memory, scan: Scan, plan: Plan, verdict: Verdict) -> Tally:
    """Of what has changed since `before`."""
    stages = {step.name: step.stage for step in plan.steps}
    steps = tuple(
        (stages[name], line.state)
        for name, line in scan.lines.items()
        if name in stages
        and line.state in ("Cached", "Succeeded", "Failed")
        and line.state != before.lines.get(name, Line(name)).state
    )
    over = verdict.state in ("Succeeded", "Stalled")
    was = before.conditions.get("Succeeded", {})
    same = was.get("reason") == verdict.reason and was.get("status") in ("True", "False")
    return Tally(steps, tuple(scan.seconds), scan.gpu_seconds, verdict.reason if over and not same else "")


def state(status: Mapping[str, Any]) -> str:
    """Running, Waiting or Suspended; "" of a run that has ended, and of one that nobody has looked at."""
    true = {c["type"]: c for c in status.get("conditions") or () if c["status"] == "True"}
    if "Suspended" in true:
        return "Suspended"
    if "Reconciling" not in true:
        return ""
    return "Running" if true["Reconciling"].get("reason") in ("Progressing", "Reporting") else "Waiting"
