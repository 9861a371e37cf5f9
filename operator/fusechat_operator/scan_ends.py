"""How an attempt at a step ended, and whether it is tried again: the budgets. Pure.

A layer of scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusechat.plan import Step
from fusechat.progress import Observed, State

from fusechat_operator import jobs
from fusechat_operator.causes import Cause, cause, train_together, unseen
from fusechat_operator.children import Child, failed_pods, met, seconds
from fusechat_operator.facts import UNKNOWN
from fusechat_operator.memory import Line
from fusechat_operator.scan_lines import Lines

PAUSE_SECONDS = (10.0, 600.0)
"""First and longest pause after trouble outside; it doubles."""

SPENT = ("BackoffLimitExceeded", "FailedIndexes", "MaxFailedIndexesExceeded")
"""Reasons by which a Job says that it has tried as often as its run allows."""


class Attempts(Lines):
    """A scan that can judge an ended child."""

    def _ended(self, step: Step, line: Line, child: Child) -> Observed:
        """A child has ended without an artifact and nobody has counted it yet."""
        why = self._why(step, child)
        if why is None:
            return self._unknown(line)
        self._count_gpu_seconds(child)
        pods = () if child.phase == "Complete" else self.look("pods", child.name)  # known: why says so
        counted = line.counting(*met(pods)).counted(why.kind, child.uid)
        if why.exit_code == 66 and not line.replanned:
            return self._replan(step, counted, why)
        if self._is_final(step, child, why):
            made = self._fail(counted, why.exit_code, why.sentence)
        else:
            made = self._again(counted, why.kind, why.sentence, child.ended or self.now)
        if made.state is State.FAILED:
            self.found.keep.append(child)
        return made

    def _vanished(self, step: Step, line: Line) -> Observed:
        """Its child went before its end was seen: by hand, by its time to live, with nobody looking."""
        found = self.look("attempts", str(step.address))
        if found is UNKNOWN:
            return self._unknown(line)
        detail = self.memory.details.get(step.name, {})
        begun = max(seconds(text) or 0.0 for text in (detail.get("started"), self.memory.started))
        if "started" not in detail and line.disruption + line.infrastructure + line.bug:
            found = ()  # when this attempt began is not known: the records may be of those before it
        why = unseen(found, begun, jobs.pods_of(step), step.stage == "fuse", line.within[1])
        if why is None or why.kind == "disruption":
            why = Cause("disruption", None, "its child was removed")
        counted = line.counted(why.kind, line.ended)
        if why.exit_code == 66 and not line.replanned:
            return self._replan(step, counted, why)
        if why.kind == "bug":
            return self._fail(counted, why.exit_code, why.sentence)
        return self._again(counted, why.kind, why.sentence, self.now)

    def _is_final(self, step: Step, child: Child, why: Cause) -> bool:
        """A bug, or a Job that has tried as often as it may; a training is tried by the operator alone."""
        return why.kind == "bug" or (child.kind == "Job" and child.reason in SPENT and step.stage != "fuse")

    def _why(self, step: Step, child: Child) -> Cause | None:
        if child.phase == "Complete":
            return Cause("infrastructure", None, "it ended well without an artifact")
        pods = self.look("pods", child.name)
        if pods is UNKNOWN:
            return None
        attempts: Sequence[dict[str, object]] = ()
        if train_together(child) or not failed_pods(pods):
            found = self.look("attempts", str(step.address))
            if found is UNKNOWN:
                return None
            attempts = found
        return cause(child, pods, attempts)

    def _again(self, line: Line, kind: str, sentence: str, since: float) -> Observed:
        """One more attempt, if the budget of its cause has one left."""
        retries, count = self.work.run.spec.retries, getattr(line, kind)
        budget = retries.disruption if kind == "disruption" else retries.infrastructure
        if count > budget:
            return self._fail(line, None, f"{sentence}; {kind} {count} times, and {budget} are allowed")
        self.found.problems[line.name] = f"{sentence}; it is tried again"
        due = since + _pause(kind, count)
        self.found.again.append(max(0.0, due - self.now) + 0.05)
        return self._hold(line, f"{sentence}; it is tried again")

    def _old(self, line: Line, child: Child) -> Observed:
        """An ended child that was counted: it goes when its pause is over."""
        kind = "infrastructure" if line.infrastructure else "disruption"
        due = (child.ended or child.created) + _pause(kind, getattr(line, kind))
        if line.state == "Waiting" and due > self.now and not line.bug:
            self.found.again.append(due - self.now + 0.05)
            told = str(self.memory.details.get(line.name, {}).get("message", "it is tried again"))
            self.found.problems[line.name] = told
            return self._hold(line, told)
        # It was counted and the status says so: whatever touched it since, and a refusal of it is told.
        counted = self.memory.lines.get(line.name, Line(line.name)).ended == child.uid
        (self.found.stop if counted else self.found.delete).append(child)
        self.found.again.append(self.work.settings.poll_seconds)
        return self._hold(line, "its last attempt is being cleared away")

    def _pausing(self, step: Step, line: Line) -> Observed | None:
        """The pause after trouble outside whose child is gone: its record says since when."""
        found = self.look("attempts", str(step.address))
        if found is UNKNOWN:
            return self._unknown(line)
        last = max((seconds(a.get("ended")) or 0.0 for a in found if a.get("exitCode")), default=0.0)
        due = last + _pause("infrastructure", line.infrastructure)
        if due <= self.now:
            return None
        self.found.again.append(due - self.now + 0.05)
        told = str(self.memory.details.get(line.name, {}).get("message", "it is tried again"))
        self.found.problems[line.name] = told
        return self._hold(line, told)

    def _replan(self, step: Step, line: Line, why: Cause) -> Observed:
        """It lacked an input that counted as there (exit 66): what is gone is made again, once."""
        for name in dict.fromkeys(step.inputs.values()):
            given = self.work.plan.step(name)
            artifact = self.look("artifact", str(given.address))
            if artifact is UNKNOWN:
                return self._unknown(self.memory.lines[step.name])
            if artifact is None:
                self.found.lines[name] = replace(self.found.lines[name], state="Pending", replanned=False)
                self.found.observed[name] = Observed(State.RUNNING)
        self.found.problems[step.name] = f"{why.sentence}; what is missing is made again"
        self.found.again.append(0.05)
        return self._hold(replace(line, replanned=True), "an input is made again")


def _pause(kind: str, count: int) -> float:
    if kind == "disruption":
        return min(60.0, float(2 ** max(0, count - 2))) if count > 1 else 0.0
    first, longest = PAUSE_SECONDS
    return float(min(longest, first * 2 ** min(16, max(0, count - 1))))
