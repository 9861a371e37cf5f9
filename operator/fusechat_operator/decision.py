"""What one look at a run leads to: a Decision, and the Event that tells people of it. Pure.

Made by reconcile, carried out by the engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusechat_operator import naming
from fusechat_operator.children import Child
from fusechat_operator.conditions import Verdict
from fusechat_operator.facts import Ask
from fusechat_operator.memory import Line, Memory
from fusechat_operator.scan_lines import Scan
from fusechat_operator.tally import NOTHING, Tally


@dataclass(frozen=True)
class Event:
    """`kind` is Normal or Warning, `reason` CamelCase."""

    kind: str
    reason: str
    message: str


def event_object(event: Event, found: Mapping[str, Any], now: str) -> dict[str, Any]:
    """The API server's object; the same thing said of the same run again has the same name."""
    meta = found["metadata"]
    digest = hashlib.sha256(f"{meta['uid']}{event.reason}{event.message}".encode()).hexdigest()[:16]
    about = {k: meta[k] for k in ("name", "namespace", "uid", "resourceVersion")}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{meta['name']}.{digest}",
            "namespace": meta["namespace"],
            "labels": {naming.MANAGED_BY: naming.MANAGER},
        },
        "involvedObject": {"apiVersion": found["apiVersion"], "kind": found["kind"], **about},
        "type": event.kind,
        "reason": event.reason,
        "message": event.message[:1024],
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": "fusechat-operator"},
        "reportingComponent": "fusechat.io/operator",
    }


@dataclass(frozen=True)
class Decision:
    """In the order it is carried out: stop, documents, notes, forget, create, status, keep, delete, events.

    `stop` are children that must go whatever has become of them since: before the status, which may say that
    nothing more is to be done, and before any question of the same decision is answered; `delete` go only as
    they were looked at. `notes` are documents that nothing waits for. `keep` are failed children that the
    cluster must not clear away; `again` is in seconds.
    """

    asks: frozenset[Ask] = frozenset()
    stop: tuple[Child, ...] = ()
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    forget: tuple[str, ...] = ()
    create: tuple[Mapping[str, Any], ...] = ()
    status: Mapping[str, Any] | None = None
    delete: tuple[Child, ...] = ()
    keep: tuple[Child, ...] = ()
    events: tuple[Event, ...] = ()
    again: float | None = None
    shared: tuple[str, ...] = ()
    tally: Tally = NOTHING


def events(before: Memory, scan: Scan, verdict: Verdict, errors: Mapping[str, str]) -> tuple[Event, ...]:
    """At most one event a pass: the strongest of what changed, with the rest in its sentence."""
    changed = {n: line for n, line in scan.lines.items() if line.state != before.lines.get(n, Line(n)).state}
    failed = [f"{n} failed: {errors.get(n, '')}" for n, line in changed.items() if line.state == "Failed"]
    done = [n for n, line in changed.items() if line.state == "Succeeded"]
    started = [n for n, line in changed.items() if line.state == "Running"]
    cached = [n for n, line in changed.items() if line.state == "Cached"]
    stopped = [f"{n} {scan.waits.get(n, '')}" for n in scan.stopped]
    retried = [
        f"{n}: {scan.waits.get(n, '')}"
        for n, line in scan.lines.items()
        if line.ended and line.ended != before.lines.get(n, Line(n)).ended and line.state == "Waiting"
    ]
    parts = [*failed, *retried, *stopped]
    parts += [f"{', '.join(done)} succeeded"] if done else []
    parts += [f"started {', '.join(started)}"] if started else []
    parts += [f"{len(cached)} steps are cached"] if cached else []
    ready = before.conditions.get("Ready", {})
    if verdict.state in ("Succeeded", "Stalled", "Suspended") and ready.get("reason") != verdict.reason:
        kind = "Warning" if verdict.state == "Stalled" else "Normal"
        return (Event(kind, verdict.reason, "; ".join([verdict.message, *parts])[:1000]),)
    if not parts:
        return ()
    reason = (
        "StepFailed" if failed else "StepRetried" if retried else "StepSucceeded" if done else "StepStarted"
    )
    if not (failed or retried or done or started):
        reason = "StepStoppedByQueue" if stopped else "StepCached"
    return (Event("Warning" if failed or retried else "Normal", reason, "; ".join(parts)[:1000]),)
