"""One leader among the replicas, by a Lease. Losing it ends the process at once.

Used by `__main__`. kubernetes' own election does the work; what is added is that a silent API server counts
as a failure to renew, and that an orderly end gives the Lease back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from fusechat_operator.cluster import ApiRefusal, Cluster
from fusechat_operator.settings import Settings

T = TypeVar("T")
log = logging.getLogger("fusechat")
NAME = "fusechat-operator"
ANSWER_SECONDS = 4.0


class _Lock(LeaseLock):
    """A Lease whose requests end: no answer is a failure like any other."""

    def __init__(self, settings: Settings, cluster: Cluster, read: Callable[[], None]) -> None:
        super().__init__(NAME, settings.namespace, settings.identity, cluster.api)
        self._read = read

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        silent: tuple[bool, Any] = (False, _Silent())
        found = await _in_time(super().get(name, namespace), silent)
        if found[0]:
            self._read()
        return found

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        return await _in_time(super().create(name, namespace, election_record), False)

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        return await _in_time(super().update(name, namespace, updated_record), False)


class _Silent(Exception):
    reason = "no answer"


async def _in_time(request: Coroutine[Any, Any, T], otherwise: T) -> T:
    try:
        return await asyncio.wait_for(request, ANSWER_SECONDS)
    except Exception as error:
        log.warning("the Lease cannot be reached: %s", str(error) or type(error).__name__)
        return otherwise


async def lead(
    cluster: Cluster,
    settings: Settings,
    work: Callable[[], Coroutine[Any, Any, None]],
    read: Callable[[], None],
) -> bool:
    """Wait for the Lease, then work while it is held. True if the work ended, False if the Lease was lost.

    `read` is called whenever the Lease was read.
    """
    done = asyncio.Event()

    async def leading() -> None:
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
    await asyncio.wait({held, ended}, return_when=asyncio.FIRST_COMPLETED)
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
