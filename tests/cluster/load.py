"""A control plane full of FusionRuns and the operator that works them: what benchmarks/fusionruns.py drives.

Runs come in three kinds: held (their first children never end: the active load), measured, finished (cached
through and through). Counts requests and memory; knows nothing of rows and bars.
"""

from __future__ import annotations

import copy
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from fusechat.plan import plan
from fusechat.spec import load
from fusechat.store import Manifest
from fusechat_operator import naming
from kubernetes import client, config, watch

from tests.cluster import plane as planes
from tests.cluster.stagehand import METRICS, a_run

GROUP = ("fusechat.io", "v1alpha1")
ENDLESS = {
    "FUSECHAT_POD_ANNOTATIONS": '{"fusechat.io/seconds": "1000000s"}',
    "FUSECHAT_POLL_SECONDS": "30",  # as shipped; the tests are more impatient
}
HELD = "held"
"""Name prefix of runs whose first children never end: the active load."""


class Holding(planes.Stagehand):
    """A stagehand that lets the Pods of held runs run for ever."""

    def _look(self, pod: Any) -> None:
        if not pod.metadata.labels[naming.RUN].startswith(HELD):
            super()._look(pod)


def shaped(name: str, length: int, namespace: str) -> dict[str, Any]:
    """A run of one source whose models all runs share and whose extraction nobody else has."""
    small = {stage: {"cpu": "10m", "memory": "64Mi"} for stage in ("extract", "align", "filter", "fuse")}
    run = a_run(
        "shared",
        sources=1,
        namespace=namespace,
        extract={"maxLength": length},
        launcher="Job",
        resources=small,
    )  # so small that thousands have room: what waits for a node is not measured
    run["metadata"]["name"] = name
    return run


@dataclass
class Bench:
    """A plane, an operator and what is counted."""

    plane: planes.Plane
    operator: planes.Operator
    objects: client.CustomObjectsApi
    lengths: Iterator[int]
    held: int = 0

    def submit(self, runs: list[dict[str, Any]]) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda r: self.objects.create_namespaced_custom_object(
                *GROUP, r["metadata"]["namespace"], "fusionruns", r), runs))  # fmt: skip

    def counts(self) -> dict[tuple[str, str], float]:
        """Requests so far by (method, resource)."""
        url = f"http://127.0.0.1:{self.operator.metrics}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        found = re.findall(
            r'fusechat_api_requests_total{method="(\w+)",resource="([\w/]+)"} ([\d.e+]+)', text
        )
        return {(method, resource): float(count) for method, resource, count in found}

    def told(self, name: str) -> float:
        """A metric without labels."""
        url = f"http://127.0.0.1:{self.operator.metrics}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        return float(re.search(rf"^fusechat_{name} ([\d.e+]+)", text, re.M)[1])  # type: ignore[index]

    def looks(self) -> float:
        return self.told("reconcile_seconds_count")

    def calm(self) -> None:
        """Wait until what came is worked off: for some seconds nothing is due but polls now and then."""

        def quiet() -> bool:
            depths = []
            for _ in range(5):
                depths.append(self.told("queue_depth"))
                time.sleep(0.5)
            return max(depths) < 10

        self.plane.wait("the operator is calm", quiet, 600)

    def cpu(self) -> float:
        """Seconds of CPU that the operator's process has used."""
        return sum(psutil.Process(self.operator.process.pid).cpu_times()[:2])

    def rss(self) -> float:
        """MB of the operator's process."""
        return psutil.Process(self.operator.process.pid).memory_info().rss / 1e6

    def peak(self) -> float:
        """MB of the operator's process at its largest so far."""
        told = Path(f"/proc/{self.operator.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", told)[1]) * 1024 / 1e6  # type: ignore[index]


def publish_fetches(bench: Bench, everything: bool = False) -> None:
    """The shared models lie in the store already; with `everything`, one whole run does."""
    run = shaped("any", 64, "default")
    made = plan(load(run))
    for step in made.steps:
        if everything or step.stage == "fetch":
            bench.plane.store.publish(Manifest(
                str(step.address), step.stage, step.version, made.profile, step.params, {}, (),
                METRICS.get(step.stage, {}), True, {}, "given", "2026-01-01T00:00:00Z", {}))  # fmt: skip


def hold(bench: Bench, count: int) -> tuple[float, float]:
    """Bring the number of active runs up to `count`.

    (Runs a minute from the first apply to the last child, seconds of the operator's CPU a run.)
    """
    new = count - bench.held
    if new <= 0:
        return 0.0, 0.0
    spent = bench.cpu()
    runs = [shaped(f"{HELD}-{bench.held + i}", next(bench.lengths), "default") for i in range(new)]
    begun, before = time.monotonic(), jobs_created(bench)
    bench.submit(runs)
    bench.plane.wait("all have children", lambda: jobs_created(bench) - before >= 2 * new, 1800)
    bench.held = count
    took, spent = time.monotonic() - begun, bench.cpu() - spent
    bench.calm()
    bench.plane.wait("all that began is written", lambda: not statuses_written(bench, 10), 600)
    return new / took * 60, spent / new


def statuses_written(bench: Bench, seconds: float) -> float:
    """In so many seconds from now."""
    key, before = ("PUT", "fusionruns/status"), bench.counts()
    time.sleep(seconds)
    return bench.counts().get(key, 0.0) - before.get(key, 0.0)


def jobs_created(bench: Bench) -> float:
    return bench.counts().get(("POST", "jobs"), 0.0)


@dataclass
class Seen:
    """When each step's Job came and was complete, by (run, step)."""

    came: dict[tuple[str, str], float] = field(default_factory=dict)
    done: dict[tuple[str, str], float] = field(default_factory=dict)


@contextmanager
def watching(bench: Bench, namespace: str) -> Iterator[Seen]:
    """Watch the Jobs of a namespace."""
    seen, ended = Seen(), threading.Event()
    jobs = client.BatchV1Api(config.new_client_from_config(bench.plane.kubeconfig))

    def follow() -> None:
        version = "0"
        while not ended.is_set():
            for event in watch.Watch().stream(
                jobs.list_namespaced_job, namespace, timeout_seconds=2, resource_version=version
            ):
                now, found = time.monotonic(), event["raw_object"]
                version, labels = found["metadata"]["resourceVersion"], found["metadata"]["labels"]
                key = (labels[naming.RUN], labels[naming.STEP])
                seen.came.setdefault(key, now)
                true = [c["type"] for c in found["status"].get("conditions", ()) if c["status"] == "True"]
                if "Complete" in true:
                    seen.done.setdefault(key, now)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    yield seen
    ended.set()
    thread.join()


def finished(bench: Bench, count: int) -> None:
    """`count` runs that are cached through and through."""
    publish_fetches(bench, everything=True)
    namespace = bench.plane.namespace()
    runs = [copy.deepcopy(shaped(f"done-{i}", 64, namespace)) for i in range(count)]
    bench.submit(runs)

    left = [run["metadata"]["name"] for run in runs]

    def ended() -> bool:
        # One by one: a list of thousands, asked again and again, would be a load of its own.
        while left:
            found = bench.objects.get_namespaced_custom_object(*GROUP, namespace, "fusionruns", left[-1])
            if not found.get("status", {}).get("finished"):
                return False
            left.pop()
        return True

    bench.plane.wait("all are done", ended, 3600)
