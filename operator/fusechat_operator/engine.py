"""The loop around reconcile: read the run, answer its questions, carry the decision out. Holds no truth.

Called by handlers (triggers) and by its own agenda (retries, polls). What it keeps in memory can be lost at
any moment: who waits for whose child, when it last wrote progress, what the API server lately refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

from fusechat_operator import conditions, memory, naming, own_store
from fusechat_operator.agenda import Agenda
from fusechat_operator.answers import Answers
from fusechat_operator.artifacts import Artifacts
from fusechat_operator.children import Child
from fusechat_operator.cluster import ApiRefusal, Cluster
from fusechat_operator.conditions import Verdict, timestamp
from fusechat_operator.decision import Decision, Event, event_object
from fusechat_operator.facts import Ask, Trouble
from fusechat_operator.metrics import Metrics
from fusechat_operator.once import Once
from fusechat_operator.one_pass import STORE_PAUSE_SECONDS
from fusechat_operator.own_store import STORE_ASKS, WAITING, OwnStore
from fusechat_operator.reconcile import reconcile
from fusechat_operator.rest import rests
from fusechat_operator.settings import Settings
from fusechat_operator.tally import state
from fusechat_operator.waiters import Refusals, Waiters

log = logging.getLogger("fusechat")
Key = tuple[str, str]
ROUNDS = 64
"""Rounds of questions in one pass; a plan's depth and a few more. More is a fault of ours."""

OWN_STORES = 500
"""Stores of runs that are remembered; one more is asked anew."""

LONGEST_PAUSE = 30.0
CONFLICTS = 2
"""In a row that are of one moment, as those with another writer are; a third is what the server thinks."""

PROGRESS_SECONDS = 60.0
FADING = ("percent", "rate", "etaSeconds", "metrics", "lastCheckpoint", "started", "finished", "shards")
"""Fields of details that are not worth a write of their own."""


class Engine:
    """All runs of one operator."""

    def __init__(
        self, cluster: Cluster, artifacts: Artifacts, settings: Settings, metrics: Metrics | None = None
    ) -> None:
        self.cluster, self.artifacts, self.settings = cluster, artifacts, settings
        self.metrics = metrics or Metrics()
        self.agenda = Agenda()
        self.waiters = Waiters()
        self._refusals = Refusals()
        self._answers = Answers(cluster, artifacts, self._refusals, settings.poll_seconds)
        self._wrote: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._own: OrderedDict[Key, OwnStore] = OrderedDict()
        self._states: dict[Key, str] = {}

    async def run(self) -> None:
        """Work until cancelled."""
        await self.agenda.run(self._work, self.settings.workers)

    def run_changed(self, namespace: str, name: str, found: Mapping[str, Any] | None) -> None:
        """A FusionRun came or changed to what `found` says, or went (None). One that rests is left alone."""
        key = namespace, name
        if found is not None and rests(found):
            self._forget(key)
        else:
            self.agenda.add(key)

    def child_changed(self, namespace: str, name: str, run: str) -> None:
        """A child came, changed or went: its owner looks, and whoever waits for its artifact."""
        self.agenda.add((namespace, run))
        for key in self.waiters.of((namespace, name)):
            self.agenda.add(key)

    async def _work(self, key: Hashable) -> None:
        assert isinstance(key, tuple)
        begun = time.perf_counter()
        try:
            again = await self.look(key)
            self._failures.pop(key, None)
        except ApiRefusal as error:
            again = max(self._pause(key), min(error.again, LONGEST_PAUSE))
            if error.status == 409 and self._failures[key] <= CONFLICTS:
                again = 0.05  # somebody changed it meanwhile
            else:
                log.warning("%s/%s: the API server refuses: %s", *key, error)
        except OSError as error:
            again = self._pause(key)
            log.warning("%s/%s: %s", *key, error)
        except Exception:
            again = self._pause(key)
            self.metrics.faults.inc()
            log.exception("%s/%s: a fault of ours; it is looked at again in %.0f s", *key, again)
        self.metrics.reconcile.observe(time.perf_counter() - begun)
        if again is not None:
            self.agenda.add(key, again, slack=again)
        self.metrics.queue.set(self.agenda.due)

    def _pause(self, key: Key) -> float:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        return float(min(LONGEST_PAUSE, 0.5 * 2 ** min(count, 8)))

    async def look(self, key: Key) -> float | None:
        """One pass over one run; seconds until the next, or None."""
        found = await self.cluster.run(*key)
        if found is None:
            self._forget(key)
            return None
        facts: dict[Ask, Any] = {}
        once = Once(found, self.settings.store)
        own = await self._own_store(key, found, once)
        stopped: set[str] = set()
        for _ in range(ROUNDS):
            decision = reconcile(found, facts, self.settings, time.time(), once)
            decision = replace(decision, stop=tuple(c for c in decision.stop if c.uid not in stopped))
            if not decision.asks:
                return await self._carry_out(key, found, decision, own)
            # Before the store is asked, which may never answer.
            if refused := await self._stop(key, decision):
                return await self._hold_for(key, found, "Waiting", refused)
            stopped |= {child.uid for child in decision.stop}
            asks = list(decision.asks)
            answers = await asyncio.gather(*(self._answer(key, ask, facts, own) for ask in asks))
            if own and any(answer is WAITING for answer in answers):
                await own.ask()
                return await self._hold(key, found, own)
            facts.update(zip(asks, answers, strict=True))
        raise RuntimeError(f"reconcile still asks after {ROUNDS} rounds: {sorted(decision.asks)[:3]}")

    async def _stop(self, key: Key, decision: Decision) -> str:
        """What the API server will not have deleted, and why: the others are stopped all the same."""
        refused = []
        for child in decision.stop:
            try:
                await self.cluster.delete(key[0], child, whatever=True)
            except ApiRefusal as error:
                if not error.stays:
                    raise
                refused.append(f"{child.kind} {child.name} cannot be stopped: {error}")
        return "; ".join(refused[:3])

    async def _own_store(self, key: Key, found: dict[str, Any], once: Once) -> OwnStore | None:
        """The store that a run names, if it is not the default one."""
        if "deletionTimestamp" in found["metadata"] or once.refusal or not once.place.own:
            self._own.pop(key, None)
            return None
        identity = own_store.identity(found, once)
        if key not in self._own or self._own[key].identity != identity:
            if key in self._own:
                await self._own[key].leave()
            self._own[key] = OwnStore(self.cluster, self.settings, identity)
        self._own.move_to_end(key)
        if len(self._own) > OWN_STORES:
            self._own.popitem(last=False)
        await self._own[key].begin(found, once)
        return self._own[key]

    async def _hold(self, key: Key, found: dict[str, Any], own: OwnStore) -> float:
        """Nothing is decided before the run's own store has answered; what keeps it is said."""
        await self._write(key, found, Decision(status=own.status(time.time())))
        return own.again

    async def _answer(self, key: Key, ask: Ask, facts: Mapping[Ask, Any], own: OwnStore | None) -> Any:
        if own and ask.what in STORE_ASKS:
            return own.answer(ask, facts)
        return await self._answers.to(ask, key[0])

    # carrying out

    async def _carry_out(
        self, key: Key, found: dict[str, Any], decision: Decision, own: OwnStore | None = None
    ) -> float | None:
        if refused := await self._stop(key, decision):
            return await self._hold_for(key, found, "Waiting", refused)
        if own and await own.write(decision.documents, decision.forget) is not None:
            return await self._hold(key, found, own)
        if own is None and (trouble := await self._store(decision)):
            return await self._hold_for(key, found, "StoreUnavailable", trouble.sentence)
        if not await self._create(key, decision):
            return 0.05
        await self._write(key, found, decision)
        for child in decision.keep:
            await self._keep(key, child)
        for child in decision.delete:
            await self.cluster.delete(key[0], child)
        self.waiters.wait(key, decision.shared)
        for event in decision.events:
            await self._tell(found, event)
        self._count(key, found, decision)
        if own:
            if decision.notes:
                await own.write(decision.notes, ())
            await own.decided(decision)
            if own.is_over:
                self._own.pop(key, None)
        return decision.again

    async def _store(self, decision: Decision) -> Trouble | None:
        """What a decision changes in the default store; what kept it from that."""
        for document, content in decision.documents.items():
            if trouble := await self.artifacts.put(document, content):
                return trouble
        for document, content in decision.notes.items():
            if trouble := await self.artifacts.put(document, content):
                log.warning("%s is not written: %s", document, trouble.sentence)
        for address in decision.forget:
            if trouble := await self.artifacts.forget(address):
                return trouble
        return None

    async def _hold_for(self, key: Key, found: dict[str, Any], reason: str, sentence: str) -> float:
        """What the store or the cluster does not take is not carried out; the status says why."""
        log.warning("%s/%s: %s", *key, sentence)
        verdict = Verdict("Stuck", reason, sentence)
        made = conditions.held(found, memory.read(found.get("status", {})), verdict, time.time())
        await self._write(key, found, Decision(status=made))
        return STORE_PAUSE_SECONDS

    async def _create(self, key: Key, decision: Decision) -> bool:
        """Whether the API server took every child; what it refused is remembered for the next look."""
        refused: set[str] = set()
        for place, manifest in enumerate(decision.create):
            if _child_of(manifest) in refused:
                continue  # its Service or runtime was refused: without it it would wait for ever
            try:
                await self.cluster.create(manifest)
                self.metrics.created.labels(manifest["kind"]).inc()
            except ApiRefusal as error:
                away = error.webhook_is_away
                stays = error.status == 409 and self._failures.get(key, 0) >= CONFLICTS
                if not (stays or error.stays or error.status == 404):  # 404: its kind was uninstalled
                    raise
                # What a webhook is for is not known here: one that is away is not waited for by each child.
                for each in decision.create[place:] if away else (manifest,):
                    refused.add(_child_of(each))
                    self._refusals.add((key[0], _child_of(each)), str(error))
                if away:
                    break
        return not refused

    async def _write(self, key: Key, found: dict[str, Any], decision: Decision) -> None:
        old, new = found.get("status", {}), decision.status
        if new is None or new == old:
            return
        if (
            _lasting(new) == _lasting(old)
            and time.monotonic() - self._wrote.get(key, -1e9) < PROGRESS_SECONDS
        ):
            return
        await self.cluster.write_status(found, new)
        self._wrote[key] = time.monotonic()

    def _forget(self, key: Key) -> None:
        self.waiters.wait(key, ())
        self._wrote.pop(key, None)
        self._failures.pop(key, None)
        self._own.pop(key, None)
        self._in_state(key, "")

    async def _keep(self, key: Key, failed: Child) -> None:
        """Trouble with it must not keep the rest of a decision back, of which nobody would hear."""
        try:
            await self.cluster.keep(key[0], failed)
        except (ApiRefusal, OSError) as error:
            log.warning("%s/%s: %s is not kept: %s", *key, failed.name, error)

    async def _tell(self, found: dict[str, Any], event: Event) -> None:
        """An Event; trouble with it must not change what happens."""
        meta, made = found["metadata"], event_object(event, found, timestamp(time.time()))
        try:
            await self.cluster.post_event(found, made["metadata"]["name"], made)
        except (ApiRefusal, OSError) as error:
            log.warning("%s/%s: its event was not recorded: %s", meta["namespace"], meta["name"], error)

    def _count(self, key: Key, found: dict[str, Any], decision: Decision) -> None:
        for event in decision.events:
            self.metrics.events.labels(event.reason).inc()
        self.metrics.count(decision.tally)
        self._in_state(key, state(decision.status or found.get("status", {})))

    def _in_state(self, key: Key, now: str) -> None:
        before = self._states.pop(key, "")
        if now:
            self._states[key] = now
        for each in {before, now} - {""}:
            self.metrics.active.labels(each).inc((each == now) - (each == before))


def _child_of(manifest: Mapping[str, Any]) -> str:
    """The child that an object is, or that it is made for."""
    return str(manifest["metadata"]["labels"][naming.CHILD])


def _lasting(status: Mapping[str, Any]) -> dict[str, Any]:
    """A status without what fades."""
    details = [{k: v for k, v in d.items() if k not in FADING} for d in status.get("details", ())]
    return {**status, "details": details}
