"""Why an attempt ended: Pods, entry's records, or no trace at all -> disruption, infrastructure or bug."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fusechat_operator.causes import cause
from fusechat_operator.children import child, pod

from tests.unit.operator.test_children import a_pod, condition, container, job, pytorchjob

TAKEN = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}


def ended(code: int | None, error: str | None = None, text: str = "", **status: Any):
    """A Pod whose stage ended; None: nobody knows how."""
    if code is None:
        return pod(a_pod(phase="Failed", **status))
    reason = status.pop("container_reason", "Error")
    message = json.dumps({"exitCode": code, "error": error}) if error is not None else text
    state = {"exitCode": code, "message": message, "reason": reason}
    return pod(a_pod(container(terminated=state), phase="Failed", **status))


POD_FULL = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "
CONTAINER_FULL = 'Container stage exceeded its local ephemeral storage limit "1Gi". '
FULL = 'Usage of EmptyDir volume "scratch" exceeds the limit "10Gi". '
TABLE = {
    "wrong usage": ([ended(64, "unknown argument --x")], "bug", "unknown argument --x"),
    "bad data, with entry's sentence": ([ended(65, "no supervised token")], "bug", "no supervised token"),
    "a missing input": ([ended(66, "input model is not in s3://b")], "bug", "input model is not in s3://b"),
    "a fault of ours": ([ended(70, "rank 3: KeyError: 'x'")], "bug", "rank 3: KeyError: 'x'"),
    "the store is away": ([ended(69, "s3://b: cannot be reached")], "infrastructure", "cannot be reached"),
    "trouble for now": ([ended(75, "the hub answers 503")], "infrastructure", "the hub answers 503"),
    "stopped, saved": ([ended(143, "stopped: at step 7")], "disruption", "stopped: at step 7"),
    "stopped without a word": ([ended(143)], "disruption", "it was stopped"),
    "killed from outside": ([ended(137)], "disruption", "it was killed"),
    "out of memory": ([ended(137, container_reason="OOMKilled")], "bug", "give the stage more memory"),
    "out of memory while it was preempted": (
        [ended(137, container_reason="OOMKilled", conditions=[TAKEN])],
        "bug",
        "OOMKilled",
    ),
    "preempted": ([ended(137, conditions=[TAKEN])], "disruption", "was taken away"),
    "preempted, saved": ([ended(143, "stopped", conditions=[TAKEN])], "disruption", "was taken away"),
    "bad data while it was preempted": ([ended(65, "no token", conditions=[TAKEN])], "bug", "no token"),
    "evicted, the node was full": (
        [ended(None, reason="Evicted", message="The node was low on resource: ephemeral-storage. ")],
        "disruption",
        "low on resource",
    ),
    "its own disk was full": ([ended(137, reason="Evicted", message=FULL)], "bug", "more scratch"),
    "its own disk, no container left": ([ended(None, reason="Evicted", message=FULL)], "bug", "more scratch"),
    "its container's disk": ([ended(None, reason="Evicted", message=CONTAINER_FULL)], "bug", "more scratch"),
    "the Pod's disk": ([ended(None, reason="Evicted", message=POD_FULL)], "bug", "more scratch"),
    "the node is gone": ([ended(None, reason="NodeLost", message="n1 is gone")], "disruption", "n1 is gone"),
    "lost, nobody knows": ([ended(None)], "disruption", "was lost"),
    "died before entry could speak": (
        [ended(1, text="Traceback\nModuleNotFoundError: No module named 'torch'\n")],
        "bug",
        "exit code 1: ModuleNotFoundError: No module named 'torch'",
    ),
    "could not start": (
        [ended(128, text="exec: python: not found", container_reason="StartError")],
        "bug",
        "exit code 128: exec: python: not found",
    ),
    "no word at all": ([ended(1)], "bug", "exit code 1"),
    "the others only lost their peer": (
        [ended(75, "rank 1 lost its peer"), ended(65, "loss is NaN at step 3"), ended(143)],
        "bug",
        "loss is NaN at step 3",
    ),
    "a fault while it was preempted": ([ended(70, "x", conditions=[TAKEN])], "disruption", "was taken away"),
}  # fmt: skip


@pytest.mark.parametrize("what", TABLE)
def test_the_pods_that_are_left_say_why(what):
    pods, kind, says = TABLE[what]
    found = cause(child(pytorchjob("Failed", reason="PyTorchJobFailed", workers=0)), pods, ())
    assert found.kind == kind
    assert says in found.sentence


def test_a_pod_that_ended_well_says_nothing():
    done = pod(a_pod(container(terminated={"exitCode": 0}), phase="Succeeded"))
    assert cause(child(job(condition("Failed"))), [done], ()).kind == "disruption"


def record(code: int, at: str, error: str = "as recorded") -> dict[str, Any]:
    return {"exitCode": code, "ended": at, "error": error}


BEFORE, AFTER, LATER = "2027-01-15T07:59:00.000Z", "2027-01-15T08:05:00.000Z", "2027-01-15T08:09:00.000Z"


@pytest.mark.parametrize(
    ("attempts", "kind", "says"),
    [
        ([record(65, AFTER, "bad data")], "bug", "bad data"),
        ([record(65, AFTER), record(75, LATER, "hub away")], "infrastructure", "hub away"),
        ([record(75, LATER, "hub away"), record(65, AFTER)], "infrastructure", "hub away"),
        ([record(65, BEFORE, "of an earlier child")], "disruption", "its Pod vanished"),
        ([record(0, AFTER)], "disruption", "its Pod vanished"),
        ([{"exitCode": 65}], "disruption", "its Pod vanished"),
        ([], "disruption", "its Pod vanished"),
    ],
)
def test_where_no_pod_is_left_the_newest_record_since_the_child_was_made_says_why(attempts, kind, says):
    found = cause(child(pytorchjob("Failed", workers=0)), (), attempts)
    assert (found.kind, says in found.sentence) == (kind, True)


LOST = "rank 0: RuntimeError: connection closed by peer"
RANKS = {
    "its peer was preempted": (
        [ended(70, LOST), ended(137, conditions=[TAKEN])],
        [],
        "disruption",
        "taken away",
    ),
    "its peer was preempted and is gone": ([ended(70, LOST)], [], "disruption", "its Pod vanished"),
    "its peer saved, said so and is gone": (
        [ended(70, LOST)],
        [record(143, AFTER, "at 7")],
        "disruption",
        "at 7",
    ),
    "its peer had bad data and is gone": ([ended(70, LOST)], [record(65, AFTER, "NaN")], "bug", "NaN"),
    "its peer had no memory": (
        [ended(70, LOST), ended(137, container_reason="OOMKilled")],
        [],
        "bug",
        "memory",
    ),
    "its peer could not reach the store": ([ended(70, LOST), ended(69, "s3")], [], "infrastructure", "s3"),
    "both are there and have a fault": (
        [ended(70, "KeyError"), ended(70, "KeyError")],
        [],
        "bug",
        "KeyError",
    ),
    "an earlier attempt's record": ([ended(70, "a"), ended(70, "b")], [record(143, BEFORE)], "bug", "a"),
}


@pytest.mark.parametrize("what", RANKS)
def test_a_rank_that_only_lost_its_peer_is_no_cause(what):
    pods, records, kind, says = RANKS[what]
    found = cause(child(pytorchjob("Failed", workers=1)), pods, records)
    assert (found.kind, says in found.sentence) == (kind, True)


def test_shards_are_no_ranks_a_fault_in_one_is_a_bug_whatever_happened_to_the_others():
    failed = job(condition("Failed", "PodFailurePolicy"), spec={"completions": 4})
    failed["metadata"]["annotations"]["fusechat.io/address"] = "extract/abc"
    pods = [ended(143, conditions=[TAKEN]), ended(70, "KeyError")]
    assert cause(child(failed), pods, ()).kind == "bug"


def test_pods_speak_before_records():
    found = cause(child(pytorchjob("Failed", workers=0)), [ended(75, "now")], [record(65, AFTER)])
    assert (found.kind, found.exit_code) == ("infrastructure", 75)


def test_a_job_past_its_own_deadline_is_not_tried_again():
    found = cause(child(job(condition("Failed", "DeadlineExceeded", "Job was active too long"))), (), ())
    assert (found.kind, found.sentence) == ("bug", "it ran past its deadline")


def test_what_vanished_without_a_trace_says_what_its_child_says():
    found = cause(child(job(condition("Failed", "BackoffLimitExceeded", "too many"))), (), ())
    assert (found.kind, found.exit_code) == ("disruption", None)
    assert "too many" in found.sentence
