"""A run's own store whose probes wait as long as told, in a queue or for a node. No S3 is asked."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from fusechat import inquiry
from fusechat_operator import answers, own_store, waiters
from fusechat_operator import engine as engine_module
from fusechat_operator.conditions import timestamp
from fusechat_operator.engine import Engine

from tests.unit.operator.edges import KEY
from tests.unit.operator.probed import Probed
from tests.unit.operator.runs import Object
from tests.unit.operator.world import World

OWN = {"uri": "s3://team/own", "secretRef": {"name": "keys"}}


class SlowStore(Probed):
    """`slow`: seconds until a probe answers; `fails`: it answers that it may not."""

    def __init__(self, world: World, slow: float) -> None:
        super().__init__(world)
        self.slow, self.fails = slow, False

    def made(self, found: Object) -> None:
        found["due"] = self.world.now + self.slow

    def tick(self) -> None:
        """Probes whose time has come answer."""
        for found in self.jobs.values():
            if "status" not in found and found["due"] <= self.world.now:
                self._answer(found)

    def _answer(self, found: Object) -> None:
        asked = [list(question) for question in self.questions(found)]
        told = {str(n): self._one(*question) for n, question in enumerate(asked)}
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
    for module in (engine_module, answers, own_store, waiters):
        patch.setattr(module, "time", SimpleNamespace(time=now, monotonic=now, perf_counter=now))
    return Engine(edges, edges, world.settings), edges  # type: ignore[arg-type]
