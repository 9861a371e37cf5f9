"""Finished TrainJobs, which have no time to live of their own: which go now, and when to look again. Pure.

Used by reconcile, for runs that go on and for ended ones. Jobs and PyTorchJobs are cleared by the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fusechat.plan import Plan
from fusechat.spec import seconds

from fusechat_operator import jobs
from fusechat_operator.children import Child
from fusechat_operator.facts import UNKNOWN, Look
from fusechat_operator.memory import Line
from fusechat_operator.pods import Place


@dataclass(frozen=True)
class Leftovers:
    """`gone` is to be deleted; `again` is in seconds, None where nothing is left to come."""

    gone: tuple[Child, ...] = ()
    again: float | None = None


def trainjobs(
    look: Look, uid: str, plan: Plan, place: Place, lines: Mapping[str, Line], ttl: str, now: float
) -> Leftovers:
    """Complete TrainJobs of steps whose artifact is there, by the run's ttl. One question, if any."""
    made = [s for s in plan.steps if s.stage == "fuse" and s.name in lines and lines[s.name].done]
    if not any(lines[step.name].state == "Succeeded" for step in made):
        return Leftovers()
    own = look("own", f"{uid}/TrainJob")
    if own is UNKNOWN:
        return Leftovers()
    names = {jobs.name_of(step, place) for step in made}
    finished = [c for c in own if c.name in names and c.phase == "Complete" and not c.terminating]
    left = {c.uid: (c.ended or c.created) + seconds(ttl) - now for c in finished}
    coming = [each for each in left.values() if each > 0]
    return Leftovers(tuple(c for c in finished if left[c.uid] <= 0), min(coming, default=None))
