"""One pass's notes on every step: its line, what is to be done, and what makes a line stale. Pure.

The base of scan's layers (scan_ends, then scan itself).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fusechat.plan import Step
from fusechat.progress import Observed, State

from fusechat_operator import jobs
from fusechat_operator.children import Child
from fusechat_operator.facts import Artifact, Look
from fusechat_operator.memory import Line, Memory


@dataclass
class Scan:
    """What was found. `observed` is what progress.decide takes; `problems` say what is stuck."""

    lines: dict[str, Line] = field(default_factory=dict)
    observed: dict[str, Observed] = field(default_factory=dict)
    children: dict[str, Child] = field(default_factory=dict)
    waits: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    delete: list[Child] = field(default_factory=list)
    stop: list[Child] = field(default_factory=list)
    keep: list[Child] = field(default_factory=list)
    forget: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    gpu_seconds: float = 0.0
    seconds: list[tuple[str, float]] = field(default_factory=list)
    unqueued: bool = False
    stopped: list[str] = field(default_factory=list)


class Lines:
    """What every layer of a scan has."""

    def __init__(self, work: jobs.Work, memory: Memory, look: Look, now: float) -> None:
        self.work, self.memory, self.look, self.now = work, memory, look, now
        self.uid = str(work.object["metadata"]["uid"])
        self.found = Scan()
        self.stale: set[str] = set()

    def _done(self, step: Step, line: Line, artifact: Artifact) -> Observed:
        clean = replace(line, ended="", replanned=False, within=(0, 0))
        self.found.lines[step.name] = clean
        if clean.state == "Succeeded":
            self._mark_stale(step, artifact)
        return Observed(State.CACHED if line.state == "Cached" else State.DONE, artifact.metrics)

    def _mark_stale(self, step: Step, fresh: Artifact) -> None:
        """Hits that were made of other bytes of this step than it has now are made anew.

        The status says so before the next look sets the artifact aside: else a crash in between would leave a
        hit in the status that is not in the store.
        """
        for successor in self.work.plan.successors(step.name):
            known = self.memory.lines.get(successor.name)
            if known is None or known.state != "Cached":
                continue
            hit = self.look("metrics", str(successor.address))
            if isinstance(hit, Artifact) and _differs(hit, step, fresh):
                stale = replace(known, state="Waiting")
                self.memory = replace(self.memory, lines={**self.memory.lines, successor.name: stale})
                self.stale.add(successor.name)

    def _is_stale(self, step: Step, hit: Artifact) -> bool:
        for name in dict.fromkeys(step.inputs.values()):
            if self.found.lines.get(name, Line(name)).state == "Succeeded":
                given = self.work.plan.step(name)
                fresh = self.look("metrics", str(given.address))
                if isinstance(fresh, Artifact) and _differs(hit, given, fresh):
                    return True
        return False

    def _unknown(self, line: Line) -> Observed:
        """A fact is missing: nothing changes, and nothing hangs on it."""
        self.found.lines[line.name] = line
        return Observed(State.RUNNING)

    def _hold(self, line: Line, why: str) -> Observed:
        """Neither started nor ended for now."""
        self.found.lines[line.name] = replace(line, state="Waiting")
        self.found.waits[line.name] = why
        return Observed(State.RUNNING)

    def _going(self, line: Line) -> Observed:
        """Its old child is about to be gone."""
        if line.state == "Failed":
            return self._set(line)
        self.found.again.append(self.work.settings.poll_seconds)  # the event of its end may be lost: a relist
        return self._hold(line, "its old child is being removed")

    def _taken(self, line: Line, why: str) -> Observed:
        """Somebody else deletes its child: it stays Running until all is gone, and is counted then."""
        self.found.again.append(2.0)
        self.found.waits[line.name] = why
        return self._unknown(line)

    def _set(self, line: Line) -> Observed:
        self.found.lines[line.name] = line
        if line.state == "Failed":
            message = str(self.memory.details.get(line.name, {}).get("message", "it failed"))
            return Observed(State.FAILED, error=message)
        return Observed(State.PENDING)

    def _fail(self, line: Line, code: int | None, sentence: str) -> Observed:
        self.found.lines[line.name] = replace(line, state="Failed")
        return Observed(State.FAILED, exit_code=code, error=sentence)

    def _count_gpu_seconds(self, child: Child) -> None:
        if child.gpus and child.started:
            self.found.gpu_seconds += child.gpus * max(0.0, (child.ended or self.now) - child.started)


def _differs(hit: Artifact, given: Step, fresh: Artifact) -> bool:
    return any(ref.address == fresh.address and ref.digest != fresh.digest for ref in hit.inputs.values())
