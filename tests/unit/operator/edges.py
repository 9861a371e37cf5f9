"""The edges of the engine's world as coroutines over one World: an API server and a store with a memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from fusechat_operator import answers, waiters
from fusechat_operator import engine as module
from fusechat_operator.children import Child
from fusechat_operator.cluster import ApiRefusal
from fusechat_operator.engine import Engine
from fusechat_operator.facts import Ask, Trouble

from tests.unit.operator.acts import step_of
from tests.unit.operator.runs import Object
from tests.unit.operator.world import World

KEY = ("team", "run")


class Edges:
    """Stands for Cluster and for Artifacts. `log` is what was done; `raises` what calls meet."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.log: list[str] = []
        self.raises: dict[str, list[Exception]] = {}
        self.posted: list[Object] = []
        self.trouble: Trouble | None = None
        self.cannot_forget: Trouble | None = None

    def _do(self, what: str, about: str = "") -> None:
        if waiting := self.raises.get(what):
            raise waiting.pop(0)
        self.log.append(f"{what} {about}".strip())

    # Cluster

    async def run(self, namespace: str, name: str) -> Object | None:
        self._do("run")
        return json.loads(json.dumps(self.world.runs.get(name)))

    async def child(self, namespace: str, key: str) -> Any:
        return self.world.answer(Ask("child", key))

    async def own(self, namespace: str, key: str) -> Any:
        return self.world.answer(Ask("own", key))

    async def pods(self, namespace: str, name: str) -> Any:
        return self.world.answer(Ask("pods", name))

    async def workload(self, namespace: str, uid: str) -> Any:
        return self.world.answer(Ask("workload", uid))

    async def warning(self, namespace: str, uid: str) -> Any:
        return self.world.answer(Ask("warning", uid))

    async def kinds(self) -> Any:
        return self.world.answer(Ask("launchers"))

    async def create(self, manifest: Mapping[str, Any]) -> None:
        self._do("create", step_of(manifest))
        if not self.world.create(manifest):
            raise ApiRefusal(403, "Forbidden", self.world.refuses(dict(manifest)))

    async def write_status(self, found: Object, status: Mapping[str, Any]) -> None:
        now = self.world.runs[found["metadata"]["name"]]["metadata"]["resourceVersion"]
        if found["metadata"]["resourceVersion"] != now:
            raise ApiRefusal(409, "Conflict", "the object has been modified")
        self._do("status")
        self.world.write_status(found["metadata"]["name"], status)

    async def keep(self, namespace: str, failed: Child) -> None:
        self._do("keep", failed.name)
        self.world.keep(failed)

    async def delete(self, namespace: str, gone: Child, whatever: bool = False) -> None:
        self._do("stop" if whatever else "delete", gone.name)
        self.world.delete(gone, whatever)

    async def post_event(self, found: Object, name: str, event: Mapping[str, Any]) -> None:
        self._do("event", str(event["reason"]))
        self.posted.append({"name": name, **event})

    # Artifacts

    async def artifact(self, address: str) -> Any:
        return self.world.answer(Ask("artifact", address))

    async def hit(self, address: str) -> Any:
        return self.world.answer(Ask("hit", address))

    async def metrics(self, address: str) -> Any:
        return self.world.answer(Ask("metrics", address))

    async def attempts(self, address: str) -> Any:
        return self.world.answer(Ask("attempts", address))

    async def progress(self, address: str) -> Any:
        self._do("progress", address)
        return self.world.answer(Ask("progress", address))

    async def put(self, key: str, document: Mapping[str, Any]) -> Trouble | None:
        if self.trouble:
            return self.trouble
        self._do("document", key.partition("/")[0])
        self.world.documents[key] = document
        return None

    async def forget(self, address: str) -> Trouble | None:
        if self.cannot_forget:
            return self.cannot_forget
        self._do("forget", address)
        self.world.forget(address)
        return None

    def done(self, *kinds: str) -> list[str]:
        """What was done of these kinds since the last time, in order."""
        found = [entry for entry in self.log if entry.partition(" ")[0] in kinds]
        self.log.clear()
        return found


def an_engine(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[Engine, Edges]:
    """An engine whose clock is the world's."""
    edges = Edges(world)

    def now() -> float:
        return world.now

    clock = SimpleNamespace(time=now, monotonic=now, perf_counter=now)
    for each in (module, answers, waiters):
        monkeypatch.setattr(each, "time", clock)
    made = Engine(edges, edges, world.settings)  # type: ignore[arg-type]
    return made, edges


def child_key(world: World, step: str) -> tuple[str, str]:
    """Where a step's child is."""
    return ("team", str(world.child_of(step)["metadata"]["name"]))


EFFECTS = ("stop", "document", "forget", "create", "status", "keep", "delete", "event")
"""The order in which a decision is carried out, and in which World does."""


def look(engine: Engine, times: int = 1, key: tuple[str, str] = KEY) -> float | None:
    """So many looks at a run; what the last one said."""

    async def looks() -> float | None:
        again = None
        for _ in range(times):
            again = await engine.look(key)
        return again

    return asyncio.run(looks())


def work(engine: Engine, key: tuple[str, str] = KEY) -> float | None:
    """One turn as the agenda gives it; in how many seconds the next is planned."""

    async def turn() -> float | None:
        loop = asyncio.get_running_loop()
        engine.agenda._plans.pop(key, None)  # its turn has come
        await engine._work(key)
        return engine.agenda._plans[key][0] - loop.time() if key in engine.agenda._plans else None

    return asyncio.run(turn())
