"""The runner for a machine with no cluster: progress -> processes running `launch.argv`.

Called by cli. Every decision is progress.py's, every artifact the store's; what is kept here is which
processes run. Stopped at any moment it leaves nothing half done: artifacts are published whole, and the
next run finds them. Knows no stage and no torch.
"""

from __future__ import annotations

import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fusechat import launch
from fusechat.errors import FusechatError, UsageError
from fusechat.hits import Hits, Server
from fusechat.plan import Plan, Step, plan, report_step, resolve_step
from fusechat.processes import HEAVY, Process, Processes, own_folder, wait_any
from fusechat.progress import Observed, State, decide, gates_of, needed
from fusechat.record import record
from fusechat.spec import FusionRun
from fusechat.store import Store

RETRIED_CODES = frozenset({69, 75, 143})
GRACE_SECONDS = 30.0
TICK_SECONDS = 0.2
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How this machine runs a plan: `slots` steps at a time, each with `threads`; `home` holds logs."""

    home: Path
    slots: int
    threads: int
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `exit_code` 0 and the plan's states, or what went wrong in one sentence."""

    exit_code: int
    message: str
    plan: Plan | None
    observed: Mapping[str, Observed]
    report: Path | None = None
    seconds: float = 0.0
    record: Mapping[str, Any] | None = None


class Watcher(Protocol):
    """Who shows a run to a person; all calls come from the runner's own thread."""

    def planned(self, plan: Plan, cached: Sequence[str], missing: Sequence[str]) -> None: ...
    def started(self, step: Step) -> None: ...
    def moved(self, running: Mapping[str, Mapping[str, Any]]) -> None: ...
    def ended(self, step: Step, observed: Observed, seconds: float) -> None: ...
    def said(self, sentence: str) -> None: ...


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came."""


class Runner:
    """One run of one FusionRun. `run()` may be called once."""

    def __init__(
        self,
        run: FusionRun,
        store: Store,
        settings: Settings,
        watcher: Watcher,
        server: Server | None = None,
        forget: frozenset[str] = frozenset(),
    ) -> None:
        self._run, self._store, self._settings = run, store, settings
        self._watcher, self._forget = watcher, forget
        self._uid = run.metadata.uid or run.metadata.name
        self._folder = settings.home / "runs" / run.metadata.name
        self._work = self._folder / "work"
        self._processes = Processes(settings.environment, settings.threads)
        self._active: list[Process] = []
        self._codes: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self._attempts: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._replanned: set[str] = set()
        self._started = time.time()
        self._hits = Hits(store, server)
        self._beside: list[Step] = []
        self.observed: dict[str, Observed] = {}

    def run(self) -> Outcome:
        """Carry the plan out. Never raises for what happens to a step."""
        with own_folder(self._work) as self._work:
            return self._run_here()

    def _run_here(self) -> Outcome:
        begun = time.monotonic()
        made: Plan | None = None
        try:
            with _signals():
                made = self._plan()
                code, message = self._carry_out(made)
                report = self._report(made) if code == 0 else None
        except Interrupted:
            self._stop_all()
            code, message, report = 130, "stopped; run the same command again to go on from here", None
        except FusechatError as error:
            self._stop_all()
            code, message, report = error.exit_code, str(error), None
        finally:
            self._kill_all()
        record = self._safe_record(made)
        return Outcome(code, message, made, self.observed, report, time.monotonic() - begun, record)

    def _safe_record(self, made: Plan | None) -> dict[str, Any] | None:
        """The record even when the store is gone: it is what tells a person where the run stands."""
        try:
            return self.record(made) if made else None
        except FusechatError:
            return None

    def _plan(self) -> Plan:
        made = plan(self._run)
        if made.unpinned:
            nonce = f"{self._uid}-{uuid.uuid4()}"
            step = resolve_step(self._run, nonce, made.unpinned)
            self._beside.append(step)
            self.observed = {step.name: Observed()}
            code, message = self._carry_out(Plan(made.run, made.uid, made.generation, made.profile, (step,)))
            if code:
                raise _ended(code, message)
            pins = self._hits.manifests.pop(step.name).metrics["pins"]
            made = plan(self._run, pins)
        for name in sorted(self._forget):
            self._hits.forget(_known(made, name))
        missing = needed(made, lambda step: self._hits.probe(step) is not None)
        cached = [step.name for step in made.steps if step.name not in missing]
        self.observed = {
            name: Observed(State.CACHED, self._hits.manifests[name].metrics)
            for name in cached
            if name in self._hits.manifests
        } | {name: Observed() for name in missing}
        if any(made.step(name).stage in HEAVY for name in missing):
            self._processes.preload()
        self._watcher.planned(made, cached, sorted(missing))
        self._refer(made)
        return made

    def _refer(self, made: Plan) -> None:
        """What gc must leave: the plan's artifacts, and those of this run alone."""
        addresses = sorted({s.address for s in (*made.steps, *self._beside) if s.address})
        refs = {"addresses": addresses, "run": made.run, "at": time.time()}
        self._hits.put(f"refs/local-{socket.gethostname()}/{self._uid}.json", refs)

    def _carry_out(self, made: Plan) -> tuple[int, str]:
        gates = gates_of(self._run)
        while True:
            self._reap(made)
            ready = {n: o for n, o in self.observed.items() if self._not_before.get(n, 0) <= time.monotonic()}
            held = {n: replace(o, state=State.RUNNING) for n, o in self.observed.items() if n not in ready}
            decision = decide(made, {**ready, **held}, slots=self._settings.slots + len(held), gates=gates)
            for step in decision.start:
                self._start(made, step)
            if decision.outcome == "Succeeded":
                return 0, ""
            if decision.outcome == "Failed":
                codes = [
                    o.exit_code for o in self.observed.values() if o.state is State.FAILED and o.exit_code
                ]
                return (codes[0] if codes else 65), decision.message
            self._watcher.moved(self._moving())
            self._wait()

    def _start(self, made: Plan, step: Step) -> None:
        self._hits.make_room(step, self._made_now)
        self.observed[step.name] = replace(self.observed[step.name], state=State.RUNNING)
        self._attempts[step.name] = self._attempts.get(step.name, 0) + 1
        self._codes[step.name] = []
        self._seconds.setdefault(step.name, 0.0)
        shards = min(step.shards, self._settings.slots)
        for index in range(shards):
            told = launch.Launch(
                step.stage,
                step.version,
                str(step.address),
                self._store.uri,
                step.params,
                made.input_addresses(step),
                made.profile,
                (index, shards),
                step.runtime,
            )
            folder = self._work / f"{step.name}-{index}"
            log = self._folder / "logs" / f"{step.name}{f'-{index}' if shards > 1 else ''}.log"
            started = self._processes.start((step.name, index), step.stage, launch.argv(told), folder, log)
            self._active.append(started)
        self._watcher.started(step)

    def _reap(self, made: Plan) -> None:
        for process in [p for p in self._active if p.exit_code() is not None]:
            self._active.remove(process)
            name, _ = process.key
            code, summary = int(process.exit_code() or 0), process.read("summary")
            self._codes[name].append(code)
            self._seconds[name] += time.monotonic() - process.started
            process.close()
            if code:
                for other in self._active:
                    if other.key[0] == name:
                        other.stop(signal.SIGTERM)
                if self.observed[name].exit_code in (None, 0, 143):
                    self.observed[name] = replace(
                        self.observed[name], exit_code=code, error=str(summary.get("error") or _death(code))
                    )
            if not any(p.key[0] == name for p in self._active):
                self._settle(made, made.step(name))

    def _settle(self, made: Plan, step: Step) -> None:
        """All processes of a step have ended: published, failed, or to be tried again."""
        seen = self.observed[step.name]
        # Asked whatever the exit codes: a process killed after it published has done its work.
        if found := self._hits.probe(step):
            seen = self.observed[step.name] = Observed(State.DONE, found.metrics, seen.failures)
            self._mark_stale_hits(made, step)
        elif not any(self._codes[step.name]):
            seen = replace(seen, exit_code=75, error="it ended well without an artifact")
            seen = self._after_failure(made, step, seen)
        else:
            seen = self._after_failure(made, step, seen)
        self.observed[step.name] = seen
        self._watcher.ended(step, seen, self._seconds[step.name])

    def _after_failure(self, made: Plan, step: Step, seen: Observed) -> Observed:
        code = seen.exit_code or 70
        if code == 66 and step.name not in self._replanned:
            self._replanned.add(step.name)
            self._forget_missing_inputs(made, step)
            return replace(seen, state=State.PENDING, exit_code=None)
        retries = self._run.spec.retries
        budget = retries.disruption if code < 0 or code == 143 else retries.infrastructure
        if (code in RETRIED_CODES or code < 0) and seen.failures < budget:
            self._hits.mend()
            self._not_before[step.name] = time.monotonic() + min(60.0, 0.5 * 2**seen.failures)
            self._watcher.said(f"{step.name}: {seen.error}; it is tried again")
            return replace(seen, state=State.PENDING, failures=seen.failures + 1, exit_code=None)
        return replace(seen, state=State.FAILED, failures=seen.failures + 1)

    def _forget_missing_inputs(self, made: Plan, step: Step) -> None:
        """A stage did not find an input that was a hit: it is made again, with what it needs itself."""
        for name in dict.fromkeys(step.inputs.values()):
            source = made.step(name)
            if self._hits.probe(source) is None:
                self._hits.manifests.pop(name, None)
                self.observed[name] = Observed()
                self._forget_missing_inputs(made, source)

    def _mark_stale_hits(self, made: Plan, step: Step) -> None:
        for successor in made.successors(step.name):
            found = self._hits.manifests.get(successor.name)
            if (
                self._state(successor.name) is State.CACHED
                and found
                and self._hits.is_stale(successor, found, self._made_now)
            ):
                self.observed[successor.name] = Observed()
                for name in dict.fromkeys(successor.inputs.values()):
                    if name not in self.observed:
                        self.observed[name] = Observed(
                            State.CACHED if self._hits.probe(made.step(name)) else State.PENDING
                        )

    def _made_now(self, name: str) -> bool:
        return self._state(name) is State.DONE

    def _state(self, name: str) -> State | None:
        return self.observed[name].state if name in self.observed else None

    def _moving(self) -> dict[str, dict[str, Any]]:
        """Progress of each running step, summed over its processes."""
        found: dict[str, dict[str, Any]] = {}
        for process in self._active:
            seen = process.read("progress")
            total = found.setdefault(process.key[0], {**seen, "done": 0.0, "total": 0.0, "from": 0.0})
            for key in ("done", "total", "from"):
                total[key] += seen.get(key, 0)
        return found

    def _wait(self) -> None:
        wait_any(self._active, TICK_SECONDS)

    def _report(self, made: Plan) -> Path | None:
        self._hits.put(f"runs/{made.uid}.json", self.record(made))
        step = report_step(made, f"{self._uid}-{uuid.uuid4()}")
        self._beside.append(step)
        self._refer(made)
        kept = self.observed
        self.observed = {step.name: Observed()}
        code, message = self._carry_out(replace(made, steps=(step,)))
        self.observed = kept
        if code:
            self._watcher.said(f"the report was not made: {message}")
            return None
        manifest = self._hits.manifests.pop(step.name)
        target = self._folder / "report.html"
        for entry in manifest.files:
            self._store.download(entry, self._work / entry.name)
            (self._work / entry.name).replace(self._folder / entry.name)
        return target if target.exists() else None

    def record(self, made: Plan) -> dict[str, Any]:
        """What the report and `fusechat status` read: every step with its state, time and metrics."""
        for step in made.steps:
            if step.name not in self._hits.manifests and step.address:
                self._hits.probe(step)
        seen, known = self.observed, self._hits.manifests
        return record(made, seen, known, self._seconds, self._attempts, self._started, time.time())

    def _stop_all(self) -> None:
        """SIGTERM, and the time to save a checkpoint; a second signal ends the wait."""
        for process in self._active:
            process.stop(signal.SIGTERM)
        try:
            with _signals():
                until = time.monotonic() + GRACE_SECONDS
                while any(p.exit_code() is None for p in self._active) and time.monotonic() < until:
                    wait_any([p for p in self._active if p.exit_code() is None], TICK_SECONDS)
        except Interrupted:
            pass

    def _kill_all(self) -> None:
        for process in self._active:
            process.stop(signal.SIGKILL)


def _known(made: Plan, name: str) -> Step:
    try:
        return made.step(name)
    except KeyError as error:
        raise UsageError(str(error.args[0])) from error


def _death(code: int) -> str:
    if code < 0:
        return f"it was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"it ended with exit code {code}; its log says more"


def _ended(code: int, message: str) -> FusechatError:
    error = FusechatError(message)
    error.exit_code = code  # type: ignore[misc]
    return error


@contextmanager
def _signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise Interrupted within the block, once each."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before = {s: signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def default_settings(
    home: Path, slots: int | None, threads: int | None, environment: Mapping[str, str]
) -> Settings:
    """One step a core, up to 8, unless told otherwise; each with its share of the cores."""
    cores = os.cpu_count() or 1
    taken = slots or min(cores, 8)
    return Settings(home.absolute(), taken, threads or max(1, cores // taken), environment)
