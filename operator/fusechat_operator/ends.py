"""How a run ends, or is held: the record and its report, the deadline, suspend. Pure.

A layer of reconcile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fusechat.plan import Step, report_step
from fusechat.progress import Observed, State
from fusechat.record import record
from fusechat.spec import seconds

from fusechat_operator import jobs, status
from fusechat_operator.children import Child
from fusechat_operator.children import seconds as epoch
from fusechat_operator.conditions import Verdict
from fusechat_operator.decision import Decision
from fusechat_operator.facts import UNKNOWN, Artifact
from fusechat_operator.memory import Line
from fusechat_operator.one_pass import REFUSAL_PAUSE_SECONDS, Pass
from fusechat_operator.scan import Scanner
from fusechat_operator.scan_lines import Scan


class Ends(Pass):
    """A pass that can end its run."""

    halted: Sequence[Child] = ()
    aside: Mapping[str, Line] = {}
    """While the plan is not known: the lines of the one before."""
    resolve: str | None = None
    """Address of the step that answered what the spec leaves open, if this pass asked it."""

    def _finish(self, work: jobs.Work, scan: Scan) -> Decision:
        """All is published: the record, the report, then Succeeded."""
        known = {s.name: self.look("metrics", str(s.address)) for s in work.plan.steps}
        if self.look.asks or self.look.troubles:
            return self._asking() if self.look.asks else self._stuck("StoreUnavailable", self._trouble())
        metrics = {name: a.metrics for name, a in known.items() if isinstance(a, Artifact)}
        self.extras.scores = status.scores(work.plan, metrics)
        fused = next((s for s in work.plan.sinks() if s.subject and s.stage in ("merge", "fuse")), None)
        self.extras.model = f"{self.place.uri}/{fused.address}" if fused else None
        step = self._report(work)
        alone = replace(work, plan=self._alone(step))
        side = Scanner(alone, self.memory, self.look, self.now).scan((step,))
        if self.look.asks:
            return self._asking()
        line = side.lines[step.name]
        scan.again += side.again
        scan.delete += side.delete
        scan.stop += side.stop
        if line.done or line.state == "Failed":
            self.extras.report = f"{self.place.uri}/{step.address}" if line.done else None
            note = "" if line.done else f" The report was not made: {side.observed[step.name].error}"
            return self._end(work, scan, Verdict("Succeeded", "Succeeded", self._headline(work, scan) + note))
        create: tuple[Mapping[str, Any], ...] = ()
        pending = side.observed[step.name].state is State.PENDING
        if pending and (refused := self._refused_children((step,))):
            side.problems |= refused
            scan.again.append(REFUSAL_PAUSE_SECONDS)
        if pending and not side.problems:
            told = self._record(work, scan, known)
            if self.look.asks:
                return self._asking()
            self.documents[f"runs/{self.uid}.json"] = told
            create, line = tuple(jobs.build(alone, step)), self._begun(line)
        scan.lines[step.name] = line
        scan.waits |= side.waits
        scan.again.append(self.settings.poll_seconds)
        stuck = side.problems.get(step.name)
        course = f"waits: {stuck}" if stuck else "is being made"
        message = f"all {len(work.plan.steps)} steps done; the report {course}"
        extended = replace(work, plan=replace(work.plan, steps=(*work.plan.steps, step)))
        return self._decision(extended, scan, Verdict("Running", "Reporting", message), create=create)

    def _refused_children(self, start: Sequence[Step]) -> dict[str, str]:
        """By step, what the API server said to its child a while ago."""
        found = {}
        for step in start:
            sentence = self.look("refusal", jobs.name_of(step, self.place))
            if isinstance(sentence, str):
                found[step.name] = f"the API server does not take its child: {sentence}"
        return found

    def _report(self, work: jobs.Work) -> Step:
        return report_step(work.plan, f"{self.uid}-{self.generation}-{self.memory.last_retry}")

    def _refer(self, work: jobs.Work) -> None:
        """`refs/<cluster>/<uid>.json`: what gc must leave as long as the run is there, its page too."""
        found = [*(step.address for step in work.plan.steps), self._report(work).address, self.resolve]
        addresses = sorted({address for address in found if address})
        refs = {"addresses": addresses, "run": work.plan.run, "at": self.now}
        self.documents[f"refs/{self.settings.cluster}/{self.uid}.json"] = refs

    def _end(self, work: jobs.Work, scan: Scan, verdict: Verdict) -> Decision:
        """A run that fails leaves its record too."""
        if verdict.state == "Stalled" and self._can_tell(verdict.reason):
            done = [s for s in work.plan.steps if scan.lines[s.name].done]
            known = {s.name: self.look("metrics", str(s.address)) for s in done}
            told = self._record(work, scan, known)
            if self.look.asks:
                return self._asking()
            self.notes[f"runs/{self.uid}.json"] = told
        return super()._end(work, scan, verdict)

    def _can_tell(self, reason: str) -> bool:
        """Lines of another plan tell nothing; a run's own store may never answer, and a deadline is now."""
        return reason != "PlanChanged" and not (reason == "DeadlineExceeded" and self.place.own)

    def _record(self, work: jobs.Work, scan: Scan, known: Mapping[str, Any]) -> dict[str, Any]:
        """`runs/<uid>.json`, which the report is made of, with what the store tells so far."""
        times: dict[str, float] = {}
        counts: dict[str, int] = {}
        for step in work.plan.steps:
            if scan.lines[step.name].state not in ("Succeeded", "Failed"):
                continue
            found = self.look("attempts", str(step.address))
            for attempt in found if isinstance(found, list | tuple) else ():
                spent = (epoch(attempt.get("ended")) or 0.0) - (epoch(attempt.get("started")) or 0.0)
                times[step.name] = times.get(step.name, 0.0) + max(0.0, spent)
                counts[step.name] = counts.get(step.name, 0) + 1
        started = epoch(self.memory.started) or self.now
        manifests = {name: a for name, a in known.items() if isinstance(a, Artifact)}
        seen = {name: _seen(line) for name, line in scan.lines.items()} | scan.observed
        return record(work.plan, seen, manifests, times, counts, started, self.now)

    def _headline(self, work: jobs.Work, scan: Scan) -> str:
        cached = sum(line.state == "Cached" for line in scan.lines.values() if line.name != "report")
        total = len(work.plan.steps)
        share = (
            "everything was cached"
            if cached == total
            else f"{total - cached} steps computed, {cached} cached"
        )
        fused = [s for s in self.extras.scores if s["subject"] == "Fused"]
        scored = f"; fused {fused[0]['benchmark']} {fused[0]['score']:.3f}" if fused else ""
        return f"{share}{scored}"

    def _deadline(self) -> str:
        if not self.run.spec.deadline or not self.memory.started:
            return ""
        if self.now - self._clock(self.memory.started) < seconds(self.run.spec.deadline):
            return ""
        return (
            f"the run did not end by its deadline of {self.run.spec.deadline}; raise it, or see what was slow"
        )

    def _halt(self) -> bool:
        """Active children are deleted with grace: fuse saves a checkpoint. False while they are asked for.

        Before anything that a missing launcher, a bad edit or a store that is away could keep from happening.
        """
        own = self.look("own", self.uid)
        if own is UNKNOWN:
            return False
        self.halted = [child for child in own if not status.finished(child)]
        self.stop += (stopping := [child for child in self.halted if not child.terminating])
        self._cut_short(stopping)
        return True

    def _stop_all(self, work: jobs.Work, sentence: str) -> Decision:
        scan = self._stopped(work)
        own = {child.name: child for child in self.look("own", self.uid)}
        for step in work.plan.steps:
            if scan.lines[step.name].state == "Running":  # it ended just then, and nobody will look again
                scan.lines[step.name] = replace(scan.lines[step.name], state="Waiting")
                if child := own.get(jobs.name_of(step, self.place)):
                    spent = (child.ended or self.now) - (child.started or self.now)
                    scan.gpu_seconds += child.gpus * max(0.0, spent)
        return self._end(work, scan, Verdict("Stalled", "DeadlineExceeded", sentence))

    def _suspend(self, work: jobs.Work) -> Decision:
        """Nothing finished is touched."""
        scan, active = self._stopped(work), len(self.halted)
        if active:
            scan.again.append(5.0)
        stopping = f"; {active} children are saving and stopping" if active else ""
        message = f"suspended by spec.suspend{stopping}; set it to false to go on"
        return self._decision(work, scan, Verdict("Suspended", "Suspended", message))

    def _stopped(self, work: jobs.Work) -> Scan:
        """The ends of children that were halted count for nothing."""
        active = {child.name: child for child in self.halted}
        scan = self._remembered(work.plan)
        scan.lines |= self.aside
        for step in work.plan.steps:
            child = active.get(jobs.name_of(step, self.place)) if step.address else None
            if child:
                scan.lines[step.name] = replace(scan.lines[step.name], state="Waiting", ended=child.uid)
                scan.waits[step.name] = "stopped with its run"
        return scan


def _seen(line: Line) -> Observed:
    """A step of which this pass knows no more than its line."""
    return Observed(State.PENDING if line.state == "Waiting" else State(line.state))
