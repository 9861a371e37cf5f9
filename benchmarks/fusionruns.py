"""The operator under load: successor latency, writes, submit rate, memory, restart, idle calls, status size.

On ../shared/kube with kwok's fake nodes; the stages are played (tests/cluster/stagehand.py). Peers' figures
are those their projects publish, or were measured elsewhere: they cannot run here. `--runs 100,1000` sets the
loads, `--quick` is a smoke run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from harness import Row, publish, quick

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fusechat.plan import plan
from fusechat.spec import load
from kubernetes import client, config

from tests.cluster import plane as planes
from tests.cluster.load import (
    ENDLESS,
    Bench,
    Holding,
    finished,
    hold,
    jobs_created,
    publish_fetches,
    shaped,
    watching,
)
from tests.cluster.sizes import LONGEST_NAME, status_of


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
            rows = carry_out(bench, loads, told)
        finally:
            bench.operator.stop()
    publish("fusionruns", rows, notes(loads, told))


def carry_out(bench: Bench, loads: list[int], told: argparse.Namespace) -> list[Row]:
    publish_fetches(bench)
    empty, rows = bench.rss(), []
    for count in loads:
        rate, cost = hold(bench, count)
        found, writes, events = latencies(bench, told.measured)
        rows += [latency_row(count, sorted(found)), writes_row(count, writes, events)]
        rows.append(memory_row(bench, f"with {count:,} active runs ({empty:.0f} MB with none)", count))
    rows.append(submit_row(rate, cost))
    finished(bench, told.finished)
    total = loads[-1] + told.finished
    rows.append(memory_row(bench, f"with {loads[-1]:,} active and {told.finished:,} finished runs", total))
    rows += [*restart_rows(bench, total), idle_row(bench, told.finished), status_row()]
    return rows


def memory_row(bench: Bench, when: str, runs: int) -> Row:
    """Judged at 5,000 runs."""
    now, peak = bench.rss(), bench.peak()
    met = now <= 200 and peak <= 300 if runs >= 5000 else None
    peer = "357, 504 MB: kopf with a Job each in memory, at 5,000"
    ours = f"{now:.0f}, {peak:.0f} MB"
    return Row(f"RSS, peak RSS {when}", peer, ours, "-", "<= 200, 300 MB at 5,000", met)


def submit_row(rate: float, cost: float) -> Row:
    """`rate`: runs a minute; `cost`: seconds of the operator's CPU a run."""
    a_core = f"{1000 * cost:.0f} ms of the operator's CPU a run: {60 / cost:,.0f} on a core of its own"
    ours, peer = f"{rate:,.0f} ({a_core})", "Argo: 270 untuned, 810 tuned"
    return Row("runs submitted a minute", peer, ours, f"{rate / 810:.1f}x", ">= 1,500", rate >= 1500)


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
    met = first < 5 and created == 0
    return [
        Row(what, "kopf's indexes: ~N^1.8", ours, "-", "first < 5 s, 0", met),
        memory_row(bench, f"after a restart with {total:,} runs", total),
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
