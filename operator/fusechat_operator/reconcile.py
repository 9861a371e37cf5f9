"""One look at a FusionRun -> what to create, what to delete, what its status says. Pure and level-based.

Called by the engine whenever anything about a run may have changed; all it knows comes from the object, whose
status is its memory, and from facts. Where a fact is missing it returns the questions and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fusechat.plan import Plan, Step, resolve_step
from fusechat.progress import State, decide, gates_of

from fusechat_operator import conditions, jobs, leftovers, rest, status
from fusechat_operator.begins import Begins
from fusechat_operator.children import Child
from fusechat_operator.conditions import Verdict
from fusechat_operator.decision import Decision, Event
from fusechat_operator.facts import UNKNOWN, Artifact, Ask, Look
from fusechat_operator.fit import fit
from fusechat_operator.memory import Line, Memory
from fusechat_operator.once import Once
from fusechat_operator.one_pass import REFUSAL_PAUSE_SECONDS, STORE_PAUSE_SECONDS
from fusechat_operator.scan import Scanner
from fusechat_operator.scan_lines import Scan
from fusechat_operator.settings import Settings

UNLIMITED = 1 << 20


def reconcile(
    found: Mapping[str, Any],
    facts: Mapping[Ask, Any],
    settings: Settings,
    now: float,
    once: Once | None = None,
) -> Decision:
    """The next move for one run. `found` is the object as the API server has it; `once` is of that object."""
    if "deletionTimestamp" in found["metadata"]:
        return Decision()
    once = once or Once(found, settings.store)
    known = once.memory
    if rest.is_over(found):
        return _clear(once, Look(facts), now)
    if once.refusal:
        return _refused(found, known, once.refusal, Look(facts), now)
    return _Pass(once, Look(facts), settings, now, rest.retry_at(found)).decide()


def _clear(once: Once, look: Look, now: float) -> Decision:
    """What an ended run still has to do: its finished TrainJobs go after the run's ttl, and then it rests."""
    if rest.rests(once.found) or once.refusal:
        return Decision()
    if ready := rest.ready_of(once.found["status"]):
        told = [c for c in once.found["status"]["conditions"] if c["type"] != "Ready"]
        return Decision(status={**once.found["status"], "conditions": [dict(ready), *told]})
    run, known = once.run, once.memory
    made, _ = once.plan(known.pins, known.versions)
    lines = {step.name: Line(step.name, "Succeeded") for step in made.steps}  # whatever had become of them
    old = leftovers.trainjobs(look, str(run.metadata.uid), made, once.place, lines, run.spec.ttl, now)
    if look.asks or look.troubles or old.gone or old.again is not None:
        return Decision(asks=frozenset(look.asks), delete=old.gone, again=old.again)
    return Decision(status=fit({**once.found["status"], "cleared": True}))


def _refused(found: Mapping[str, Any], known: Memory, sentence: str, look: Look, now: float) -> Decision:
    """What runs goes on to its end, unless the spec says, whatever else it says, that nothing is to run."""
    stop: tuple[Child, ...] = ()
    if found["spec"].get("suspend") is True:
        own = look("own", str(found["metadata"]["uid"]))
        if own is UNKNOWN:
            return Decision(asks=frozenset(look.asks))
        stop = tuple(child for child in own if not status.finished(child) and not child.terminating)
    made = conditions.refusal(found, known, "InvalidSpec", sentence, now)
    event = Event("Warning", "InvalidSpec", sentence)
    return Decision(stop=stop, status=made, events=(event,) if not known.true("Stalled") else ())


class _Pass(Begins):
    """One reconcile of one run."""

    def __init__(self, once: Once, look: Look, settings: Settings, now: float, retry: str) -> None:
        super().__init__(once, look, settings, now)
        self.unqueued = False
        if retry and retry != self.before.last_retry:
            # The run begins anew, as after an edit: with the stages of now, full budgets, and all its hits.
            self.memory = replace(self.memory, last_retry=retry, generation=-1)
        was_over = self.before.conditions.get("Succeeded", {}).get("status") in ("True", "False")
        if was_over and self.memory.generation != self.generation:
            self.memory = replace(self.memory, started="")  # with all of its deadline

    def decide(self) -> Decision:
        if (self.run.spec.suspend or self._deadline()) and not self._halt():
            return self._asking()
        launcher, missing = self._launcher()
        if missing or not launcher:
            return self._stuck("LauncherMissing", missing, "Stalled") if missing else self._asking()
        self.extras.launcher = launcher
        pins = self._pins()
        if isinstance(pins, Decision):
            return pins
        began = self.memory.versions if self.memory.generation == self.generation else None
        made, digest = self.once.plan(pins, began)
        self.frozen = self._freeze(pins, digest)
        work = jobs.Work(self.found, self.run, made, self._with_images(), self.place, launcher.split()[0])
        if self.memory.generation != self.generation:
            begun = self._begin(work)
            if begun:
                return begun
        elif sentence := self._elsewhere():
            return self._moved(sentence)
        elif sentence := self._changed(digest):
            return self._end(work, self._remembered(made), Verdict("Stalled", "PlanChanged", sentence))
        if self.run.spec.suspend:
            return self._suspend(work)
        if late := self._deadline():
            return self._stop_all(work, late)
        return self._carry_on(work)

    # before the plan

    def _pins(self) -> dict[str, str] | Decision:
        """Every origin's pin: the spec's, a kept one, resolve's answer; a Decision while that is awaited."""
        asked = self.once.asked
        kept = {n: p for n, p in self.memory.pins.items() if self.memory.asked.get(n) == asked.get(n)}
        left = tuple(name for name in self.extras.unpinned if name not in kept)
        if not left:
            return kept
        nonce = "-".join([self.uid, *(asked[name] for name in left), self.memory.last_retry])
        step = resolve_step(self.run, nonce, left)
        self.resolve = step.address
        run, one = self.run, self._alone(step)
        work = jobs.Work(self.found, run, one, self.settings, self.place)
        self.frozen = self.found.get("status", {}).get("plan") or {}
        self.aside = {n: line for n, line in self.memory.lines.items() if n != step.name}
        if self.run.spec.suspend:
            return self._suspend(work)
        if late := self._deadline():
            return self._stop_all(work, late)
        own = self.look("own", self.uid)
        if own is UNKNOWN:
            return self._asking()
        # One that was made before an edit or a retry answers nobody.
        older = [c for c in own if c.address.startswith("resolve/") and c.address != step.address]
        self.stop += [child for child in older if not status.finished(child) and not child.terminating]
        scan = Scanner(work, self.memory, self.look, self.now).scan(one.steps)
        if not self.look.asks and scan.lines[step.name].done:
            known = self.look("metrics", str(step.address))
            if isinstance(known, Artifact):
                self.memory = replace(self.memory, lines=dict(self.aside))
                return {**kept, **known.metrics["pins"]}
        scan.lines |= self.aside
        return self._act(work, scan)

    # the plan

    def _carry_on(self, work: jobs.Work) -> Decision:
        scan = Scanner(work, self.memory, self.look, self.now).scan(work.plan.steps)
        if work.launcher == "TrainJob":
            ttl = self.run.spec.ttl
            old = leftovers.trainjobs(self.look, self.uid, work.plan, self.place, scan.lines, ttl, self.now)
            scan.delete += old.gone
            scan.again += [] if old.again is None else [old.again]
        return self._act(work, scan)

    def _act(self, work: jobs.Work, scan: Scan) -> Decision:
        """What a scan leads to: new children, an end, or waiting."""
        if self.look.asks:
            return self._asking()
        chosen = decide(work.plan, scan.observed, slots=UNLIMITED, gates=gates_of(self.run))
        refused = self._refused_children(chosen.start)
        if self.look.asks:
            return self._asking()
        starting = [step for step in chosen.start if step.name not in refused]
        for step in starting:
            scan.lines[step.name] = self._begun(scan.lines[step.name])
        for name, sentence in refused.items():
            scan.problems[name] = sentence
            scan.again.append(REFUSAL_PAUSE_SECONDS)
        self.extras.errors = {n: o.error for n, o in scan.observed.items() if o.state is State.FAILED}
        if self.look.troubles:
            scan.problems = {"the store": self._trouble(), **scan.problems}
            scan.again.append(STORE_PAUSE_SECONDS)
        self.unqueued = bool(scan.unqueued or (self.extras.errors and self._was("QueueDidNotAdmit")))
        if chosen.outcome == "Failed" and not self.look.troubles:
            reason = "StepFailed" if self.extras.errors else "GateClosed"
            message = status.gathered(self.extras.errors) if self.unqueued else chosen.message
            return self._end(
                work, scan, Verdict("Stalled", "QueueDidNotAdmit" if self.unqueued else reason, message)
            )
        if chosen.outcome == "Succeeded" and work.plan.steps[0].stage != "resolve":
            return self._finish(work, scan)
        return self._go_on(work, scan, starting)

    def _was(self, reason: str) -> bool:
        return self.before.conditions.get("Ready", {}).get("reason") == reason

    def _go_on(self, work: jobs.Work, scan: Scan, starting: list[Step]) -> Decision:
        running = [s for s in work.plan.steps if scan.lines[s.name].state == "Running" and s not in starting]
        self._look_at_progress(running, work.plan)
        if self.look.asks:
            return self._asking()
        create = tuple(manifest for step in starting for manifest in jobs.build(work, step))
        if running or starting or scan.shared or scan.delete:
            scan.again.append(self.settings.poll_seconds)
        failed = {name: f"failed: {error}" for name, error in self.extras.errors.items()}
        message = status.summary(work.plan, scan.lines, {**scan.problems, **failed})
        reason = "StoreUnavailable" if self.look.troubles else "Waiting" if scan.problems else "Progressing"
        reason = "QueueDidNotAdmit" if self.unqueued else reason
        verdict = Verdict("Stuck" if scan.problems else "Running", reason, message)
        return self._decision(work, scan, verdict, create=create)

    def _look_at_progress(self, running: list[Step], made: Plan) -> None:
        told = {}
        for step in running[: status.most_details(made)]:
            found = self.look("progress", str(step.address))
            if isinstance(found, Mapping):
                told[step.name] = found
        self.extras.progress = told
