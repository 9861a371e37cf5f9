"""Where each question of a pass is answered: the cluster, the default store, what was lately refused.

Called by engine. Questions to the store of a run's own are own_store's.
"""

from __future__ import annotations

import time
from typing import Any

from fusechat_operator import probes
from fusechat_operator.artifacts import Artifacts
from fusechat_operator.cluster import Cluster
from fusechat_operator.facts import Ask, Trouble
from fusechat_operator.waiters import Refusals

PROGRESS_KEPT = 20_000
"""Answers on progress that are kept; beyond these all are asked anew."""


class Answers:
    """Answers of one operator. `poll_seconds`: how long an answer on progress is good."""

    def __init__(
        self, cluster: Cluster, artifacts: Artifacts, refusals: Refusals, poll_seconds: float
    ) -> None:
        self.cluster, self.artifacts, self.poll_seconds = cluster, artifacts, poll_seconds
        self._refusals = refusals
        self._progress: dict[str, tuple[float, Any]] = {}

    async def to(self, ask: Ask, namespace: str) -> Any:
        """The answer, of a run in `namespace`; a Trouble where the store has none."""
        match ask.what:
            case "artifact" | "sink":
                return await self.artifacts.artifact(ask.key)
            case "hit":
                return await self.artifacts.hit(ask.key)
            case "metrics":
                return await self.artifacts.metrics(ask.key)
            case "warning":
                return await self.cluster.warning(namespace, ask.key)
            case "attempts":
                return await self.artifacts.attempts(ask.key)
            case "progress":
                return await self._progress_of(ask.key)
            case "child":
                return await self.cluster.child(namespace, ask.key)
            case "own":
                listed = await self.cluster.own(namespace, ask.key)
                return [child for child in listed if not probes.is_probe(child)]
            case "pods":
                return await self.cluster.pods(namespace, ask.key)
            case "workload":
                return await self.cluster.workload(namespace, ask.key)
            case "launchers":
                return await self.cluster.kinds()
            case "refusal":
                return self._refusals.of((namespace, ask.key))

    async def _progress_of(self, address: str) -> Any:
        at, known = self._progress.get(address, (-1e9, None))
        if time.monotonic() - at < self.poll_seconds:
            return known
        found = await self.artifacts.progress(address)
        if isinstance(found, Trouble):
            found = known
        if len(self._progress) > PROGRESS_KEPT:
            self._progress.clear()
        self._progress[address] = (time.monotonic(), found)
        return found
