"""One leader among the replicas, by a Lease. Losing it ends the process at once.

Used by `__main__`. kubernetes' own election does the work; what is added is that a silent API server counts
as a failure to renew, and that an orderly end gives the Lease back.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from kubernetes.aio.client import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.baselock import BaseLock

from fusechat_operator.cluster import ApiRefusal, Cluster
from fusechat_operator.settings import Settings

log = logging.getLogger("fusechat")
NAME = "fusechat-operator"
ANSWER_SECONDS = 4.0


class _Lock(BaseLock):
    """The Lease by plain requests, which end: no answer is a failure like any other.

    The library's own LeaseLock cannot create one (kubernetes 37.0: `pretty=True` where a text is asked for).
    """

    def __init__(self, settings: Settings, cluster: Cluster, read: Callable[[], None]) -> None:
        super().__init__(NAME, settings.namespace, settings.identity)
        self._cluster, self._read = cluster, read
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases"
        self._found: dict[str, Any] = {}

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        try:
            self._found = await self._ask("GET", f"{self._path}/{name}")
        except ApiRefusal as error:
            told = ApiException(status=error.status, reason=str(error))
            told.body = json.dumps({"code": error.status})
            return False, told
        except (OSError, TimeoutError) as error:
            return False, ApiException(status=0, reason=f"no answer: {error}")
        self._read()
        spec = self._found.get("spec") or {}
        held, times = spec.get("holderIdentity") or None, (spec.get("acquireTime"), spec.get("renewTime"))
        return True, LeaderElectionRecord(held, str(spec.get("leaseDurationSeconds", "")), *times)

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name},
            "spec": self._spec(election_record),
        }
        return await self._write("POST", self._path, lease)

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        lease = {**self._found, "spec": self._spec(updated_record)}
        return await self._write("PUT", f"{self._path}/{name}", lease)

    def _spec(self, record: Any) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = self._found.get("spec") or {}
        kept = old.get("acquireTime") if old.get("holderIdentity") == record.holder_identity else None
        return {
            "holderIdentity": record.holder_identity,
            "leaseDurationSeconds": int(record.lease_duration),
            "acquireTime": kept or now,
            "renewTime": now,
        }

    async def _write(self, method: str, path: str, lease: dict[str, Any]) -> bool:
        try:
            self._found = await self._ask(method, path, lease)
            return True
        except (ApiRefusal, OSError, TimeoutError) as error:
            log.warning("the Lease was not written: %s", str(error) or "no answer")
            return False

    async def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return await asyncio.wait_for(self._cluster.request(method, path, body, urgent=True), ANSWER_SECONDS)


async def lead(
    cluster: Cluster,
    settings: Settings,
    work: Callable[[], Coroutine[Any, Any, None]],
    read: Callable[[], None],
) -> bool:
    """Wait for the Lease, then work while it is held. True if the work ended, False if the Lease was lost.

    `read` is called whenever the Lease was read. Cancelled, it ends when the work has ended.
    """
    done = asyncio.Event()
    works: list[asyncio.Task[None] | None] = []

    async def leading() -> None:
        works.append(asyncio.current_task())
        try:
            await work()
        finally:
            done.set()

    async def lost() -> None:
        return None

    duration = settings.lease_seconds
    lock = _Lock(settings, cluster, read)
    election = LeaderElection(Config(lock, duration, duration * 2 // 3, max(1, duration // 7), leading, lost))
    held = asyncio.create_task(election.run())
    ended = asyncio.create_task(done.wait())
    try:
        await asyncio.wait({held, ended}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        stopping = [held, ended, *filter(None, works)]
        for each in stopping:
            each.cancel()
        await asyncio.gather(*stopping, return_exceptions=True)
        raise
    if not ended.done():
        ended.cancel()
        return False
    held.cancel()
    return True


async def give_back(cluster: Cluster, settings: Settings) -> None:
    """Let another replica lead at once."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases/{NAME}"
    try:
        found = await cluster.request("GET", path, urgent=True)
        if found["spec"].get("holderIdentity") == settings.identity:
            spec = {"leaseDurationSeconds": 1, "renewTime": None, "holderIdentity": ""}
            await cluster.request("PUT", path, {**found, "spec": {**found["spec"], **spec}}, urgent=True)
    except (ApiRefusal, OSError) as error:
        log.warning("the Lease was not given back: %s", error)
