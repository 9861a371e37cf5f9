"""What Kueue says of a child: its Workload -> one sentence why it waits, or why it is given up. Pure.

Read by cluster, used by scan. A child with a queue is created suspended and only Kueue lets it run, so that
waiting bypasses no quota; what is left to find out is whether anyone will ever take it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusechat_operator.children import Child

Object = Mapping[str, Any]

EVICTIONS = {
    "Preempted": "was preempted",
    "PodsReadyTimeout": "was stopped by its queue because its Pods did not all start in time",
    "AdmissionCheck": "was stopped by an admission check of its queue",
    "ClusterQueueStopped": "was stopped because its ClusterQueue is stopped",
    "LocalQueueStopped": "was stopped because its LocalQueue is stopped",
    "Deactivated": "was taken out of its queue: its Workload is not active",
}
PREEMPTIONS = {
    "InClusterQueue": "by a workload of higher priority",
    "InCohortReclamation": "by a queue that took its own quota back",
    "InCohortReclaimWhileBorrowing": "by a queue that took its own quota back",
    "InCohortFairSharing": "for the fair share of another queue",
}


PATIENCE = 6
"""Times queue_seconds that a suspended child may lack a Workload: as long as a Kueue takes to start again."""


QUEUED = "waits for its queue"


@dataclass(frozen=True)
class Queued:
    """How a child stands in its queue. `kueue`: Kueue is installed; `seen`: the child has a Workload.

    `homeless`: it asks for a LocalQueue that does not exist. `stopped`: it ran, and its queue stopped it.
    """

    kueue: bool = True
    seen: bool = True
    homeless: bool = False
    stopped: bool = False
    sentence: str = ""


NO_KUEUE = Queued(kueue=False, seen=False)
UNSEEN = Queued(seen=False)


def queued(workload: Object) -> Queued:
    """Read a Workload."""
    conditions = {c["type"]: c for c in workload.get("status", {}).get("conditions") or ()}
    reserved = conditions.get("QuotaReserved", {})
    stopped = _eviction(conditions)
    if reserved.get("status") == "True":
        # It is told to stop before its quota is taken away, and its child is suspended in between.
        checks = "" if _true(conditions, "Admitted") else _checks(workload)
        return Queued(stopped=bool(stopped), sentence=checks or stopped)
    message = str(reserved.get("message", ""))
    if stopped and message == conditions["Evicted"].get("message"):
        message = ""  # the same once more, with the UIDs of others
    inadmissible = reserved.get("reason") == "Inadmissible"
    parts = [stopped, _waits(message, inadmissible)]
    return Queued(
        homeless=inadmissible and _names_no_queue(workload, message),
        stopped=bool(stopped),
        sentence=" and ".join(filter(None, parts)),
    )


def _true(conditions: Mapping[str, Object], kind: str) -> bool:
    return bool(conditions.get(kind, {}).get("status") == "True")


def _eviction(conditions: Mapping[str, Object]) -> str:
    if not _true(conditions, "Evicted"):
        return ""
    reason = str(conditions["Evicted"].get("reason", ""))
    told = EVICTIONS.get(reason) or f"was stopped by its queue ({reason})"
    if reason == "Preempted":
        by = PREEMPTIONS.get(str(conditions.get("Preempted", {}).get("reason", "")), "")
        return f"{told} {by}".strip()
    return told


def _names_no_queue(workload: Object, message: str) -> bool:
    """Kueue says so in words only; words it no longer uses read as waiting, which is safe."""
    queue = workload.get("spec", {}).get("queueName", "")
    return message.startswith(f"LocalQueue {queue} ") and "exist" in message


def _checks(workload: Object) -> str:
    """It has quota, but what its queue checks besides (say, for machines) is not done."""
    waits = [c for c in workload.get("status", {}).get("admissionChecks") or () if c.get("state") != "Ready"]
    told = "; ".join(f"{c['name']}: {c.get('message') or c.get('state', '')}" for c in waits)
    return f"has quota and waits for admission checks: {told}" if told else ""


def _waits(message: str, inadmissible: bool) -> str:
    if inadmissible:
        return f"{QUEUED}: {message}"
    if not message:
        return QUEUED
    return f"waits for quota: {_PODSET.sub('', message)}"


_PODSET = re.compile(r"^couldn't assign flavors to pod set \S+: ")
"""Kueue's own word for the Pods of a child, which says nothing to a reader."""


def given_up(told: Queued, child: Child, age: float, settle: float) -> str:
    """Why a child that was made `age` seconds ago is stopped, "" while its queue may still take it."""
    if age < settle:
        return ""
    if not told.kueue:
        return (
            f"it asks for queue {child.queue}, and Kueue is not installed on this cluster; "
            "install it, or remove scheduling.queueName"
        )
    if told.homeless:
        return (
            f"there is no LocalQueue {child.queue} in its namespace; "
            "create it and retry, or name another under scheduling.queueName"
        )
    if told.seen or (child.phase == "Waiting" and age < PATIENCE * settle):
        return ""
    ran = (
        "it ran all the same and was stopped, so that no quota is bypassed" if child.phase == "Active" else ""
    )
    return (
        f"queue {child.queue} did not take it: Kueue made no Workload for its {child.kind} within "
        f"{age:.0f} s{'; ' + ran if ran else ''}; see that Kueue runs, manages {child.kind}s in this "
        "namespace, and has the priority class that is asked for; then retry"
    )


def waiting(told: Queued, child: Child, age: float, settle: float) -> str:
    """Why a suspended child waits."""
    if told.seen or age < settle:
        return told.sentence or QUEUED
    return f"queue {child.queue} has not seen it yet: Kueue made no Workload within {settle:.0f} s"
