"""A World in which a run is looked at only when the engine would: after an event, or when its pause is over.

Used by the walk. Events of what is gone may be lost, as when a watch begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from fusechat_operator import naming
from fusechat_operator.children import Child, child
from fusechat_operator.conditions import timestamp
from fusechat_operator.rest import rests
from fusechat_operator.waiters import Waiters
from fusechat_operator.workloads import Queued

from tests.unit.operator.runs import Object
from tests.unit.operator.world import Crash, World

REFUSED_SECONDS = 0.05
"""When the engine looks again after a child was refused."""

SPIN = 400
"""So many looks with no time passing are a hot loop."""


class Eventful(World):
    """`due`: when each run is looked at next. `loses_events`: every other event of an end is lost."""

    def __init__(self, chance: Random, *runs: Object, **told: Any) -> None:
        self.chance, self.due, self.waiters = chance, {}, Waiters()
        self.loses_events, self.crashes, self.conflicts = False, 0.0, 0.0
        super().__init__(*runs, **told)

    # events

    def wake(self, name: str) -> None:
        if name in self.runs and not rests(self.runs[name]):
            self.due[name] = min(self.due.get(name, 1e18), self.now)

    def tell(self, found: Object, gone: bool = False) -> None:
        """A child has changed: its run and those that wait for it look."""
        if gone and self.loses_events and self.chance.random() < 0.5:
            return
        self.wake(found["metadata"]["labels"][naming.RUN])
        for _, name in list(self.waiters.of(("team", found["metadata"]["name"]))):
            self.wake(name)

    def touch(self, found: Object) -> None:
        found["metadata"]["resourceVersion"] = self.version()
        self.tell(found)

    def add(self, run: Object) -> None:
        super().add(run)
        self.wake(run["metadata"]["name"])

    def remove(self, name: str) -> None:
        super().remove(name)
        self.due.pop(name, None)
        self.waiters.wait(("team", name), ())

    def edit(self, name: str = "run", **spec: Any) -> None:
        super().edit(name, **spec)
        self.wake(name)

    def retry(self, name: str = "run") -> None:
        super().retry(name)
        self.wake(name)

    def write_status(self, name: str, status: Mapping[str, Any]) -> None:
        super().write_status(name, status)
        self.wake(name)

    def create(self, manifest: Mapping[str, Any]) -> bool:
        taken = super().create(manifest)
        found = self.children.get(f"{manifest['kind']}/{manifest['metadata']['name']}")
        if taken and found:
            self.tell(found)
        return taken

    def delete(self, gone: Child, whatever: bool = False) -> None:
        super().delete(gone, whatever)
        if found := self.children.get(f"{gone.kind}/{gone.name}"):
            self.tell(found)

    def gone(self, key: str) -> None:
        found = self.children[key]
        super().gone(key)
        self.tell(found, gone=True)

    def keep(self, failed: Child) -> None:
        if found := self.children.get(f"{failed.kind}/{failed.name}"):
            super().keep(failed)
            self.touch(found)

    def end(self, found: Object, *told: Any, **more: Any) -> None:
        super().end(found, *told, **more)
        self.tell(found)

    # the engine

    def look(self) -> bool:
        """One look at one run that is due; False if none is."""
        ready = [name for name, at in self.due.items() if at <= self.now]
        if not ready:
            return False
        name = self.chance.choice(ready)
        del self.due[name]
        decision = self.decide(name)
        if self.children and self.chance.random() < self.conflicts:
            self.touch(self.chance.choice(list(self.children.values())))  # since it was looked at
        crashes = self.chance.random() < self.crashes
        try:
            self.carry_out(name, decision, self.chance.randrange(6) if crashes else 1 << 20)
        except Crash:
            self._restart()
            return True
        again = decision.again
        if any(self._is_refused(manifest) for manifest in decision.create):
            again = REFUSED_SECONDS
        else:
            self.waiters.wait(("team", name), decision.shared)
        if again is not None:
            self.due[name] = min(self.due.get(name, 1e18), self.now + again)
        return True

    def spin(self) -> None:
        """Look until no run is due."""
        for _ in range(SPIN):
            if not self.look():
                return
        raise AssertionError(f"{SPIN} looks with no time passing")

    def _restart(self) -> None:
        """The next operator lists all runs, and remembers nobody who waits."""
        self.waiters, self.due = Waiters(), {}
        for name in self.runs:
            self.wake(name)

    def _is_refused(self, manifest: Mapping[str, Any]) -> bool:
        at, sentence = self._refusals.get(manifest["metadata"]["labels"][naming.CHILD], (0.0, ""))
        return bool(sentence) and at == self.now

    # who else acts

    def going(self) -> list[str]:
        return [key for key, found in self.children.items() if "deletionTimestamp" in found["metadata"]]

    def at_work(self) -> list[Object]:
        return [found for found in self.active() if "deletionTimestamp" not in found["metadata"]]

    def kueue(self) -> None:
        """Kueue admits, holds or preempts one child."""
        there = [found for found in self.children.values() if self._is_queued(found)]
        if not there:
            return
        found = self.chance.choice(there)
        uid, where = found["metadata"]["uid"], found["spec"].get("runPolicy", found["spec"])
        if not where.get("suspend") and self.chance.random() < 0.3:
            self.workloads[uid] = Queued(stopped=True, sentence="was preempted")
            self._hold(found, where, True)
        elif where.get("suspend") and self.chance.random() < 0.7:
            self.workloads[uid] = Queued()
            self._hold(found, where, False)
        elif where.get("suspend"):
            self.workloads[uid] = Queued(sentence="waits for quota: none")
        self.touch(found)

    def _is_queued(self, found: Object) -> bool:
        meta = found["metadata"]
        there = naming.QUEUE in meta["labels"] and "deletionTimestamp" not in meta
        return there and child(found).phase in ("Waiting", "Active")

    def _hold(self, found: Object, where: Object, held: bool) -> None:
        at = timestamp(self.now)
        where["suspend"] = held
        status = found.setdefault("status", {})
        status["startTime"] = None if held else at
        others = [c for c in status.get("conditions", ()) if c["type"] != "Suspended"]
        told = {"type": "Suspended", "status": str(held), "lastTransitionTime": at}
        status["conditions"] = [*others, told]
