"""What objects of the API server say of a child and of its Pods: real shapes of each kind, read."""

from __future__ import annotations

from typing import Any

import pytest
from fusechat_operator import naming
from fusechat_operator.children import child, failed_pods, pod, summary
from fusechat_operator.conditions import timestamp

AT = 1_800_000_000.0
NOW = timestamp(AT)


def meta(**more: Any) -> dict[str, Any]:
    owners = [
        {"kind": "Other", "uid": "not-me", "controller": False},
        {"kind": "FusionRun", "uid": "run-uid", "controller": True},
    ]
    notes = {naming.ADDRESS: "fuse/abc", naming.GPUS: "16"}
    made = {"name": "fuse-1", "uid": "u", "resourceVersion": "7", "creationTimestamp": NOW}
    return {**made, "ownerReferences": owners, "annotations": notes, "labels": {}, **more}


def condition(kind: str, reason: str = "", message: str = "", status: str = "True") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": NOW}


def job(*conditions: dict[str, Any], spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    return {
        "kind": "Job",
        "metadata": meta(),
        "spec": {"completions": 1, "parallelism": 1, "suspend": False, **(spec or {})},
        "status": {"conditions": list(conditions), "startTime": NOW, **status},
    }


def pytorchjob(*kinds: str, reason: str = "", suspend: bool = False, workers: int = 1) -> dict[str, Any]:
    listed = [condition(kind, reason) for kind in kinds]
    replicas = {"Master": {"replicas": 1}, **({"Worker": {"replicas": workers}} if workers else {})}
    statuses = {"Master": {"active": 1}, "Worker": {"active": workers, "selector": "x"}}
    return {
        "kind": "PyTorchJob",
        "metadata": meta(),
        "spec": {"runPolicy": {"suspend": suspend}, "pytorchReplicaSpecs": replicas},
        "status": {"conditions": listed, "startTime": NOW, "replicaStatuses": statuses},
    }


def trainjob(*kinds: str, **status: Any) -> dict[str, Any]:
    return {
        "kind": "TrainJob",
        "metadata": meta(),
        "spec": {"trainer": {"numNodes": 2}, "suspend": False},
        "status": {"conditions": [condition(kind) for kind in kinds], **status},
    }


RESUMED = condition("Suspended", "JobResumed", "Job resumed", "False")
FAILED = condition("Failed", "PodFailurePolicy", "Container stage for pod team/x failed with exit code 65")
TARGET = condition("FailureTarget", "PodFailurePolicy", "Container stage failed with exit code 65")
CASES = {
    "a new Job has no status yet": ({**job(), "status": {}}, "Active", ""),
    "a Job runs": (job(active=1, ready=1), "Active", ""),
    "a Job is held by its queue": (job(condition("Suspended"), spec={"suspend": True}), "Waiting", ""),
    "a Job was resumed": (job(RESUMED, active=1), "Active", ""),
    "a Job is complete": (job(condition("SuccessCriteriaMet"), condition("Complete")), "Complete", ""),
    "a Job meets its criteria, its Pods end": (job(condition("SuccessCriteriaMet"), active=1), "Active", ""),
    "a Job has failed, its Pods still end": (job(TARGET, terminating=1), "Active", "PodFailurePolicy"),
    "a Job has failed": (job(TARGET, FAILED), "Failed", "PodFailurePolicy"),
    "a Job's failure is not true": (job(condition("Failed", status="False")), "Active", ""),
    "an Indexed Job has a failed index": (
        job(condition("Failed", "FailedIndexes"), spec={"completions": 4}),
        "Failed",
        "FailedIndexes",
    ),
    "a PyTorchJob is new": (pytorchjob("Created"), "Active", ""),
    "a PyTorchJob without a status": ({**pytorchjob(), "status": {}}, "Active", ""),
    "a PyTorchJob runs": (pytorchjob("Created", "Running"), "Active", ""),
    "a PyTorchJob is held by its queue": (pytorchjob("Suspended", suspend=True), "Waiting", ""),
    "a PyTorchJob has succeeded": (pytorchjob("Created", "Succeeded"), "Complete", ""),
    "a PyTorchJob has failed": (
        pytorchjob("Failed", reason="PyTorchJobFailed"),
        "Failed",
        "PyTorchJobFailed",
    ),
    "a TrainJob is new": (trainjob(), "Active", ""),
    "a TrainJob is complete": (trainjob("Complete"), "Complete", ""),
    "a TrainJob has failed": (trainjob("Failed"), "Failed", ""),
    "a TrainJob is held": ({**trainjob(), "spec": {"trainer": {}, "suspend": True}}, "Waiting", ""),
}


@pytest.mark.parametrize("what", CASES)
def test_a_child_is_read_as_what_it_is(what):
    found, phase, reason = CASES[what]
    read = child(found)
    assert (read.phase, read.reason) == (phase, reason)
    assert (read.kind, read.owner, read.address, read.gpus) == (found["kind"], "run-uid", "fuse/abc", 16)
    assert (read.ended is None) == (phase in ("Active", "Waiting") and not reason)


def test_counts_and_times_of_each_kind():
    read = child(job(spec={"completions": 4}, ready=2, succeeded=1))
    assert (read.pods, read.ready, read.succeeded) == (4, 2, 1)
    read = child(pytorchjob("Running", workers=3))
    assert (read.pods, read.ready) == (4, 4)
    read = child(trainjob(jobsStatus=[{"name": "node", "ready": 2, "succeeded": 0}]))
    assert (read.pods, read.ready, read.started) == (2, 2, AT)
    assert (read.created, child(job()).started) == (AT, AT)


def test_a_child_that_is_being_deleted_and_one_without_an_owner():
    assert child({**job(), "metadata": meta(deletionTimestamp=NOW)}).terminating
    lonely = child({**job(), "metadata": {"name": "x", "uid": "u", "resourceVersion": "1"}})
    assert (lonely.owner, lonely.address, lonely.gpus, lonely.terminating) == ("", "", 0, False)


def container(name: str = "stage", **state: Any) -> dict[str, Any]:
    return {"name": name, "state": state, "ready": False, "restartCount": 0}


def a_pod(*containers: dict[str, Any], **status: Any) -> dict[str, Any]:
    listed = {"containerStatuses": list(containers)} if containers else {}
    return {"metadata": {"name": "p"}, "spec": {"nodeName": "n1"}, "status": {**listed, **status}}


UNSCHEDULABLE = {
    "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes",
}  # fmt: skip
PULL = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
INITIAL = {"waiting": {"reason": "PodInitializing"}}
PODS = {
    "just made": (a_pod(), ("Pending", "", "", None)),
    "no node has room": (
        a_pod(phase="Pending", conditions=[UNSCHEDULABLE]),
        ("Pending", "Unschedulable", "0/3 nodes", None),
    ),
    "starting": (
        a_pod(container(waiting={"reason": "ContainerCreating"}), phase="Pending"),
        ("Pending", "ContainerCreating", "", None),
    ),
    "its image cannot be pulled": (
        a_pod(container(**PULL), phase="Pending"),
        ("Pending", "ErrImagePull", "not found", None),
    ),
    "an init container's image cannot be pulled": (
        a_pod(
            container("pytorch", **INITIAL),
            phase="Pending",
            initContainerStatuses=[container("init-pytorch", **PULL)],
        ),
        ("Pending", "ErrImagePull", "not found", None),
    ),
    "an init container runs": (
        a_pod(container(**INITIAL), phase="Pending", initContainerStatuses=[container("init", running={})]),
        ("Pending", "PodInitializing", "", None),
    ),
    "its Secret is missing": (
        a_pod(
            container(waiting={"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}),
            phase="Pending",
        ),
        ("Pending", "CreateContainerConfigError", 'secret "s3" not found', None),
    ),
    "running": (a_pod(container(running={"startedAt": NOW}), phase="Running"), ("Running", "", "", None)),
    "done": (
        a_pod(container(terminated={"exitCode": 0, "reason": "Completed"}), phase="Succeeded"),
        ("Succeeded", "Completed", "", 0),
    ),
    "killed for memory": (
        a_pod(container("pytorch", terminated={"exitCode": 137, "reason": "OOMKilled"}), phase="Failed"),
        ("Failed", "OOMKilled", "", 137),
    ),
    "evicted before it started": (
        a_pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory."),
        ("Failed", "Evicted", "The node was low on resource: memory.", None),
    ),
    "a sidecar's state is not the stage's": (
        a_pod(container("istio-proxy", terminated={"exitCode": 1}), container("node", running={})),
        ("Pending", "", "", None),
    ),
}


@pytest.mark.parametrize("what", PODS)
def test_a_pod_is_read_as_what_it_is(what):
    found, want = PODS[what]
    read = pod(found)
    assert (read.phase, read.reason, read.message, read.exit_code) == want
    assert read.out_of_memory == (read.reason == "OOMKilled")
    assert read.node == "n1"


@pytest.mark.parametrize(
    ("status", "disrupted"),
    [
        ({"conditions": [{"type": "DisruptionTarget", "status": "True"}]}, True),
        ({"conditions": [{"type": "DisruptionTarget", "status": "False"}]}, False),
        ({"reason": "Evicted"}, True),
        ({"reason": "NodeLost"}, True),
        ({"reason": "Shutdown"}, True),
        ({"reason": "DeadlineExceeded"}, False),
        ({}, False),
    ],
)
def test_a_pod_that_was_taken_away_is_known(status, disrupted):
    assert pod(a_pod(phase="Failed", **status)).disrupted == disrupted


def test_the_summary_that_entry_left_is_read_and_a_log_is_its_last_line():
    def ended(text: str):
        return pod(a_pod(container(terminated={"exitCode": 65, "message": text}), phase="Failed"))

    told = ended('{"exitCode": 65, "error": "no supervised token"}')
    assert (told.summary, told.trace) == ({"exitCode": 65, "error": "no supervised token"}, "")
    raw = ended(
        "Traceback (most recent call last):\n  File ...\nModuleNotFoundError: No module named 'torch'\n\n"
    )
    assert (raw.summary, raw.trace) == (None, "ModuleNotFoundError: No module named 'torch'")
    assert ended("").trace == ""


@pytest.mark.parametrize("text", ["", "not JSON", "[1]", '"text"', "{", "null"])
def test_what_is_no_summary_is_none(text):
    assert summary(text) is None


def test_failed_pods_are_those_that_failed_or_whose_stage_did():
    names = ["done", "running", "killed for memory", "evicted before it started"]
    found = failed_pods([pod(PODS[name][0]) for name in names])
    assert [each.reason for each in found] == ["OOMKilled", "Evicted"]
