"""One reconcile of one run: what it knows, what it has gathered, and how that becomes a Decision. Pure.

The base of reconcile's layers (ends, then reconcile itself).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fusechat.pins import origins, user_pins
from fusechat.plan import Plan, Step
from fusechat.spec import seconds

from fusechat_operator import conditions, jobs, naming, status
from fusechat_operator.children import Child
from fusechat_operator.children import seconds as epoch
from fusechat_operator.conditions import Verdict
from fusechat_operator.decision import Decision, Event, events
from fusechat_operator.facts import Look
from fusechat_operator.fit import fit
from fusechat_operator.memory import Line
from fusechat_operator.once import Once
from fusechat_operator.scan_lines import Scan
from fusechat_operator.settings import Settings
from fusechat_operator.status import Extras
from fusechat_operator.tally import tally

STORE_PAUSE_SECONDS = 15.0
REFUSAL_PAUSE_SECONDS = 15.0


class Pass:
    """What every layer of a pass has."""

    def __init__(self, once: Once, look: Look, settings: Settings, now: float) -> None:
        self.once, self.found, self.run, self.place = once, once.found, once.run, once.place
        self.look, self.settings, self.now = look, settings, now
        self.meta = self.found["metadata"]
        self.uid, self.generation = str(self.meta["uid"]), int(self.meta.get("generation", 1))
        self.before = self.memory = once.memory
        pinned = user_pins(self.run)
        self.extras = Extras(unpinned=[name for name in origins(self.run) if name not in pinned])
        self.documents: dict[str, Mapping[str, Any]] = {}
        self.notes: dict[str, Mapping[str, Any]] = {}
        self.delete: list[Child] = []
        self.stop: list[Child] = []
        self.frozen: Mapping[str, Any] = {}

    def _alone(self, step: Step) -> Plan:
        return Plan(self.run.metadata.name, self.uid, self.generation, self.run.spec.profile, (step,))

    def _begun(self, line: Line) -> Line:
        """A child with a queue is created suspended: it runs when its queue says so."""
        state = "Waiting" if self.run.spec.scheduling.queue_name else "Running"
        return replace(line, state=state, within=(0, 0))

    def _cut_short(self, children: Iterable[Child]) -> None:
        """GPU seconds of children that are stopped before their end, which nobody will look at."""
        spent = sum(
            child.gpus * max(0.0, self.now - child.started)
            for child in children
            if child.started and child.phase == "Active"
        )
        self.memory = replace(self.memory, gpu_seconds=self.memory.gpu_seconds + spent)

    def _remembered(self, made: Plan) -> Scan:
        return Scan(lines={s.name: self.memory.lines.get(s.name, Line(s.name)) for s in made.steps})

    def _clock(self, started: str) -> float:
        """Since when the deadline runs: the start, or when a suspended run went on, as that of a Job."""
        held = self.before.conditions.get("Suspended", {})
        resumed = self.now if held.get("status") == "True" else epoch(held.get("lastTransitionTime")) or 0.0
        return max(epoch(started) or self.now, resumed)

    def _elsewhere(self) -> str:
        """Why this generation cannot go on in the store that is the run's now; "" where it began there."""
        began, now = self.memory.store, self.place.identity
        if self.memory.generation != self.generation or began in ("", now):
            return ""
        return (
            f"the run began in the store {began}, and the cluster's default store makes it {now} now; "
            "nothing is lost or stopped: set the chart's store back, or set the annotation "
            f"{naming.RETRY_AT} to stop what runs and begin anew in the new store"
        )

    # decisions

    def _moved(self, sentence: str) -> Decision:
        """Stalled until an operator with the store of then looks at it, or a person says how to go on."""
        known = sentence in self.before.conditions.get("Ready", {}).get("message", "")
        event = Event("Warning", "StoreChanged", sentence)
        held = self._stuck("StoreChanged", sentence, "Stalled")
        return replace(held, again=None, events=() if known else (event,))

    def _asking(self) -> Decision:
        return Decision(asks=frozenset(self.look.asks), stop=tuple(self.stop))

    def _trouble(self) -> str:
        return self.look.troubles[0].sentence

    def _stuck(self, reason: str, sentence: str, state: str = "Stuck") -> Decision:
        """Nothing can be decided now; the status keeps what it had."""
        verdict = Verdict(state, reason, sentence)
        if self.run.spec.suspend:
            verdict = Verdict("Suspended", "Suspended", f"suspended by spec.suspend; {sentence}")
        if verdict.state == "Stuck":
            held = conditions.held(self.found, self.before, verdict, self.now)
            return Decision(stop=tuple(self.stop), status=held, again=STORE_PAUSE_SECONDS)
        made = {
            **self.found.get("status", {}),
            "observedGeneration": self.generation,
            "conditions": conditions.of(
                self.before, verdict, self.generation, self.extras.unpinned, self.now
            ),
        }
        return Decision(stop=tuple(self.stop), status=fit(made), again=STORE_PAUSE_SECONDS)

    def _end(self, work: jobs.Work, scan: Scan, verdict: Verdict) -> Decision:
        scan.again = []
        return self._decision(work, scan, verdict)

    def _decision(
        self, work: jobs.Work, scan: Scan, verdict: Verdict, create: tuple[Mapping[str, Any], ...] = ()
    ) -> Decision:
        made = status.render(work, self.memory, scan, verdict, self.frozen, self.extras, self.now)
        again = list(scan.again)
        if self.run.spec.deadline and verdict.state in ("Running", "Stuck"):
            due = self._clock(made["started"]) + seconds(self.run.spec.deadline)
            again.append(max(0.0, due - self.now) + 1)
        return Decision(
            stop=tuple({c.uid: c for c in [*self.stop, *scan.stop]}.values()),
            documents=self.documents,
            notes=self.notes,
            forget=tuple(scan.forget),
            create=create,
            status=made,
            delete=tuple({c.uid: c for c in [*self.delete, *scan.delete]}.values()),
            keep=tuple(scan.keep),
            events=events(self.before, scan, verdict, self.extras.errors),
            again=min(again, default=None),
            shared=tuple(scan.shared),
            tally=tally(self.before, scan, work.plan, verdict),
        )
