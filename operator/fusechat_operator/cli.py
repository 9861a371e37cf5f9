"""`fusechat cluster status | retry | suspend | resume | logs | gc`: FusionRuns on the kubeconfig's cluster.

core finds `add` by the entry point `fusechat.commands`, at every start: the API client is imported
only when a command needs it. All that is known of a run is in its status, which this prints.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from fusechat.cli import gc_options
from fusechat.errors import Unavailable, UsageError
from fusechat.plan import plan
from fusechat.spec import load

from fusechat_operator import memory, naming

if TYPE_CHECKING:
    from fusechat_operator.cluster import Cluster

Command = Callable[["Cluster", argparse.Namespace, dict[str, Any]], Awaitable[int]]
FOLLOW_SECONDS = 2.0


def add(commands: Any) -> None:
    """Add `cluster` and its commands to core's parser."""
    parser = commands.add_parser("cluster", help="status, logs, retry, ... of a FusionRun on a cluster")
    under = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    status = _add(under, "status", _status, "print the steps, what is stuck and why, and the scores")
    status.add_argument("-w", "--watch", action="store_true", help="again and again until the run has ended")
    _add(under, "retry", _retry, "begin again what failed or is stuck")
    _add(under, "suspend", _suspend, "stop what runs, with a checkpoint")
    _add(under, "resume", _resume, "go on after suspend")
    logs = _add(under, "logs", _logs, "print the logs of a step's Pods that are still there")
    logs.add_argument("step", metavar="STEP", help="name as in `fusechat cluster status`")
    text = "as `fusechat gc`, and without what only runs need that are no more on this cluster"
    gc = under.add_parser("gc", help=text, description=text)
    gc.add_argument(
        "--store", required=True, help="s3://bucket/prefix: the chart's store.uri, or a run's own"
    )
    gc.add_argument("--cluster", required=True, metavar="NAME", help="the chart's clusterName")
    gc_options(gc)
    gc.set_defaults(command=lambda told: asyncio.run(_connected(_gc, told)))


def _add(under: Any, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = under.add_parser(name, help=text, description=text)
    parser.add_argument("run", metavar="RUN", help="name of the FusionRun")
    parser.add_argument("-n", "--namespace", default="default", help="its namespace (default: default)")

    async def of_run(cluster: Cluster, told: argparse.Namespace) -> int:
        return await command(cluster, told, await _found(cluster, told))

    parser.set_defaults(command=lambda told: asyncio.run(_connected(of_run, told)))
    return parser


async def _connected(
    command: Callable[[Cluster, argparse.Namespace], Awaitable[int]], told: argparse.Namespace
) -> int:
    from fusechat_operator.cluster import ApiRefusal, Cluster

    try:
        cluster = await Cluster.connect(qps=20, burst=40)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        return await command(cluster, told)
    except ApiRefusal as error:
        raise UsageError(f"the API server refuses: {error}") from error
    except OSError as error:
        raise Unavailable(str(error)) from error
    finally:
        await cluster.close()


async def _found(cluster: Cluster, told: argparse.Namespace) -> dict[str, Any]:
    found = await cluster.run(told.namespace, told.run) if told.run and told.namespace else None
    if found is None:
        raise UsageError(
            f"no FusionRun {told.run!r} in namespace {told.namespace}; see `kubectl get fusionruns -A`"
        )
    return found


async def _status(cluster: Cluster, told: argparse.Namespace, found: dict[str, Any]) -> int:
    print(text(found))
    while told.watch and _outcome(found) == "Unknown":
        await asyncio.sleep(FOLLOW_SECONDS)
        before, found = found, await _found(cluster, told)
        if text(found) != text(before):
            print(f"\n{text(found)}", flush=True)
    return 1 if _outcome(found) == "False" else 0


async def _retry(cluster: Cluster, told: argparse.Namespace, found: dict[str, Any]) -> int:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    note = {"metadata": {"annotations": {naming.RETRY_AT: now}}}
    await cluster.change(found, note)
    lines = memory.lines_of(found.get("status", {}))
    failed = [line["name"] for line in lines if line["state"] == "Failed"]
    print(f"{told.run}: begins again: {', '.join(failed) or 'all that is published is kept'}")
    return 0


async def _suspend(cluster: Cluster, told: argparse.Namespace, found: dict[str, Any]) -> int:
    await cluster.change(found, {"spec": {"suspend": True}})
    print(f"{told.run}: suspended; `fusechat cluster resume {told.run} -n {told.namespace}` goes on")
    return 0


async def _resume(cluster: Cluster, told: argparse.Namespace, found: dict[str, Any]) -> int:
    await cluster.change(found, {"spec": {"suspend": False}})
    print(f"{told.run}: goes on")
    return 0


async def _logs(cluster: Cluster, told: argparse.Namespace, found: dict[str, Any]) -> int:
    lines = {line["name"] for line in memory.lines_of(found.get("status", {}))}
    if told.step not in lines:
        raise UsageError(f"no step {told.step!r} in {told.run}; there are: {', '.join(sorted(lines))}")
    shown = 0
    async for name, log in cluster.logs(told.namespace, str(found["metadata"]["uid"]), told.step):
        print(f"==> {name}")
        sys.stdout.write(log)
        shown += 1
    if not shown:
        where = _artifact(found, told.step)
        print(f"no Pod of {told.step} is left; the logs of all its attempts lie under {where}/logs/")
    return 0


def _artifact(found: Mapping[str, Any], name: str) -> str:
    """Where a step's artifact lies: its detail says so while it is at work, later its address does."""
    told, known = found["status"], memory.read(found["status"])
    if name == "report":
        return str(told.get("report", "its artifact"))
    made = plan(load(found), known.pins, known.versions)
    address = next((step.address for step in made.steps if step.name == name), None)
    detail, store = known.details.get(name, {}), known.store.partition(" ")[0]  # without its endpoint
    return str(detail.get("artifact") or (f"{store}/{address}" if address else "its artifact"))


async def _gc(cluster: Cluster, told: argparse.Namespace) -> int:
    from fusechat import store_gc
    from fusechat.store import Store

    store = Store(told.store)
    referred = store_gc.runs_of(store, told.cluster)  # before the runs: one that is made meanwhile is kept
    there = await _uids(cluster)
    gone = sorted(key for uid, key in referred.items() if uid not in there)
    if gone and len(gone) == len(referred):
        raise UsageError(
            f"none of the {len(gone)} runs of {told.cluster!r} in {told.store} is on this cluster; is this "
            "kubeconfig another cluster's? If really all of them are deleted, name each to "
            f"`fusechat gc --drop-ref {gone[0]}`"
        )
    for key in gone:
        print(f"its run is gone: {key}")
    print(store_gc.collect(store, gone, told.days, delete=told.delete))
    return 0


async def _uids(cluster: Cluster) -> set[str]:
    """Of all FusionRuns in all namespaces."""
    from fusechat_operator.cluster import RUNS

    found: set[str] = set()
    query = {"limit": "200"}
    while True:
        listed = await cluster.request("GET", f"{RUNS}/fusionruns", query=query)
        found |= {item["metadata"]["uid"] for item in listed["items"]}
        if not (left := listed["metadata"].get("continue")):
            return found
        query = {"limit": "200", "continue": left}


def text(found: Mapping[str, Any]) -> str:
    """A run's status for a terminal."""
    status = found.get("status", {})
    details = {d["name"]: d for d in status.get("details", ())}
    lines = [_line(line, details.get(line["name"], {})) for line in memory.lines_of(status)]
    for score in status.get("scores", ()):
        limits = f" ({score['low']:.3f} to {score['high']:.3f})" if "low" in score and "high" in score else ""
        lines.append(f"{score['benchmark']:<12} {score['subject']:<28} {score['score']:.3f}{limits}")
    if "model" in status:
        lines.append(f"model   {status['model']}")
    if "report" in status:
        lines.append(f"report  {status['report']}")
    ready = _condition(found, "Ready")
    message = ready.get("message", "no operator has looked at it yet; see that one runs")
    return "\n".join([*lines, f"{found['metadata']['name']}: {ready.get('reason', 'New')}: {message}"])


def _line(line: Mapping[str, Any], detail: Mapping[str, Any]) -> str:
    percent = f"{detail['percent']:.0f} %" if "percent" in detail else ""
    left = f"{detail['etaSeconds']} s left" if "etaSeconds" in detail else ""
    facts = [percent, detail.get("rate", ""), left, detail.get("shards", ""), detail.get("message", "")]
    told = "  ".join(str(fact) for fact in facts if fact)
    return f"{line['name']:<32} {line['state']:<10} {line.get('address', ''):<16}  {told}".rstrip()


def _condition(found: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    listed = found.get("status", {}).get("conditions", ())
    return next((c for c in listed if c["type"] == kind), {})


def _outcome(found: Mapping[str, Any]) -> str:
    """True, False or Unknown; of the generation that the object has now."""
    condition = _condition(found, "Succeeded")
    current = condition.get("observedGeneration") == found["metadata"].get("generation")
    return str(condition.get("status", "Unknown")) if current else "Unknown"
