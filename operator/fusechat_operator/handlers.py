"""kopf's decorators and nothing else: every watch event only says which run to look at.

The only importer of kopf. Events are triggers; nothing of them is kept, for a relist says nothing of what
vanished.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import kopf

from fusechat_operator import naming
from fusechat_operator.engine import Engine
from fusechat_operator.health import Heartbeat
from fusechat_operator.settings import Settings

CHUNK = 200
"""Objects of a list that are in memory at once: all of 3,000 runs took 300 MB more."""


def registry(engine: Engine, heartbeat: Heartbeat) -> kopf.OperatorRegistry:
    """Handlers that feed one engine."""
    made = kopf.OperatorRegistry()

    @kopf.on.login(registry=made)
    def login(**told: Any) -> Any:
        return kopf.login_with_service_account(**told) or kopf.login_with_kubeconfig(**told)

    @kopf.on.event("fusechat.io", "v1alpha1", "fusionruns", registry=made)
    async def run_changed(type: str | None, body: Any, name: str, namespace: str | None, **_: Any) -> None:
        engine.run_changed(str(namespace), name, None if type == "DELETED" else body)

    for kind, api in naming.API_VERSIONS.items():
        group, version = api.split("/")

        @kopf.on.event(group, version, naming.PLURALS[kind], registry=made, id=f"{kind}-changed")
        async def child_changed(body: Any, name: str, namespace: str | None, labels: Any, **_: Any) -> None:
            if heartbeat.is_echo(body):
                heartbeat.heard(body)
            elif naming.RUN in labels:
                engine.child_changed(str(namespace), name, labels[naming.RUN])

    return made


class NoDifferences(kopf.DiffBaseStorage):
    """No handler asks what has changed; without this kopf copies every object twice to find out."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        return None


def settings(told: Settings) -> kopf.OperatorSettings:
    """Watches only; no finalizers, no annotations, no posts, no peering of kopf's own."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    made.peering.standalone = True
    made.scanning.disabled = True
    made.execution.max_workers = 2
    made.watching.inactivity_timeout = 70.0
    made.watching.connect_timeout = 10.0
    made.watching.chunk_size = CHUNK
    # A worker that idles holds one of the places: a second each would let a restart see 200 objects a second.
    made.queueing.idle_timeout = 0.05
    made.queueing.worker_limit = 200
    made.persistence.diffbase_storage = NoDifferences()
    for kind, api in naming.API_VERSIONS.items():
        made.watching.label_selectors[api.split("/")[0], naming.PLURALS[kind]] = naming.SELECTOR
    return made


async def watch(
    engine: Engine, heartbeat: Heartbeat, told: Settings, obey_signals: Callable[[], None]
) -> None:
    """Watch until cancelled. kopf takes the signals for itself; `obey_signals` takes them back at once."""
    ours = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=registry(engine, heartbeat),
        settings=settings(told),
        standalone=True,
        clusterwide=not told.namespaces,
        namespaces=[*told.namespaces, told.namespace] if told.namespaces else [],
    )
    obey_signals()
    await kopf.run_tasks(tasks, ignored=ours)
