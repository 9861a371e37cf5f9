"""What a child and its Pods say: the API server's objects -> small values. Pure.

Used by facts' readers (cluster) and reconcile. One reader a kind: Job (Indexed or not), PyTorchJob v1,
TrainJob.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from fusechat_operator import naming

Phase = Literal["Waiting", "Active", "Complete", "Failed"]
Object = Mapping[str, Any]


@dataclass(frozen=True)
class Child:
    """One child object. Times are seconds since 1970; Waiting means that it is suspended, by its queue."""

    kind: str
    name: str
    uid: str
    version: str
    owner: str
    address: str
    terminating: bool
    phase: Phase
    reason: str = ""
    message: str = ""
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    pods: int = 1
    ready: int = 0
    succeeded: int = 0
    gpus: int = 0
    queue: str = ""
    held: float | None = None
    template: str = ""
    run: str = ""

    @property
    def since(self) -> float:
        """When it was made, begun, suspended or resumed, whatever came last."""
        return max(self.created, self.started or 0.0, self.held or 0.0)


@dataclass(frozen=True)
class Pod:
    """One Pod of a child: why it waits, or how its stage ended. `summary` is what entry left for us.

    `trace` is the last line of the log where entry left nothing. `failures` and `disruptions` are how many
    Pods of its index its Job has replaced before it, because they failed and because they were taken away.
    """

    name: str
    phase: str
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    disrupted: bool = False
    out_of_memory: bool = False
    summary: Mapping[str, Any] | None = None
    trace: str = ""
    node: str = ""
    index: str = "0"
    failures: int = 0
    disruptions: int = 0


def seconds(text: str | None) -> float | None:
    """RFC 3339 -> seconds since 1970."""
    return None if not text else datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def child(found: Object) -> Child:
    """Read one object of a kind that the operator makes."""
    return _READERS[found["kind"]](found)


def _common(found: Object) -> dict[str, Any]:
    meta = found["metadata"]
    owners = [o["uid"] for o in meta.get("ownerReferences", ()) if o.get("controller")]
    annotations = meta.get("annotations", {})
    return {
        "kind": found["kind"],
        "name": meta["name"],
        "uid": meta["uid"],
        "version": meta["resourceVersion"],
        "owner": owners[0] if owners else "",
        "address": annotations.get(naming.ADDRESS, ""),
        "terminating": "deletionTimestamp" in meta,
        "created": seconds(meta.get("creationTimestamp")) or 0.0,
        "gpus": int(annotations.get(naming.GPUS, 0)),
        "queue": meta.get("labels", {}).get(naming.QUEUE, ""),
        "held": _held(found),
        "template": annotations.get(naming.TEMPLATE, ""),
        "run": meta.get("labels", {}).get(naming.RUN, ""),
    }


def _conditions(found: Object) -> dict[str, Object]:
    """The conditions that are true, by type."""
    listed = found.get("status", {}).get("conditions") or ()
    return {c["type"]: c for c in listed if c["status"] == "True"}


def _held(found: Object) -> float | None:
    """When it was last suspended or resumed."""
    listed = found.get("status", {}).get("conditions") or ()
    return next((seconds(c.get("lastTransitionTime")) for c in listed if c["type"] == "Suspended"), None)


def _begun(found: Object, common: Mapping[str, Any]) -> float | None:
    """A TrainJob does not say: when it was made or resumed; None of one that its queue holds."""
    if found["spec"].get("suspend"):
        return None
    return max(float(common["created"]), float(common["held"] or 0.0))


def _ended(condition: Object) -> dict[str, Any]:
    return {
        "reason": condition.get("reason", ""),
        "message": condition.get("message", ""),
        "ended": seconds(condition.get("lastTransitionTime")),
    }


def _job(found: Object) -> Child:
    true, status, spec = _conditions(found), found.get("status", {}), found["spec"]
    facts: dict[str, Any] = {"phase": "Active"}
    if "Failed" in true or "FailureTarget" in true:
        # FailureTarget stands from the verdict on; Failed only when every Pod is gone.
        done = true.get("Failed")
        facts = {**_ended(done or true["FailureTarget"]), "phase": "Failed" if done else "Active"}
    elif "Complete" in true:
        facts = {**_ended(true["Complete"]), "phase": "Complete"}
    elif spec.get("suspend"):
        facts = {"phase": "Waiting"}
    return Child(
        **_common(found),
        **facts,
        started=seconds(status.get("startTime")),
        pods=int(spec.get("completions") or 1),
        ready=int(status.get("ready") or 0),
        succeeded=int(status.get("succeeded") or 0),
    )


def _pytorchjob(found: Object) -> Child:
    true, status, spec = _conditions(found), found.get("status", {}), found["spec"]
    facts: dict[str, Any] = {"phase": "Active"}
    if "Failed" in true:
        facts = {**_ended(true["Failed"]), "phase": "Failed"}
    elif "Succeeded" in true:
        facts = {**_ended(true["Succeeded"]), "phase": "Complete"}
    elif spec.get("runPolicy", {}).get("suspend"):
        facts = {"phase": "Waiting"}
    replicas = status.get("replicaStatuses") or {}
    return Child(
        **_common(found),
        **facts,
        started=seconds(status.get("startTime")),
        pods=sum(int(r.get("replicas", 1)) for r in spec["pytorchReplicaSpecs"].values()),
        ready=sum(int(r.get("active", 0)) for r in replicas.values()),
        succeeded=sum(int(r.get("succeeded", 0)) for r in replicas.values()),
    )


def _trainjob(found: Object) -> Child:
    true, spec = _conditions(found), found["spec"]
    facts: dict[str, Any] = {"phase": "Active"}
    if "Failed" in true:
        facts = {**_ended(true["Failed"]), "phase": "Failed"}
    elif "Complete" in true:
        facts = {**_ended(true["Complete"]), "phase": "Complete"}
    elif spec.get("suspend"):
        facts = {"phase": "Waiting"}
    counts = [c for c in found.get("status", {}).get("jobsStatus") or () if c["name"] == "node"]
    common = _common(found)
    return Child(
        **common,
        **facts,
        started=_begun(found, common),
        pods=int(spec["trainer"].get("numNodes", 1)),
        ready=int(counts[0].get("ready", 0)) if counts else 0,
        succeeded=int(counts[0].get("succeeded", 0)) if counts else 0,
    )


_READERS = {"Job": _job, "PyTorchJob": _pytorchjob, "TrainJob": _trainjob}

CONTAINERS = ("stage", "pytorch", "node")
"""What the stage's container is called under Job, PyTorchJob and TrainJob: the last two demand their name."""


def pod(found: Object) -> Pod:
    """Read one Pod of a child."""
    status, meta = found.get("status", {}), found["metadata"]
    true = _conditions(found)
    containers = [c for c in status.get("containerStatuses") or () if c["name"] in CONTAINERS]
    state = containers[0].get("state", {}) if containers else {}
    reason, message = _why_it_waits(status, state)
    ended = state.get("terminated") or {}
    told = summary(ended.get("message", ""))
    return Pod(
        meta["name"],
        str(status.get("phase", "Pending")),
        str(reason or ended.get("reason") or ""),
        message,
        ended.get("exitCode"),
        disrupted="DisruptionTarget" in true or status.get("reason") in ("Evicted", "Shutdown", "NodeLost"),
        out_of_memory=ended.get("reason") == "OOMKilled",
        summary=told,
        trace="" if told else _last_line(ended.get("message", "")),
        node=str(found.get("spec", {}).get("nodeName", "")),
        index=meta.get("annotations", {}).get(f"{_OF_JOBS}/job-completion-index", "0"),
        failures=int(meta.get("annotations", {}).get(f"{_OF_JOBS}/job-index-failure-count", 0)),
        disruptions=int(meta.get("annotations", {}).get(f"{_OF_JOBS}/job-index-ignored-failure-count", 0)),
    )


_OF_JOBS = "batch.kubernetes.io"


def _last_line(text: str) -> str:
    """Of what a container left that could not start, or died before entry could speak."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def _why_it_waits(status: Object, state: Object) -> tuple[str, str]:
    """Its container's own reason; that of an init container (a training operator's) where that one waits."""
    first = [c.get("state", {}).get("waiting", {}) for c in status.get("initContainerStatuses") or ()]
    named = [waiting for waiting in first if waiting.get("reason", "PodInitializing") != "PodInitializing"]
    if waiting := named[0] if named else state.get("waiting"):
        return waiting.get("reason", ""), waiting.get("message", "")
    if status.get("phase") == "Pending":
        for condition in status.get("conditions") or ():
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return condition.get("reason", ""), condition.get("message", "")
    return status.get("reason", ""), status.get("message", "")


def summary(text: str) -> dict[str, Any] | None:
    """The JSON that entry left in the termination message, or None where it left none."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def failed_pods(pods: Sequence[Pod]) -> list[Pod]:
    """Those whose stage ended badly, or that were taken away."""
    return [p for p in pods if p.phase == "Failed" or p.exit_code not in (None, 0)]


def met(pods: Sequence[Pod]) -> tuple[int, int]:
    """How many disruptions and failures a Job has met and gone on from, all of its indexes together."""
    counts: dict[str, tuple[int, int]] = {}
    for pod in pods:
        taken, failed = counts.get(pod.index, (0, 0))
        counts[pod.index] = (max(taken, pod.disruptions), max(failed, pod.failures))
    return sum(taken for taken, _ in counts.values()), sum(failed for _, failed in counts.values())


def stuck(pods: Sequence[Pod]) -> str:
    """One sentence about the Pod that waits for something a person can mend."""
    for pod in pods:
        if pod.phase != "Pending" or pod.reason in ("", "ContainerCreating", "PodInitializing"):
            continue
        if pod.reason == "Unschedulable":
            return f"no node has room for Pod {pod.name}: {pod.message}"
        if "Image" in pod.reason:
            return f"the image of Pod {pod.name} cannot be pulled ({pod.reason}): {pod.message}"
        return f"Pod {pod.name} cannot start ({pod.reason}): {pod.message}"
    return ""
