"""The edges of an engine whose run has a store of its own: probes are played by the real probe on a real S3.

Used by test_own_store. The rest of the world is in dicts, as in tests/unit/operator.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from fusechat import inquiry
from fusechat.store import InputRef, Manifest, Store
from fusechat_operator import engine as engine_module
from fusechat_operator import own_store
from fusechat_operator.conditions import timestamp
from fusechat_operator.engine import Engine
from fusechat_stages import probe

from tests.unit.operator.edges import KEY
from tests.unit.operator.probed import Probed
from tests.unit.operator.runs import Object
from tests.unit.operator.world import World


class Asking(Probed):
    """`asked`: the questions of each probe that was made. While `slow` they are not played by themselves."""

    def __init__(self, world: World, store: Store, folder: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(world)
        self.store, self.folder, self.patch = store, folder, patch
        self.asked: list[list[inquiry.Question]] = []
        self.slow = False

    def made(self, found: Object) -> None:
        self._do("probe")
        self.asked.append(self.questions(found))
        if not self.slow:
            self.play(found)

    def play(self, found: Object) -> None:
        """Its Pods run, the real code, and its Job ends."""
        codes = [self._pod(found, index) for index in range(found["spec"].get("completions", 1))]
        kind = "Complete" if not any(codes) else "Failed"
        told = {"type": kind, "status": "True", "lastTransitionTime": timestamp(self.world.now)}
        found["status"] = {"conditions": [told]}

    def _pod(self, found: Object, index: int) -> int:
        said = self.folder / f"said-{index}"
        self.patch.setenv("FUSECHAT_SUMMARY_FILE", str(said))
        code = probe.main([a.replace("$(JOB_COMPLETION_INDEX)", str(index)) for a in self.args(found)])
        message = said.read_text()
        assert len(message) <= 4096
        state = {"terminated": {"exitCode": code, "message": message}}
        status = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [{"name": "stage", "state": state}],
        }
        found.setdefault("pods", []).append({"metadata": {"name": f"pod-{index}"}, "status": status})
        return code

    def publish(self) -> None:
        """What the world's children have made is in the store."""
        for address, made in self.world.artifacts.items():
            inputs = {}
            for role, ref in made.inputs.items():
                given = self.store.manifest(ref.address)
                inputs[role] = InputRef(ref.address, given.digest if given else "")
            self.store.publish(Manifest(
                address, address.split("/")[0], 1, "Corrected", {}, inputs, (),
                {**made.metrics, "rows": 7}, True, {}, "me", "2026-01-01T00:00:00Z", {},
            ))  # fmt: skip


def an_engine(edges: Asking, patch: pytest.MonkeyPatch) -> Engine:
    """An engine whose clock is the world's."""

    def now() -> float:
        return edges.world.now

    clock = SimpleNamespace(time=now, monotonic=now, perf_counter=now)
    patch.setattr(engine_module, "time", clock)
    patch.setattr(own_store, "time", clock)
    return Engine(edges, edges, edges.world.settings)  # type: ignore[arg-type]


def look(engine: Engine) -> float | None:
    return asyncio.run(engine.look(KEY))


def drive(engine: Engine, edges: Asking, turns: int = 150) -> Object:
    """Look until the run is over; children end well, or as the script says."""
    world = edges.world
    for _ in range(turns):
        look(engine)
        if world.over():
            return world.status()
        for found in world.active():
            world.play(found)
        edges.publish()
        world.now += 1.0
    raise AssertionError(f"not over after {turns} turns: {json.dumps(world.status(), indent=1)}")
