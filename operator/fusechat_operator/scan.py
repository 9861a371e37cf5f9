"""Every unfinished step, looked at once: its line, child and artifact -> its new line and what to do. Pure.

Called by reconcile, which decides what starts. Here it is told which steps may start, which children must go,
and why a step waits; nothing is created or deleted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fusechat.plan import Step
from fusechat.progress import Observed, State
from fusechat.spec import Gates

from fusechat_operator import jobs
from fusechat_operator.causes import Cause, cause, train_together
from fusechat_operator.children import Child, Pod, failed_pods
from fusechat_operator.facts import UNKNOWN, Artifact, Look
from fusechat_operator.memory import SHORT, Line, Memory
from fusechat_operator.workloads import PATIENCE, QUEUED, given_up, waiting

SETTLE_SECONDS = 8.0
"""How long a new child's Pods may be on their way before one asks why they are not there."""

PAUSE_SECONDS = (10.0, 600.0)
"""First and longest pause after trouble outside; it doubles."""

OWNERS_SECONDS = 60.0
"""How long an attempt that came to nothing is left to the run that made it, before one that waits acts."""

MOST_ASKED = 4
"""Waiting steps of a run whose queue is asked why, at every look: a thousand runs may wait."""

SPENT = ("BackoffLimitExceeded", "FailedIndexes", "MaxFailedIndexesExceeded")
"""Reasons by which a Job says that it has tried as often as its run allows."""


@dataclass
class Scan:
    """What was found. `observed` is what progress.decide takes; `problems` say what is stuck."""

    lines: dict[str, Line] = field(default_factory=dict)
    observed: dict[str, Observed] = field(default_factory=dict)
    children: dict[str, Child] = field(default_factory=dict)
    waits: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    delete: list[Child] = field(default_factory=list)
    keep: list[Child] = field(default_factory=list)
    forget: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    gpu_seconds: float = 0.0
    unqueued: bool = False
    stopped: list[str] = field(default_factory=list)


class Scanner:
    """One pass over a plan's steps, in the plan's order."""

    def __init__(self, work: jobs.Work, memory: Memory, look: Look, now: float) -> None:
        self.work, self.memory, self.look, self.now = work, memory, look, now
        self.uid = str(work.object["metadata"]["uid"])
        self.found = Scan()
        self.stale: set[str] = set()

    def scan(self, steps: Sequence[Step]) -> Scan:
        for step in steps:
            line = self.memory.lines.get(step.name, Line(step.name))
            address = str(step.address).rpartition("/")[2][:SHORT] if step.address else None
            line = replace(line, address=address)
            self.found.lines[step.name] = line
            self.found.observed[step.name] = self._step(step, line)
        return self.found

    def _step(self, step: Step, line: Line) -> Observed:
        if line.done:
            return self._published(step, line)
        if step.name in self.stale:
            self.found.again.append(0.05)
            return self._hold(line, "it was made of other bytes than its inputs have now, and is made anew")
        if step.address is None or not self._inputs_are_there(step):
            return self._set(replace(line, state="Failed" if line.state == "Failed" else "Pending"))
        child = self.look(
            "child", f"{jobs.kind_of(step, self.work.launcher)}/{jobs.name_of(step, self.work.place)}"
        )
        if child is UNKNOWN:
            return self._unknown(line)
        if child is None:
            return self._without_child(step, line)
        assert isinstance(child, Child)
        if child.terminating:
            return self._going(replace(line, ended=line.ended or child.uid))
        if child.owner != self.uid:
            return self._of_another(step, line, child)
        self.found.children[step.name] = child
        return self._own(step, line, child)

    def _inputs_are_there(self, step: Step) -> bool:
        return all(self.found.lines[name].done for name in step.inputs.values() if name in self.found.lines)

    def _published(self, step: Step, line: Line) -> Observed:
        self.found.lines[step.name] = line
        metrics = {}
        if self.work.run.spec.gates != _NO_GATES and step.stage in ("align", "filter"):
            known = self.look("metrics", str(step.address))
            if known is UNKNOWN:
                return self._unknown(line)  # a gate that cannot be looked at is not open
            metrics = dict(known.metrics) if isinstance(known, Artifact) else {}
        return Observed(State.CACHED if line.state == "Cached" else State.DONE, metrics)

    # what a child says

    def _without_child(self, step: Step, line: Line) -> Observed:
        artifact = self.look("artifact", str(step.address))
        if artifact is UNKNOWN:
            return self._unknown(line)
        if isinstance(artifact, Artifact) and not self._is_stale(step, artifact):
            return self._done(
                step, replace(line, state="Succeeded" if line.state == "Running" else "Cached"), artifact
            )
        if line.state == "Failed":
            return self._set(line)
        if line.ended or line.state in ("Running", "Waiting"):
            pods = self.look("pods", jobs.name_of(step, self.work.place))
            if pods is UNKNOWN:
                return self._unknown(line)
            if any(pod.phase in ("Pending", "Running") for pod in pods):
                self.found.again.append(2.0)
                return self._hold(line, "its last Pods are ending")
        if line.state == "Running":
            return self._again(
                line.counted("disruption", line.ended), "disruption", "its child was removed", self.now
            )
        if isinstance(artifact, Artifact):
            self.found.forget.append(str(step.address))  # stale: it is made anew of this run's inputs
        return self._set(replace(line, state="Pending"))

    def _of_another(self, step: Step, line: Line, child: Child) -> Observed:
        """A child of another run that makes the same artifact."""
        if child.phase in ("Active", "Waiting"):
            self.found.shared.append(child.name)
            return self._hold(line, "another run is making the same artifact")
        artifact = self.look("artifact", str(step.address))
        if isinstance(artifact, Artifact) and not self._is_stale(step, artifact):
            return self._done(step, replace(line, state="Cached"), artifact)
        why = None if artifact is UNKNOWN else self._why(step, child)
        if why is None:
            return self._unknown(line)
        if line.ended == child.uid and line.state != "Failed":
            self.found.delete.append(child)  # a retry of this run was asked for, and that one has given up
            return self._hold(line, "another run's failed child is being removed")
        if self._is_final(step, child, why) and why.exit_code != 66:
            sentence = f"another run failed to make it ({why.sentence}); see it, then retry this"
            return self._fail(replace(line, ended=child.uid), None, sentence)
        return self._take_over(line, child, why)

    def _take_over(self, line: Line, child: Child, why: Cause) -> Observed:
        """Another run's attempt came to nothing: it is tried again by its owner, or after a while by us."""
        self.found.shared.append(child.name)
        left = (child.ended or child.created) + OWNERS_SECONDS - self.now
        if left <= 0:
            self.found.delete.append(child)
            return self._hold(line, "another run's attempt came to nothing and is being removed")
        self.found.again.append(left + 0.05)
        return self._hold(line, f"another run's attempt came to nothing ({why.sentence}); it is tried again")

    def _own(self, step: Step, line: Line, child: Child) -> Observed:
        if child.phase in ("Active", "Waiting"):
            if line.ended == child.uid:  # an edit or a retry wants it gone, or it was given up
                self.found.delete.append(child)
                return self._going(line)
            return self._active(step, line, child)
        if line.state == "Failed" and line.ended == child.uid:
            return self._set(line)
        artifact = self.look("artifact", str(step.address))
        if artifact is UNKNOWN:
            return self._unknown(line)
        if isinstance(artifact, Artifact):
            # What a child of now has made is of the inputs as they are, whatever is remembered of them.
            if line.state != "Running" and self._is_stale(step, artifact):
                self.found.delete.append(child)
                return self._hold(line, "its old child is being removed")
            self._count_gpu_seconds(child)
            return self._done(step, replace(line, state="Succeeded"), artifact)
        if line.ended != child.uid:
            return self._ended(step, line, child)
        return self._old(line, child)

    def _active(self, step: Step, line: Line, child: Child) -> Observed:
        if child.phase == "Waiting" or child.queue:
            return self._queued(step, line, child)
        return self._running(step, line, child)

    def _running(self, step: Step, line: Line, child: Child) -> Observed:
        if child.ready + child.succeeded < child.pods:
            age = self.now - max(child.created, child.started or 0.0)
            if age < SETTLE_SECONDS:
                self.found.again.append(SETTLE_SECONDS - age + 0.5)
            else:
                self._look_at_pods(step.name, child)
        self.found.lines[step.name] = replace(line, state="Running")
        return Observed(State.RUNNING)

    def _queued(self, step: Step, line: Line, child: Child) -> Observed:
        """A child with a queue, or one that somebody else has suspended: Kueue says when it runs."""
        age, settle = self.now - child.since, self.work.settings.queue_seconds
        if child.phase == "Waiting" and child.queue != (self.work.run.spec.scheduling.queue_name or ""):
            self.found.delete.append(child)  # it has not begun: the queue that is asked for now takes it
            return self._hold(replace(line, ended=child.uid), "it moves to another queue")
        if not child.queue:
            return self._blocked(line, "its child is suspended, and not by a queue: somebody set its suspend")
        if age > PATIENCE * settle and self._is_known(line, child):
            runs = child.phase == "Active"
            return self._running(step, line, child) if runs else self._blocked(line, QUEUED)
        told = self.look("workload", child.uid)
        if told is UNKNOWN:
            return self._unknown(line)
        if sentence := given_up(told, child, age, settle):
            self.found.delete.append(child)
            self.found.unqueued = True
            return self._fail(replace(line, ended=child.uid), None, sentence)
        if not told.seen:
            self.found.again.append((settle - age if age < settle else settle) + 0.2)
        if child.phase == "Active":
            return self._running(step, line, child)
        if line.state == "Running":
            self.found.stopped.append(step.name)
            self._count_gpu_seconds(child)
        return self._blocked(line, waiting(told, child, age, settle))

    def _is_known(self, line: Line, child: Child) -> bool:
        """Whether its queue need not be asked again: it was let in, or others that wait say enough."""
        if child.phase == "Active":
            return line.state == "Running"
        return line.state == "Waiting" and sum(w != QUEUED for w in self.found.waits.values()) >= MOST_ASKED

    def _blocked(self, line: Line, sentence: str) -> Observed:
        self.found.again.append(self.work.settings.poll_seconds)
        self.found.problems[line.name] = sentence
        return self._hold(line, sentence)

    def _look_at_pods(self, name: str, child: Child) -> None:
        self.found.again.append(self.work.settings.poll_seconds)
        pods = self.look("pods", child.name)
        if pods is UNKNOWN:
            return
        if sentence := _stuck(pods) or ("" if pods else self._no_pods(child)):
            self.found.problems[name] = self.found.waits[name] = sentence

    def _no_pods(self, child: Child) -> str:
        """Why its controller could make no Pod: a quota, a policy, a name that does not exist."""
        told = self.look("warning", child.uid)
        return f"its Pods cannot be made: {told}" if told and told is not UNKNOWN else ""

    # how an attempt ended

    def _ended(self, step: Step, line: Line, child: Child) -> Observed:
        """A child has ended without an artifact and nobody has counted it yet."""
        why = self._why(step, child)
        if why is None:
            return self._unknown(line)
        self._count_gpu_seconds(child)
        counted = line.counted(why.kind, child.uid)
        if why.exit_code == 66 and not line.replanned:
            return self._replan(step, counted, why)
        if self._is_final(step, child, why):
            made = self._fail(counted, why.exit_code, why.sentence)
        else:
            made = self._again(counted, why.kind, why.sentence, child.ended or self.now)
        if made.state is State.FAILED:
            self.found.keep.append(child)
        return made

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
        self.found.delete.append(child)
        return self._hold(line, "its last attempt is being cleared away")

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

    # lines

    def _done(self, step: Step, line: Line, artifact: Artifact) -> Observed:
        clean = replace(line, ended="", replanned=False)
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
        return self._hold(line, "its old child is being removed")

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


def _pause(kind: str, count: int) -> float:
    if kind == "disruption":
        return min(60.0, float(2 ** max(0, count - 2))) if count > 1 else 0.0
    first, longest = PAUSE_SECONDS
    return float(min(longest, first * 2 ** min(16, max(0, count - 1))))


def _differs(hit: Artifact, given: Step, fresh: Artifact) -> bool:
    return any(ref.address == fresh.address and ref.digest != fresh.digest for ref in hit.inputs.values())


def _stuck(pods: Sequence[Pod]) -> str:
    """One sentence about the Pod that waits for something a person can mend."""
    for pod in pods:
        if pod.phase != "Pending" or pod.reason in ("", "ContainerCreating", "PodInitializing"):
            continue
        if pod.reason == "Unschedulable":
            return f"no node has room for Pod {pod.name}: {pod.message}"
        if "Image" in pod.reason:
            return f"the image of Pod {pod.name} cannot be pulled ({pod.reason}): {pod.message}"
        return f"Pod {pod.name} cannot start ({pod.reason}): {pod.message}"
    return ""


_NO_GATES = Gates()
