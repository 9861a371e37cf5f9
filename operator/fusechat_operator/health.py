"""/healthz and /readyz. The leader is healthy while its own heartbeat comes back through kopf's watch.

The heartbeat is a Job that never runs (suspended, in the operator's namespace) and that the leader patches: a
watch that has gone silent, an API server that is gone and a stuck loop all stop its echo. A standby is
healthy while it can read the Lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from fusechat_operator import naming
from fusechat_operator.cluster import ApiRefusal, Cluster
from fusechat_operator.settings import Settings

log = logging.getLogger("fusechat")
BEAT_SECONDS = 20.0
SILENT_SECONDS = 90.0


class Heartbeat:
    """Beats by patching one Job; `healthy` is whether its echo is young."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster, self._namespace = cluster, settings.namespace
        self.name = "fusechat-heartbeat"
        self.leading = False
        self.heard_at = time.monotonic()
        self.read_at = time.monotonic()

    @property
    def healthy(self) -> bool:
        at = self.heard_at if self.leading else self.read_at
        return time.monotonic() - at < SILENT_SECONDS

    def lease_was_read(self) -> None:
        """The API server answered about the Lease."""
        self.read_at = time.monotonic()

    def is_echo(self, body: Mapping[str, Any]) -> bool:
        """Whether a watched Job is the heartbeat."""
        meta = body["metadata"]
        return bool(meta["name"] == self.name and meta["namespace"] == self._namespace)

    def heard(self, body: Mapping[str, Any]) -> None:
        """The watch brought it. An old beat, from a relist, counts for its own time only."""
        sent = float(body["metadata"].get("annotations", {}).get(naming.HEARTBEAT, 0))
        age = max(0.0, time.time() - sent)
        self.heard_at = max(self.heard_at, time.monotonic() - age)

    async def beat(self) -> None:
        """Beat until cancelled."""
        while True:
            try:
                await self._once()
            except (ApiRefusal, OSError) as error:
                if isinstance(error, ApiRefusal) and error.stays:
                    self.heard_at = time.monotonic()  # ending this process would mend nothing of that
                log.warning("no heartbeat, so a silent watch would not be noticed: %s", error)
            await asyncio.sleep(BEAT_SECONDS)

    async def _once(self) -> None:
        jobs = f"/apis/batch/v1/namespaces/{self._namespace}/jobs"
        note = {"metadata": {"annotations": {naming.HEARTBEAT: f"{time.time():.3f}"}}}
        try:
            patch = "application/merge-patch+json"
            await self._cluster.request("PATCH", f"{jobs}/{self.name}", note, kind=patch, urgent=True)
        except ApiRefusal as error:
            if error.status != 404:
                raise
            await self._cluster.request("POST", jobs, self._job(note["metadata"]["annotations"]), urgent=True)

    def _job(self, annotations: Mapping[str, str]) -> dict[str, Any]:
        quiet = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        container = {"name": "never", "image": "never-pulled", "securityContext": quiet}
        pod = {
            "restartPolicy": "Never",
            "containers": [container],
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        }
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": self.name,
                "labels": {naming.MANAGED_BY: naming.MANAGER},
                "annotations": dict(annotations),
            },
            "spec": {"suspend": True, "template": {"spec": pod}},
        }


async def serve(heartbeat: Heartbeat, port: int) -> web.AppRunner:
    """Answer /healthz and /readyz on a port; the runner that stops it."""

    async def answer(_: web.Request) -> web.Response:
        role = "leader" if heartbeat.leading else "standby"
        if heartbeat.healthy:
            return web.Response(text=f"ok ({role})\n")
        return web.Response(
            status=503, text=f"{role}: the API server has been silent for {SILENT_SECONDS:.0f} s\n"
        )

    app = web.Application()
    app.router.add_get("/healthz", answer)
    app.router.add_get("/readyz", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", port).start()
    return runner
