"""`python -m fusechat_operator`: one replica, from its environment to its end.

Waits for the Lease, then watches and reconciles until SIGTERM. Losing the Lease ends the process at once:
another replica works by then. Never imports torch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import start_http_server

from fusechat_operator import handlers, lease, settings
from fusechat_operator.artifacts import Artifacts
from fusechat_operator.cluster import ApiRefusal, Cluster
from fusechat_operator.engine import Engine
from fusechat_operator.health import Heartbeat, serve
from fusechat_operator.metrics import Metrics

log = logging.getLogger("fusechat")

STOP_SECONDS = 3.0
"""How long the tasks of a leader may take to end; there is nothing that they must still do."""

LAUNCHERS_SECONDS = 60.0


def main() -> int:
    """Run one replica; the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("kopf", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        told = settings.read(os.environ)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 64
    return asyncio.run(_replica(told))


async def _replica(told: settings.Settings) -> int:
    try:
        cluster = await Cluster.connect(told.api_qps, told.api_burst)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 64
    metrics = Metrics()
    cluster.counted = lambda method, what: metrics.requests.labels(method, what).inc()
    start_http_server(told.metrics_port, registry=metrics.registry)
    heartbeat = Heartbeat(cluster, told)
    health = await serve(heartbeat, told.health_port)
    stop = asyncio.Event()

    def obey_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)

    obey_signals()
    waiting = asyncio.create_task(stop.wait())
    leading = asyncio.create_task(_lead(cluster, told, metrics, heartbeat, obey_signals, stop))
    await asyncio.wait({waiting, leading}, return_when=asyncio.FIRST_COMPLETED)
    if leading.done() and not leading.result():
        log.error("the Lease was lost; another replica leads")
        os._exit(1)
    leading.cancel()
    _, stuck = await asyncio.wait({leading}, timeout=STOP_SECONDS)
    await lease.give_back(cluster, told)
    if stuck:
        os._exit(0)  # kopf, cancelled while it starts, asks a closed session for a minute
    await health.cleanup()
    await cluster.close()
    return 0


async def _lead(
    cluster: Cluster,
    told: settings.Settings,
    metrics: Metrics,
    heartbeat: Heartbeat,
    obey_signals: Callable[[], None],
    stop: asyncio.Event,
) -> bool:
    engine = Engine(cluster, Artifacts(told), told, metrics)

    async def work() -> None:
        heartbeat.leading = True
        heartbeat.heard_at = heartbeat.read_at
        metrics.leader.set(1)
        log.info("leading as %s", told.identity)
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(engine.run()), group.create_task(heartbeat.beat())]
            others.append(group.create_task(stop_at_another_launcher(cluster, stop)))
            # All tasks are cancelled together: kopf waits 5 s for whatever tasks it finds when it ends.
            watching = group.create_task(handlers.watch(engine, heartbeat, told, obey_signals))
            watching.add_done_callback(lambda _: [other.cancel() for other in others])

    return await lease.lead(cluster, told, work, heartbeat.lease_was_read)


async def stop_at_another_launcher(cluster: Cluster, stop: asyncio.Event) -> None:
    """kopf looks once, when it starts, which kinds there are to watch; one that comes later is not seen."""
    watched: set[str] = set()
    while not stop.is_set():
        with suppress(ApiRefusal, OSError):
            found = set(await cluster.kinds())
            watched = watched or found
            if came := sorted(found - watched):
                log.info("%s came; this process ends, for only one that begins can watch it", ", ".join(came))
                stop.set()
        await asyncio.sleep(LAUNCHERS_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
