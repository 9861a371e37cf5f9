"""A run's own store, asked through probes: answers from memory, or WAITING while a Job is at it.

Used by the engine, one for each run that names a store. What it remembers can be lost at any moment: it is
asked again. An answer is of one moment: it serves the decision for which it was asked, and none after it; of
a step whose child has ended since it was asked, it serves none at all.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from fusechat import inquiry
from fusechat.inquiry import Question

from fusechat_operator import conditions, naming, probes
from fusechat_operator.children import Child, stuck
from fusechat_operator.cluster import ApiRefusal, Cluster
from fusechat_operator.conditions import Verdict
from fusechat_operator.decision import Decision
from fusechat_operator.facts import Artifact, Ask, Trouble
from fusechat_operator.once import Once
from fusechat_operator.probes import Probe
from fusechat_operator.settings import Settings
from fusechat_operator.workloads import given_up, waiting

SETTLE_SECONDS = 8.0
"""How long a probe may take before one asks why."""

POLL_SECONDS = 5.0
ANSWER_SECONDS = 300.0
"""How long an answer waits for the decision that it is for."""

PROGRESS_SECONDS = 300.0
FIRST_PAUSE, LONGEST_PAUSE = 15.0, 120.0


class Waiting:
    """The answer is on its way."""


WAITING = Waiting()
STORE_ASKS = ("artifact", "hit", "sink", "metrics", "attempts", "progress")


def identity(found: Mapping[str, Any], once: Once) -> tuple[str, ...]:
    """What makes another store of it, or another beginning: an edit, a retry."""
    meta, place = found["metadata"], once.place
    retry = str(meta.get("annotations", {}).get(naming.RETRY_AT, ""))
    return str(meta["uid"]), str(meta.get("generation", 1)), retry, place.identity, place.way_in


class OwnStore:
    """The store of one run at one generation."""

    def __init__(self, cluster: Cluster, settings: Settings, identity: tuple[str, ...]) -> None:
        self.cluster, self.settings, self.identity = cluster, settings, identity
        self.found: Mapping[str, Any] = {}
        self._wanted: dict[tuple[str, str], str] = {}
        self._watched: set[str] = set()
        self._known: dict[str, Artifact] = {}
        self._answers: dict[tuple[str, str], tuple[str, Any]] = {}
        self._answered_at = -1e9
        self._progress: dict[str, Any] = {}
        self._polled_at = -1e9
        self._written: dict[str, str] = {}
        self._open: dict[str, tuple[float, Probe, Mapping[int, Any]]] = {}
        self._trouble: tuple[float, Trouble] = (-1e9, Trouble(""))
        self._troubles = 0
        self._used: set[str] = set()
        self._sentence = ""
        self.is_over = False

    async def begin(self, found: Mapping[str, Any], once: Once) -> None:
        """A look begins: take what probes have answered since the last."""
        self.found, self.once, self._sentence = found, once, ""
        self._wanted, self._watched = {}, set()
        for slot in list(self._open):
            await self._collect(slot)
        asking = self._open.keys() & {"ask", "write"}
        if not asking and time.monotonic() - self._answered_at > ANSWER_SECONDS:
            self._answers.clear()

    async def leave(self) -> None:
        """Another takes its place: a probe that a queue holds would wait as long as the run is there."""
        for _, probe, _ in self._open.values():
            namespace = self.found["metadata"]["namespace"]
            child = await self.cluster.child(namespace, f"Job/{probe.name}")
            if child and child.phase == "Waiting" and not child.terminating:
                await self.cluster.delete(namespace, child)

    # asking

    def answer(self, ask: Ask, facts: Mapping[Ask, Any]) -> Any:
        """What reconcile asked, or WAITING."""
        if ask.what == "progress":
            self._watched.add(ask.key)
            return self._progress.get(ask.key)
        if ask.what == "metrics" and ask.key in self._known:
            return self._known[ask.key]
        what = "attempts" if ask.what == "attempts" else "artifact"
        moment = "" if ask.what == "metrics" else _moment(ask.key, facts)
        if (what, ask.key) in self._answers:
            then, found = self._answers[what, ask.key]
            if moment in ("", then):
                return found
        if trouble := self._in_trouble():
            return trouble
        self._wanted[what, ask.key] = moment
        if what == "artifact" and moment.endswith("Failed"):
            self._wanted["attempts", ask.key] = moment
        return WAITING

    async def ask(self) -> None:
        """Send off what this look lacks, if nothing else is being asked."""
        if "ask" in self._open or not self._wanted:
            return
        self._add_hints()
        listed = sorted(self._wanted.items())
        salt = _digest([*self.identity, self._troubles, listed])
        asked = [Question(what, key) for (what, key), _ in listed]  # type: ignore[arg-type]
        await self._send("ask", asked, {n: moment for n, (_, moment) in enumerate(listed)}, salt)

    def _add_hints(self) -> None:
        """Questions that will follow from these: a generation's first look goes through the whole plan, and
        after a step its successors are looked at."""
        begun = self.once.memory.generation == int(self.found["metadata"].get("generation", 1))
        ended = {key for (_, key), moment in self._wanted.items() if moment.endswith("Complete")}
        for made in self.once.plans:
            follow = [n for s in made.steps if str(s.address) in ended for n in made.successors(s.name)]
            for step in follow if begun else made.steps:
                key = ("artifact", str(step.address))
                if step.address and key not in self._answers:
                    self._wanted.setdefault(key, "")

    # writing

    async def write(
        self, documents: Mapping[str, Mapping[str, Any]], stale: Iterable[str]
    ) -> Waiting | Trouble | None:
        """None when all of it is in the store."""
        wanted: dict[int, Any] = {}
        asked: list[Question] = []
        for key, document in documents.items():
            asked.append(Question("put", key, document))
            wanted[len(asked) - 1] = (key, _digest({k: v for k, v in document.items() if k not in _CLOCKS}))
        for address in stale:
            known = self._known.get(address)
            asked.append(Question("forget", address, known.digest if known else ""))
            wanted[len(asked) - 1] = (address, "forgotten")
        left = [n for n, (key, content) in wanted.items() if self._written.get(key) != content]
        if not left:
            return None
        if trouble := self._in_trouble():
            return trouble
        if "write" not in self._open:
            moments = {place: wanted[n] for place, n in enumerate(left)}
            salt = _digest([*self.identity, self._troubles, [list(wanted[n]) for n in left]])
            await self._send("write", [asked[n] for n in left], moments, salt)
        return WAITING

    async def decided(self, decision: Decision) -> None:
        """A decision was carried out: its answers are used up. How steps go on is asked every few minutes."""
        self._answers.clear()
        for address in decision.forget:
            self._known.pop(address, None)
            self._written.pop(address, None)
        listed = (decision.status or {}).get("conditions", ())
        self.is_over = any(c["type"] == "Succeeded" and c["status"] != "Unknown" for c in listed)
        due = time.monotonic() - self._polled_at > PROGRESS_SECONDS
        if not self._watched or not due or "progress" in self._open or self._in_trouble():
            return
        self._polled_at = time.monotonic()
        asked = [Question("progress", address) for address in sorted(self._watched)]
        await self._send("progress", asked, {}, _digest([*self.identity, int(time.time())]))

    # waiting

    def status(self, now: float) -> dict[str, Any] | None:
        """What the run's status says while nothing can be decided; None: what it said."""
        before = self.once.memory
        trouble = self._in_trouble()
        sentence = self._sentence or (trouble.sentence if trouble else "")
        verdict = Verdict("Stuck", "StoreUnavailable", sentence)
        if not sentence:
            if before.conditions.get("Ready"):
                return None
            verdict = Verdict("Running", "Progressing", "asking the run's own store what it has")
        return conditions.held(self.found, before, verdict, now)

    @property
    def again(self) -> float:
        """Seconds until the next look; the end of a probe's Job leads to one by itself."""
        if self._in_trouble():
            return max(1.0, self._trouble[0] - time.monotonic() + 0.05)
        newest = max((at for at, _, _ in self._open.values()), default=0.0)
        return max(POLL_SECONDS, newest + SETTLE_SECONDS - time.monotonic())

    def _in_trouble(self) -> Trouble | None:
        until, found = self._trouble
        return found if time.monotonic() < until else None

    # probes

    async def _send(self, slot: str, asked: list[Question], moments: Mapping[int, Any], salt: str) -> None:
        probe = probes.build(self.found, self.once.run, self.once.place, self.settings, asked, salt)
        try:
            await self.cluster.create(probe.manifest)
        except ApiRefusal as error:
            if not error.stays:
                raise
            sentence = f"the API server does not take the Job that asks the run's own store: {error}"
            self._stumble(Trouble(sentence))
            return
        self._open[slot] = (time.monotonic(), probe, moments)

    async def _collect(self, slot: str) -> None:
        at, probe, moments = self._open[slot]
        namespace = self.found["metadata"]["namespace"]
        child = await self.cluster.child(namespace, f"Job/{probe.name}")
        if child is None:
            del self._open[slot]  # somebody removed it: it is made again
        elif child.terminating:
            self._sentence = self._sentence or "an older Job that asked its store is being removed"
        elif child.phase in ("Active", "Waiting"):
            if slot != "progress" and time.monotonic() - at > SETTLE_SECONDS:
                self._sentence = await self._why(namespace, child)
        else:
            del self._open[slot]
            await self._read(slot, probe, moments, child)

    async def _read(self, slot: str, probe: Probe, moments: Mapping[int, Any], child: Child) -> None:
        namespace = self.found["metadata"]["namespace"]
        if child.uid in self._used or time.time() - (child.ended or child.created) > ANSWER_SECONDS:
            await self.cluster.delete(namespace, child)  # of an earlier time that looked the same
            return
        self._used = {*list(self._used)[-99:], child.uid}
        pods = await self.cluster.pods(namespace, child.name)
        told = probes.answers(pods)
        if slot != "progress":
            self._answered_at = time.monotonic()
        for number, answer in told.items():
            if number < len(probe.questions):
                self._take(slot, probe.questions[number], moments.get(number, ""), answer)
        if child.phase == "Complete" and told:
            self._troubles = 0
            await self.cluster.delete(namespace, child)
        elif slot != "progress":
            lost = Trouble("the Job that asked the run's own store left no answer; it is asked again")
            self._stumble(lost if child.phase == "Complete" else probes.trouble(self.once.place, child, pods))

    def _take(self, slot: str, question: Question, moment: Any, answer: Any) -> None:
        what, key, _ = question
        if what == "progress":
            self._progress[key] = answer
        elif slot == "write":
            name, content = moment
            self._written[name] = content
        else:
            found = self._artifact(key, answer) if what == "artifact" else answer
            self._answers[what, key] = (moment, found)

    def _artifact(self, address: str, answer: Any) -> Artifact | None:
        whole = {inquiry.short(str(s.address)): str(s.address) for p in self.once.plans for s in p.steps}
        told = inquiry.read(answer, whole)
        if told is None:
            self._known.pop(address, None)
            return None
        found = self._known[address] = Artifact(address, *told)
        return found

    def _stumble(self, trouble: Trouble) -> None:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._troubles)
        self._trouble = time.monotonic() + pause, trouble
        self._troubles = min(8, self._troubles + 1)

    async def _why(self, namespace: str, child: Child) -> str:
        """What a probe waits for that a person can mend."""
        if child.phase == "Waiting":
            age, settle = time.time() - child.since, self.settings.queue_seconds
            told = await self.cluster.workload(namespace, child.uid)
            why = given_up(told, child, age, settle) or waiting(told, child, age, settle)
            return f"asking the run's own store: {why}"
        pods = await self.cluster.pods(namespace, child.name)
        why = stuck(pods)
        if not pods and (warning := await self.cluster.warning(namespace, child.uid)):
            why = f"its Pods cannot be made: {warning}"
        return f"asking the run's own store: {why}" if why else ""


_CLOCKS = ("at", "seconds", "startedAt")
"""Of a document: what every look has another value of."""


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _moment(address: str, facts: Mapping[Ask, Any]) -> str:
    """The state of a step's child in this look, "" if there is none: an answer is of one such moment."""
    for ask, found in facts.items():
        if ask.what == "child" and isinstance(found, Child) and found.address == address:
            return f"{found.uid} {'gone' if found.terminating else found.phase}"
    return ""
