"""Every unfinished step, looked at once: its line, child and artifact -> its new line and what to do. Pure.

Called by reconcile, which decides what starts. Here it is told which steps may start, which children must go,
and why a step waits; nothing is created or deleted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fusechat.plan import Step
from fusechat.progress import Observed, State
from fusechat.spec import Gates

from fusechat_operator import jobs
from fusechat_operator.causes import Cause, before_this, is_of_the_recipe
from fusechat_operator.children import Child, met, stuck
from fusechat_operator.facts import UNKNOWN, Artifact
from fusechat_operator.memory import SHORT, Line
from fusechat_operator.scan_ends import Attempts
from fusechat_operator.scan_lines import Scan
from fusechat_operator.workloads import PATIENCE, QUEUED, given_up, waiting

SETTLE_SECONDS = 8.0
"""How long a new child's Pods may be on their way before one asks why they are not there."""

OWNERS_SECONDS = 60.0
"""How long an attempt that came to nothing is left to the run that made it, before one that waits acts."""

MOST_ASKED = 4
"""Waiting steps of a run whose queue is asked why, at every look: a thousand runs may wait."""


class Scanner(Attempts):
    """One pass over a plan's steps, in the plan's order."""

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
        child = self._child(step)
        if child is UNKNOWN:
            return self._unknown(line)
        if child is None:
            return self._without_child(step, line)
        assert isinstance(child, Child)
        if child.terminating and child.owner != self.uid:
            self.found.shared.append(child.name)
            self.found.again.append(self.work.settings.poll_seconds)
            return self._hold(line, f"the child of run {child.run} is being removed")
        if child.terminating and not self._went_unseen(line, child):
            if line.state == "Running" and line.ended != child.uid:
                return self._taken(line, "its child is being removed")
            return self._going(replace(line, ended=line.ended or child.uid))
        if child.owner != self.uid:
            return self._of_another(step, line, child)
        self.found.children[step.name] = child
        return self._own(step, line, child)

    def _went_unseen(self, line: Line, child: Child) -> bool:
        """Whether it has ended, is on its way out (its time to live is over), and nobody has counted it."""
        ended = child.phase in ("Complete", "Failed")
        return ended and line.state == "Running" and line.ended != child.uid

    def _child(self, step: Step) -> Any:
        """The step's child, of whatever kind: another run may train the same by another launcher."""
        kind, name = jobs.kind_of(step, self.work.launcher), jobs.name_of(step, self.work.place)
        found = self.look("child", f"{kind}/{name}")
        if found is not None or step.stage != "fuse":
            return found
        there = self.look("launchers")
        if there is UNKNOWN:
            return UNKNOWN
        others = [self.look("child", f"{other}/{name}") for other in there if other != kind]
        return next((other for other in others if other is not None), None)

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
        where = str(step.address)
        artifact = None if self.look.lacked(where) else self.look("artifact", where)
        if artifact is UNKNOWN:
            return self._unknown(line)
        if isinstance(artifact, Artifact) and not self._is_stale(step, artifact):
            return self._done(
                step, replace(line, state="Succeeded" if line.state == "Running" else "Cached"), artifact
            )
        if line.state == "Failed":
            return self._set(line)
        # A training's Pods may outlive all that is remembered of them: two would save over each other.
        if line.ended or line.state in ("Running", "Waiting") or step.stage == "fuse":
            pods = self.look("pods", jobs.name_of(step, self.work.place))
            if pods is UNKNOWN:
                return self._unknown(line)
            if any(pod.phase in ("Pending", "Running") for pod in pods):
                told = "its last Pods are ending"
                if line.state == "Running":
                    return self._taken(line, told)
                self.found.again.append(2.0)
                return self._hold(line, told)
        if line.state == "Running":
            return self._vanished(step, line)
        if line.state == "Waiting" and line.infrastructure and (held := self._pausing(step, line)):
            return held
        if isinstance(artifact, Artifact):
            self.found.forget.append(str(step.address))  # stale: it is made anew of this run's inputs
        return self._set(replace(line, state="Pending"))

    def _of_another(self, step: Step, line: Line, child: Child) -> Observed:
        """A child of another run that makes the same artifact."""
        if child.phase in ("Active", "Waiting"):
            if line.state == "Failed":
                return self._set(line)
            self.found.shared.append(child.name)
            told = f"another run is making the same artifact: {child.run}"
            if sentence := self._not_whole(child):
                self.found.problems[step.name] = told = f"{told}; {sentence}"
            return self._hold(line, told)
        artifact = self.look("artifact", str(step.address))
        if isinstance(artifact, Artifact) and not self._is_stale(step, artifact):
            return self._done(step, replace(line, state="Cached"), artifact)
        if line.state == "Failed":
            return self._set(line)
        why = None if artifact is UNKNOWN else self._why(step, child)
        if why is None:
            return self._unknown(line)
        if line.ended == child.uid and line.state != "Failed":
            self.found.delete.append(child)  # a retry of this run was asked for, and that one has given up
            self.found.shared.append(child.name)
            return self._hold(line, "another run's failed child is being removed")
        if is_of_the_recipe(why):
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

    def _not_whole(self, child: Child) -> str:
        """What another run's child waits for, if it had time; of a few only: many runs may wait for it."""
        late = self.now - child.since > SETTLE_SECONDS and child.ready + child.succeeded < child.pods
        if child.phase != "Active" or not late or len(self.found.problems) >= MOST_ASKED:
            return ""
        pods = self.look("pods", child.name)
        if pods is UNKNOWN:
            return ""
        return stuck(pods) or ("" if pods else self._no_pods(child))

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
            if child.started:
                self.found.seconds.append((step.stage, max(0.0, (child.ended or self.now) - child.started)))
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
                return self._incomplete(step, line, child)
        self.found.lines[step.name] = replace(line, state="Running")
        return Observed(State.RUNNING)

    def _incomplete(self, step: Step, line: Line, child: Child) -> Observed:
        """Not all of its Pods are there, and they had time: what they wait for, and what they met before."""
        self.found.again.append(self.work.settings.poll_seconds)
        line = replace(line, state="Running")
        pods = self.look("pods", child.name)
        if pods is UNKNOWN:
            return self._unknown(line)
        line, most = line.counting(*met(pods)), self.work.run.spec.retries.disruption
        if any(pod.disruptions > most for pod in pods):
            self.found.stop.append(child)
            self._count_gpu_seconds(child)
            told = f"its Pods were taken away more than {most} times, and no more is allowed"
            return self._fail(replace(line, ended=child.uid), None, told)
        own = before_this(pods) if step.stage != "fuse" else ""  # a training is tried by the operator alone
        if sentence := stuck(pods) or ("" if pods else self._no_pods(child)) or own:
            self.found.problems[step.name] = self.found.waits[step.name] = sentence
        self.found.lines[step.name] = line
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
            self.found.stop.append(child)
            self._count_gpu_seconds(child)
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

    def _no_pods(self, child: Child) -> str:
        """Why its controller could make no Pod: a quota, a policy, a name that does not exist."""
        told = self.look("warning", child.uid)
        return f"its Pods cannot be made: {told}" if told and told is not UNKNOWN else ""


_NO_GATES = Gates()
