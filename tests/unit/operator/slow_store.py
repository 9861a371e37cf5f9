"""A run's own store whose probes wait as long as told, in a queue or for a node. No S3 is asked."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from fusechat import inquiry
from fusechat_operator import engine as engine_module
from fusechat_operator import naming, own_store, waiters
from fusechat_operator.children import Child, child, pod
from fusechat_operator.engine import Engine
from fusechat_operator.status import timestamp

from tests.unit.operator.edges import KEY, Edges
from tests.unit.operator.runs import Object
from tests.unit.operator.world import World

OWN = {"uri": "s3://team/own", "secretRef": {"name": "keys"}}


class SlowStore(Edges):
    """`slow`: seconds until a probe answers; `fails`: it answers that it may not."""

    def __init__(self, world: World, slow: float) -> None:
        super().__init__(world)
        self.slow, self.fails = slow, False
        self.jobs: dict[str, Object] = {}

    async def create(self, manifest: Any) -> None:
        meta = manifest["metadata"]
        if meta["labels"][naming.STAGE] != "probe":
            return await super().create(manifest)
        if meta["name"] in self.jobs:
            return None
        made = json.loads(json.dumps(manifest))
        self.world.count += 1
        made["metadata"] |= {
            "uid": f"probe-{self.world.count}",
            "resourceVersion": self.world.version(),
            "creationTimestamp": timestamp(self.world.now),
        }
        self.jobs[meta["name"]] = {**made, "due": self.world.now + self.slow}
        return None

    def tick(self) -> None:
        """Probes whose time has come answer."""
        for found in self.jobs.values():
            if "status" not in found and found["due"] <= self.world.now:
                self._answer(found)

    def _answer(self, found: Object) -> None:
        args = found["spec"]["template"]["spec"]["containers"][0]["args"]
        asked = inquiry.asked("".join(a.removeprefix("--ask=") for a in args if a.startswith("--ask=")))
        told = {str(n): self._one(*question) for n, question in enumerate(list(q) for q in asked)}
        said: Object = {"answer": inquiry.pack(told)}
        if self.fails:
            said = {"exitCode": 69, "error": "403 from s3"}
        ended = {"exitCode": 69 if self.fails else 0, "message": json.dumps(said)}
        listed = [{"name": "stage", "state": {"terminated": ended}}]
        phase, kind = ("Failed", "Failed") if self.fails else ("Succeeded", "Complete")
        found["pods"] = [{"metadata": {"name": "p"}, "status": {"phase": phase, "containerStatuses": listed}}]
        at = timestamp(self.world.now)
        found["status"] = {"conditions": [{"type": kind, "status": "True", "lastTransitionTime": at}]}

    def _one(self, what: str, key: str, value: Any) -> Any:
        if what == "artifact":
            made = self.world.artifacts.get(key)
            if made is None:
                return None
            inputs = {r: [inquiry.short(x.address), x.digest[:16]] for r, x in made.inputs.items()}
            return [made.digest[:16], dict(made.metrics), inputs]
        if what == "forget":
            self.world.forget(key)
        return {"attempts": [], "progress": None}.get(what, True)

    async def child(self, namespace: str, key: str) -> Any:
        found = self.jobs.get(key.partition("/")[2])
        return child(found) if found else await super().child(namespace, key)

    async def own(self, namespace: str, key: str) -> Any:
        return [*await super().own(namespace, key), *(child(job) for job in self.jobs.values())]

    async def pods(self, namespace: str, name: str) -> Any:
        if name in self.jobs:
            return [pod(found) for found in self.jobs[name].get("pods", ())]
        return await super().pods(namespace, name)

    async def delete(self, namespace: str, gone: Child, whatever: bool = False) -> None:
        if self.jobs.pop(gone.name, None) is None:
            await super().delete(namespace, gone, whatever)

    def turn(self, engine: Engine, seconds: float = 1.0) -> None:
        """What is due answers, a look, children end, time passes."""
        self.tick()
        asyncio.run(engine.look(KEY))
        for found in self.world.active():
            self.world.play(found)
        self.world.now += seconds


def with_slow_store(world: World, patch: pytest.MonkeyPatch, slow: float = 0.0) -> tuple[Engine, SlowStore]:
    """An engine whose clock is the world's, and its edges."""

    def now() -> float:
        return world.now

    edges = SlowStore(world, slow)
    for module in (engine_module, own_store, waiters):
        patch.setattr(module, "time", SimpleNamespace(time=now, monotonic=now, perf_counter=now))
    return Engine(edges, edges, world.settings), edges  # type: ignore[arg-type]
