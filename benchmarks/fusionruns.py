"""The operator under load: successor latency, writes, submit rate, memory, restart, idle calls, status size.

On ../shared/kube with kwok's fake nodes; the stages are played (tests/cluster/stagehand.py). Peers' figures
are those their projects publish, or were measured elsewhere: they cannot run here. `--runs 100,1000` sets the
loads, `--quick` is a smoke run.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import sys
import tempfile
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
from harness import Row, publish, quick

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fusechat.plan import plan
from fusechat.spec import load
from fusechat.store import Manifest
from fusechat_operator import naming
from kubernetes import client, config, watch

from tests.cluster import plane as planes
from tests.cluster.sizes import LONGEST_NAME, status_of
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
    rows: list[Row] = field(default_factory=list)

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


def latencies(bench: Bench, count: int) -> tuple[list[float], float, float]:
    """(seconds from a step's end to its successor's Job, writes and events a transition) of `count` runs."""
    namespace = bench.plane.namespace()
    runs = [shaped(f"measured-{i}", next(bench.lengths), namespace) for i in range(count)]
    before = bench.counts()
    with watching(bench, namespace) as seen:
        for run in runs:
            bench.submit([run])
            time.sleep(1.0)
        for run in runs:
            bench.plane.until(run["metadata"]["name"], namespace=namespace, seconds=300)
    after = bench.counts()
    found = []
    for run in runs:
        for step in plan(load(run)).steps:
            inputs = [(run["metadata"]["name"], name) for name in step.inputs.values()]
            ends = [seen.done[key] for key in inputs if key in seen.done]
            key = (run["metadata"]["name"], step.name)
            if ends and key in seen.came:
                found.append(max(0.0, seen.came[key] - max(ends)))
    moved = {key: after[key] - before.get(key, 0.0) for key in after}
    transitions = len(seen.done) + count  # the start of a run is one too
    writes = moved.get(("POST", "jobs"), 0) + moved.get(("PUT", "fusionruns/status"), 0)
    return found, writes / transitions, moved.get(("POST", "events"), 0) / transitions


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


def restart(bench: Bench) -> tuple[float, float, float]:
    """(seconds to the first look, to the last active run looked at, Jobs created by it) of a fresh process.

    Runs that rest need no look: the list that it begins with says so.
    """
    bench.operator.kill()
    begun = time.monotonic()
    bench.operator = planes.start_operator(bench.plane, "bench", **ENDLESS)
    first, last = 0.0, 0.0

    def done() -> bool:
        nonlocal first, last
        try:
            looks, due = bench.looks(), bench.told("queue_depth")
        except OSError:
            return False
        now = time.monotonic() - begun
        first = first or (now if looks else 0.0)
        if looks < bench.held or due > 5:
            last = 0.0
            return False
        last = last or now
        return now - last > 2

    bench.plane.wait("every active run was looked at", done, 600)
    return first, last, jobs_created(bench)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="1,20" if quick() else "1,100,1000", help="active runs")
    parser.add_argument("--finished", type=int, default=20 if quick() else 1000, help="finished runs")
    parser.add_argument("--measured", type=int, default=2 if quick() else 6, help="runs that are timed")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--quick", action="store_true")
    told = parser.parse_args()
    loads = [int(text) for text in told.runs.split(",")]
    planes.Stagehand = Holding  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder, planes.running_plane(Path(folder), "", 5) as made:
        operator = planes.start_operator(made, "bench", **ENDLESS)
        objects = client.CustomObjectsApi(config.new_client_from_config(made.kubeconfig))
        bench = Bench(made, operator, objects, iter(range(100, 10**6)))
        try:
            made.wait("it leads", lambda: "leading as" in operator.log.read_text(), 60)
            carry_out(bench, loads, told)
        finally:
            bench.operator.stop()
    publish("fusionruns", bench.rows, notes(loads, told))


def carry_out(bench: Bench, loads: list[int], told: argparse.Namespace) -> None:
    publish_fetches(bench)
    empty = bench.rss()
    for count in loads:
        rate, cost = hold(bench, count)
        found, writes, events = latencies(bench, told.measured)
        bench.rows += [latency_row(count, sorted(found)), writes_row(count, writes, events)]
        listens = "186 MB: a kopf operator that only listens, at 5,000"
        what = f"RSS, peak RSS with {count:,} active runs ({empty:.0f} MB with none)"
        size = f"{bench.rss():.0f}, {bench.peak():.0f} MB"
        bench.rows.append(Row(what, listens, size, "-", "<= 200, 300 MB at 5,000", None))
    peer = "Argo: 270 untuned, 810 tuned"
    a_core = f"{1000 * cost:.0f} ms of the operator's CPU a run: {60 / cost:,.0f} on a core of its own"
    alone = f"{rate:,.0f} ({a_core})"
    bench.rows.append(
        Row("runs submitted a minute", peer, alone, f"{rate / 810:.1f}x", ">= 1,500", rate >= 1500)
    )
    finished(bench, told.finished)
    now, peak = bench.rss(), bench.peak()
    what = f"RSS, peak RSS with {loads[-1]:,} active and {told.finished:,} finished runs"
    size, bar = f"{now:.0f}, {peak:.0f} MB", "<= 200, 300 MB at 5,000; flat in finished steps"
    listens = "357, 504 MB: kopf with a Job each in memory, at 5,000"
    bench.rows.append(Row(what, listens, size, "-", bar, now <= 200 and peak <= 300))
    bench.rows += [
        *restart_rows(bench, loads[-1] + told.finished),
        idle_row(bench, told.finished),
        status_row(),
    ]


def latency_row(count: int, found: list[float]) -> Row:
    p99 = found[min(len(found) - 1, int(0.99 * len(found)))]
    ours = f"median {statistics.median(found):.2f} s, p99 {p99:.2f} s of {len(found)}"
    what = f"a step ends -> its successor's Job exists, {count:,} active runs"
    return Row(what, "Argo requeues after 10 s", ours, f"{10 / p99:.0f}x", "p99 < 1 s", p99 < 1)


def writes_row(count: int, writes: float, events: float) -> Row:
    ours = f"{writes:.2f} (creates and status), {events:.2f} Events"
    what = f"API writes per step transition, {count:,} active runs"
    return Row(what, "-", ours, "-", "<= 2, 1 Event", writes <= 2.05 and events <= 1.05)


def restart_rows(bench: Bench, total: int) -> list[Row]:
    first, last, created = restart(bench)
    what = f"restart with {total:,} runs: first look, last active run looked at, duplicate children"
    ours = f"{first:.1f} s, {last:.1f} s, {created:.0f}"
    now, peak = bench.rss(), bench.peak()
    met = first < 5 and created == 0
    return [
        Row(what, "kopf's indexes: ~N^1.8", ours, "-", "first < 5 s, 0", met),
        Row(
            f"RSS, peak RSS after a restart with {total:,} runs",
            "357, 504 MB: kopf with a Job each in memory, at 5,000",
            f"{now:.0f}, {peak:.0f} MB",
            "-",
            "<= 200, 300 MB at 5,000",
            now <= 200 and peak <= 300,
        ),
    ]


def idle_row(bench: Bench, count: int) -> Row:
    """Only finished runs are left, and nobody does anything."""
    seconds = 20 if quick() else 60
    bench.plane.kubectl("delete", "fusionruns", "--all", "-n", "default", "--wait=false")
    jobs = ("get", "jobs", "-n", "default", "-o", "name")
    bench.plane.wait("their children are gone", lambda: not bench.plane.kubectl(*jobs).strip(), 900)
    bench.calm()
    before = bench.counts()
    time.sleep(seconds)
    after = bench.counts()
    moved = {key: after[key] - before.get(key, 0) for key in after if key[1] != "leases"}
    beats = moved.pop(("PATCH", "jobs"), 0)
    calls = sum(moved.values()) / seconds * 60
    what = f"API calls a minute at {count:,} finished runs (Lease and {beats:.0f} heartbeats apart)"
    return Row(what, "-", f"{calls:.0f}", "-", "near 0", calls < 10)


def status_row() -> Row:
    """A status of 50 sources and two benchmarks, as the API server keeps it, at any length of names."""
    done, active = (max(status_of(50, end, n) for n in range(3, LONGEST_NAME + 1)) for end in (True, False))
    ours, most = f"{done / 1024:.1f} KB, {active / 1024:.1f} KB", max(done, active)
    what = "status of a run with 50 sources, largest: all done, all active"
    return Row(what, "Argo offloads to a database", ours, "-", "< 32 KB", most < 32 * 1024)


def notes(loads: list[int], told: argparse.Namespace) -> list[str]:
    return [
        "Shape: one source, 8 steps after the shared fetches, one block a step, launcher Job, children on 5 "
        f"fake nodes; an active run has 2 running children; {told.measured} runs are timed at each load.",
        "API server, etcd, controllers, kwok, S3, what plays the stages and the operator share two cores.",
        "Argo's figures are those of its own benchmarks, not of this machine.",
    ]


if __name__ == "__main__":
    main()
