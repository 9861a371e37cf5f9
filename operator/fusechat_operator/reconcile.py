"""One look at a FusionRun -> what to create, what to delete, what its status says. Pure and level-based.

Called by the engine whenever anything about a run may have changed; all it knows comes from the object, whose
status is its memory, and from facts. Where a fact is missing it returns the questions and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fusechat.pins import origins, user_pins
from fusechat.plan import VERSIONS, Plan, Step, report_step, resolve_step
from fusechat.progress import State, decide, gates_of, needed
from fusechat.record import record
from fusechat.spec import STAGES, seconds

from fusechat_operator import jobs, leftovers, naming, status
from fusechat_operator.children import Child
from fusechat_operator.children import seconds as epoch
from fusechat_operator.facts import UNKNOWN, Artifact, Ask, Look
from fusechat_operator.memory import Line, Memory
from fusechat_operator.once import Once
from fusechat_operator.scan import Scan, Scanner
from fusechat_operator.settings import Settings
from fusechat_operator.status import Extras, Verdict

UNLIMITED = 1 << 20
STORE_PAUSE_SECONDS = 15.0
REFUSAL_PAUSE_SECONDS = 15.0


@dataclass(frozen=True)
class Event:
    """`kind` is Normal or Warning, `reason` CamelCase."""

    kind: str
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """In the order it is carried out: documents, forget, create, status, keep, delete, events.

    `keep` are failed children that the cluster must not clear away; `again` is in seconds.
    """

    asks: frozenset[Ask] = frozenset()
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    forget: tuple[str, ...] = ()
    create: tuple[Mapping[str, Any], ...] = ()
    status: Mapping[str, Any] | None = None
    delete: tuple[Child, ...] = ()
    keep: tuple[Child, ...] = ()
    events: tuple[Event, ...] = ()
    again: float | None = None
    shared: tuple[str, ...] = ()


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
    if once.refusal:
        return _refused(found, known, once.refusal, now)
    retry = str(found["metadata"].get("annotations", {}).get(naming.RETRY_AT, ""))[:64]
    if _is_over(found, known) and retry == known.last_retry:
        return _clear(once, Look(facts), now)
    return _Pass(once, Look(facts), settings, now, retry).decide()


def _is_over(found: Mapping[str, Any], known: Memory) -> bool:
    """Whether the run has ended at its present generation; that is final until an edit or a retry."""
    outcome = known.conditions.get("Succeeded", {})
    at = int(found["metadata"].get("generation", 1))
    ended = outcome.get("status") in ("True", "False") and outcome.get("reason") not in _RECONSIDERED
    return ended and outcome.get("observedGeneration") == at


def _clear(once: Once, look: Look, now: float) -> Decision:
    """What an ended run still has to do: its finished TrainJobs go after the run's ttl."""
    run, known = once.run, once.memory
    if not known.launcher.startswith("TrainJob"):
        return Decision()
    made, _ = once.plan(known.pins)
    old = leftovers.trainjobs(look, str(run.metadata.uid), made, once.place, known.lines, run.spec.ttl, now)
    return Decision(asks=frozenset(look.asks), delete=old.gone, again=old.again)


_RECONSIDERED = ("InvalidSpec", "LauncherMissing")


def _refused(found: Mapping[str, Any], known: Memory, sentence: str, now: float) -> Decision:
    made = status.refusal(found, known, "InvalidSpec", sentence, now)
    event = Event("Warning", "InvalidSpec", sentence)
    return Decision(status=made, events=(event,) if not known.true("Stalled") else ())


class _Pass:
    """One reconcile of one run."""

    def __init__(self, once: Once, look: Look, settings: Settings, now: float, retry: str) -> None:
        self.once, self.found, self.run, self.place = once, once.found, once.run, once.place
        self.look, self.settings, self.now = look, settings, now
        self.meta = self.found["metadata"]
        self.uid, self.generation = str(self.meta["uid"]), int(self.meta.get("generation", 1))
        self.before = self.memory = known = once.memory
        pinned = user_pins(self.run)
        self.extras = Extras(unpinned=[name for name in origins(self.run) if name not in pinned])
        self.documents: dict[str, Mapping[str, Any]] = {}
        self.delete: list[Child] = []
        self.unqueued = False
        if retry and retry != known.last_retry:
            self._retry(retry)

    def decide(self) -> Decision:
        launcher, missing = self._launcher()
        if missing or not launcher:
            return self._stuck("LauncherMissing", missing, "Stalled") if missing else self._asking()
        self.extras.launcher = launcher
        pins = self._pins()
        if isinstance(pins, Decision):
            return pins
        made, digest = self.once.plan(pins)
        self.frozen = self._freeze(pins, digest)
        work = jobs.Work(self.found, self.run, made, self._with_images(), self.place, launcher.split()[0])
        if self.memory.generation != self.generation:
            begun = self._begin(work)
            if begun:
                return begun
        elif sentence := self._changed(digest):
            return self._end(work, self._remembered(made), Verdict("Stalled", "PlanChanged", sentence))
        if self.run.spec.suspend:
            return self._suspend(work)
        if late := self._deadline():
            return self._stop_all(work, late)
        return self._carry_on(work)

    # before the plan

    def _retry(self, retry: str) -> None:
        """Failed steps begin again with full budgets; what they left is cleared away first."""
        lines = {
            name: Line(name, "Pending", line.address, ended=line.ended) if line.state == "Failed" else line
            for name, line in self.memory.lines.items()
        }
        stale = self.memory.versions and dict(self.memory.versions) != dict(VERSIONS)
        generation = -1 if stale or self._failed_with("PlanChanged") else self.memory.generation
        self.memory = replace(self.memory, lines=lines, last_retry=retry, generation=generation)
        if self._failed_with("DeadlineExceeded"):
            self.memory = replace(self.memory, started="")

    def _failed_with(self, reason: str) -> bool:
        return self.before.conditions.get("Stalled", {}).get("reason") == reason

    def _launcher(self) -> tuple[str, str]:
        """(what starts trainings and why, or "" while unknown; what is wrong)."""
        asked = self.run.spec.launcher
        if self.memory.launcher and self.memory.generation == self.generation:
            return self.memory.launcher, ""
        if asked == "Job":
            return "Job (as asked)", ""
        there = self.look("launchers")
        if there is UNKNOWN:
            return "", ""
        if asked == "Auto":
            first = next(kind for kind in jobs.LAUNCHERS if kind in there)
            return f"{first} (Auto: the first that is installed)", ""
        if asked in there:
            return f"{asked} (as asked)", ""
        return "", (
            f"launcher {asked} is not installed on this cluster (there is {', '.join(there)}); "
            "install it, or set spec.launcher to Auto"
        )

    def _pins(self) -> dict[str, str] | Decision:
        """Every origin's pin: the spec's, a kept one, resolve's answer; a Decision while that is awaited."""
        asked = self.once.asked
        kept = {n: p for n, p in self.memory.pins.items() if self.memory.asked.get(n) == asked.get(n)}
        left = tuple(name for name in self.extras.unpinned if name not in kept)
        if not left:
            return kept
        nonce = "-".join([self.uid, *(asked[name] for name in left), self.memory.last_retry])
        step = resolve_step(self.run, nonce, left)
        run, one = self.run, self._alone(step)
        work = jobs.Work(self.found, run, one, self.settings, self.place)
        self.frozen = self.found.get("status", {}).get("plan") or {}
        if self.run.spec.suspend:
            return self._suspend(work)
        scan = Scanner(work, self.memory, self.look, self.now).scan(one.steps)
        if not self.look.asks and scan.lines[step.name].done:
            known = self.look("metrics", str(step.address))
            if isinstance(known, Artifact):
                lines = {n: line for n, line in self.memory.lines.items() if n != step.name}
                self.memory = replace(self.memory, lines=lines)
                return {**kept, **known.metrics["pins"]}
        return self._act(work, scan)

    def _alone(self, step: Step) -> Plan:
        return Plan(self.run.metadata.name, self.uid, self.generation, self.run.spec.profile, (step,))

    def _freeze(self, pins: Mapping[str, str], digest: str) -> dict[str, Any]:
        asked = self.once.asked
        old = self.memory if self.memory.generation == self.generation else None
        images = {stage: self.settings.image_of(stage) for stage in STAGES}
        return {
            "generation": self.generation,
            "pins": [
                {"name": n, "pin": pins[n], "asked": asked[n]}
                for n in sorted(pins)
                if n in asked and n in self.extras.unpinned
            ],
            "versions": dict(old.versions if old else VERSIONS),
            "images": dict(old.images if old else images),
            "digest": digest,
        }

    def _with_images(self) -> Settings:
        return replace(self.settings, images=self.frozen["images"])

    def _changed(self, digest: str) -> str:
        """Why this operator does not plan the run as the one that began it did; "" where it does."""
        if digest == self.memory.digest and dict(self.memory.versions) == dict(VERSIONS):
            return ""
        return (
            "this operator plans the run differently from the one that began it; nothing is lost: set the "
            f"annotation {naming.RETRY_AT} to plan it anew"
        )

    def _begin(self, work: jobs.Work) -> Decision | None:
        """A generation's first look: hits from the sinks backwards, obsolete children, references."""

        def published(step: Step) -> bool:
            hit = self.look("artifact", str(step.address))
            return hit is UNKNOWN or isinstance(hit, Artifact)

        missing = needed(work.plan, published)
        own = self.look("own", self.uid)
        if self.look.asks or self.look.troubles:
            return self._asking() if self.look.asks else self._stuck("StoreUnavailable", self._trouble())
        names = {jobs.name_of(s, self.place): s.name for s in work.plan.steps if s.name in missing}
        ended: dict[str, str] = {}
        report = jobs.name_of(self._report(work), self.place)  # made before this status could be written
        for child in own:
            wanted = names.get(child.name)
            if wanted and child.phase == "Failed":
                ended[wanted] = child.uid
            elif not wanted and not child.terminating and _stays(child) and child.name != report:
                self.delete.append(child)
        lines = {
            step.name: Line(step.name, "Pending", ended=ended.get(step.name, ""))
            if step.name in missing
            else Line(step.name, "Cached")
            for step in work.plan.steps
        }
        was_over = self.before.conditions.get("Succeeded", {}).get("status") in ("True", "False")
        # What had ended begins anew, with all of its deadline.
        started = "" if was_over else self.memory.started
        self.memory = replace(
            self.memory, lines=lines, generation=self.generation, details={}, started=started
        )
        addresses = sorted({str(s.address) for s in work.plan.steps if s.address})
        refs = {"addresses": addresses, "run": work.plan.run, "at": self.now}
        self.documents[f"refs/{self.settings.cluster}/{self.uid}.json"] = refs
        return None

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
        refused = self._refused_children(work, scan, chosen.start)
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

    def _begun(self, line: Line) -> Line:
        """A child with a queue is created suspended: it runs when its queue says so."""
        return replace(line, state="Waiting" if self.run.spec.scheduling.queue_name else "Running")

    def _was(self, reason: str) -> bool:
        return self.before.conditions.get("Ready", {}).get("reason") == reason

    def _refused_children(self, work: jobs.Work, scan: Scan, start: tuple[Step, ...]) -> dict[str, str]:
        found = {}
        for step in start:
            sentence = self.look("refusal", jobs.name_of(step, self.place))
            if isinstance(sentence, str):
                found[step.name] = f"the API server does not take its child: {sentence}"
        return found

    def _go_on(self, work: jobs.Work, scan: Scan, starting: list[Step]) -> Decision:
        running = [s for s in work.plan.steps if scan.lines[s.name].state == "Running" and s not in starting]
        self._look_at_progress(running, work.plan)
        if self.look.asks:
            return self._asking()
        create = tuple(manifest for step in starting for manifest in jobs.build(work, step))
        if running or starting or scan.shared:
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

    # ends

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
        if line.done or line.state == "Failed":
            self.extras.report = f"{self.place.uri}/{step.address}" if line.done else None
            note = "" if line.done else f" The report was not made: {side.observed[step.name].error}"
            return self._end(work, scan, Verdict("Succeeded", "Succeeded", self._headline(work, scan) + note))
        create: tuple[Mapping[str, Any], ...] = ()
        if side.observed[step.name].state is State.PENDING:
            if not self._write_record(work, scan, known):
                return self._asking()
            create, line = tuple(jobs.build(alone, step)), self._begun(line)
        scan.lines[step.name] = line
        scan.waits |= side.waits
        scan.again.append(self.settings.poll_seconds)
        stuck = side.problems.get(step.name)
        message = f"all {len(work.plan.steps)} steps done; the report {stuck or 'is being made'}"
        extended = replace(work, plan=replace(work.plan, steps=(*work.plan.steps, step)))
        return self._decision(extended, scan, Verdict("Running", "Reporting", message), create=create)

    def _report(self, work: jobs.Work) -> Step:
        return report_step(work.plan, f"{self.uid}-{self.generation}-{self.memory.last_retry}")

    def _write_record(self, work: jobs.Work, scan: Scan, known: Mapping[str, Any]) -> bool:
        """`runs/<uid>.json`, which the report is made of; False while its facts are being asked for."""
        times: dict[str, float] = {}
        counts: dict[str, int] = {}
        for step in work.plan.steps:
            if scan.lines[step.name].state != "Succeeded":
                continue
            found = self.look("attempts", str(step.address))
            for attempt in found if isinstance(found, list | tuple) else ():
                spent = (epoch(attempt.get("ended")) or 0.0) - (epoch(attempt.get("started")) or 0.0)
                times[step.name] = times.get(step.name, 0.0) + max(0.0, spent)
                counts[step.name] = counts.get(step.name, 0) + 1
        if self.look.asks:
            return False
        started = epoch(self.memory.started) or self.now
        manifests = {name: a for name, a in known.items() if isinstance(a, Artifact)}
        self.documents[f"runs/{self.uid}.json"] = record(
            work.plan, scan.observed, manifests, times, counts, started, self.now
        )
        return True

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

    def _clock(self, started: str) -> float:
        """Since when the deadline runs: the start, or when a suspended run went on, as that of a Job."""
        held = self.before.conditions.get("Suspended", {})
        resumed = self.now if held.get("status") == "True" else epoch(held.get("lastTransitionTime")) or 0.0
        return max(epoch(started) or self.now, resumed)

    def _stop_all(self, work: jobs.Work, sentence: str) -> Decision:
        own = self.look("own", self.uid)
        if own is UNKNOWN:
            return self._asking()
        scan, _ = self._stopped(work, own)
        return self._end(work, scan, Verdict("Stalled", "DeadlineExceeded", sentence))

    def _suspend(self, work: jobs.Work) -> Decision:
        """Active children are deleted with grace: fuse saves a checkpoint. Nothing finished is touched."""
        own = self.look("own", self.uid)
        if own is UNKNOWN:
            return self._asking()
        scan, active = self._stopped(work, own)
        if active:
            scan.again.append(5.0)
        stopping = f"; {active} children are saving and stopping" if active else ""
        message = f"suspended by spec.suspend{stopping}; set it to false to go on"
        return self._decision(work, scan, Verdict("Suspended", "Suspended", message))

    def _stopped(self, work: jobs.Work, own: list[Child]) -> tuple[Scan, int]:
        """Active children are deleted with grace, and their ends count for nothing; how many there are."""
        active = {c.name: c for c in own if not status.finished(c)}
        self.delete += [c for c in active.values() if not c.terminating]
        scan = self._remembered(work.plan)
        for step in work.plan.steps:
            child = active.get(jobs.name_of(step, self.place)) if step.address else None
            if child:
                scan.lines[step.name] = replace(scan.lines[step.name], state="Waiting", ended=child.uid)
                scan.waits[step.name] = "stopped with its run"
        return scan, len(active)

    def _remembered(self, made: Plan) -> Scan:
        return Scan(lines={s.name: self.memory.lines.get(s.name, Line(s.name)) for s in made.steps})

    # decisions

    def _asking(self) -> Decision:
        return Decision(asks=frozenset(self.look.asks))

    def _trouble(self) -> str:
        return self.look.troubles[0].sentence

    def _stuck(self, reason: str, sentence: str, state: str = "Stuck") -> Decision:
        """Nothing can be decided now; the status keeps what it had."""
        verdict = Verdict(state, reason, sentence)
        made = {
            **self.found.get("status", {}),
            "observedGeneration": self.generation,
            "conditions": status.conditions(
                self.before, verdict, self.generation, self.extras.unpinned, self.now
            ),
        }
        return Decision(status=made, again=STORE_PAUSE_SECONDS)

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
            documents=self.documents,
            forget=tuple(scan.forget),
            create=create,
            status=made,
            delete=tuple({c.uid: c for c in [*self.delete, *scan.delete]}.values()),
            keep=tuple(scan.keep),
            events=_events(self.before, scan, verdict, self.extras.errors),
            again=min(again, default=None),
            shared=tuple(scan.shared),
        )


def _stays(child: Child) -> bool:
    """Whether a child does not go by itself: what ended well does, but for a TrainJob."""
    return child.phase != "Complete" or child.kind == "TrainJob"


def _events(before: Memory, scan: Scan, verdict: Verdict, errors: Mapping[str, str]) -> tuple[Event, ...]:
    """At most one event a pass: the strongest of what changed, with the rest in its sentence."""
    changed = {n: line for n, line in scan.lines.items() if line.state != before.lines.get(n, Line(n)).state}
    failed = [f"{n} failed: {errors.get(n, '')}" for n, line in changed.items() if line.state == "Failed"]
    done = [n for n, line in changed.items() if line.state == "Succeeded"]
    started = [n for n, line in changed.items() if line.state == "Running"]
    cached = [n for n, line in changed.items() if line.state == "Cached"]
    stopped = [f"{n} {scan.waits.get(n, '')}" for n in scan.stopped]
    retried = [
        f"{n}: {scan.waits.get(n, '')}"
        for n, line in scan.lines.items()
        if line.ended and line.ended != before.lines.get(n, Line(n)).ended and line.state == "Waiting"
    ]
    parts = [*failed, *retried, *stopped]
    parts += [f"{', '.join(done)} succeeded"] if done else []
    parts += [f"started {', '.join(started)}"] if started else []
    parts += [f"{len(cached)} steps are cached"] if cached else []
    ready = before.conditions.get("Ready", {})
    if verdict.state in ("Succeeded", "Stalled", "Suspended") and ready.get("reason") != verdict.reason:
        kind = "Warning" if verdict.state == "Stalled" else "Normal"
        return (Event(kind, verdict.reason, "; ".join([verdict.message, *parts])[:1000]),)
    if not parts:
        return ()
    reason = (
        "StepFailed" if failed else "StepRetried" if retried else "StepSucceeded" if done else "StepStarted"
    )
    if not (failed or retried or done or started):
        reason = "StepStoppedByQueue" if stopped else "StepCached"
    return (Event("Warning" if failed or retried else "Normal", reason, "; ".join(parts)[:1000]),)
