"""Steps in a queue: what Kueue's Workloads say, when a child is given up, and what becomes of its line."""

from __future__ import annotations

from typing import Any

import pytest
from fusechat_operator.children import Child
from fusechat_operator.workloads import NO_KUEUE, PATIENCE, UNSEEN, Queued, given_up, queued, waiting

from tests.unit.operator.acts import step_of
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import World

SETTLE = 10.0


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def workload(*conditions: dict[str, str], **status: Any) -> dict[str, Any]:
    return {"spec": {"queueName": "team"}, "status": {"conditions": list(conditions), **status}}


FULL = (
    "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor any, 1 more needed"
)
NEEDS = "waits for quota: insufficient unused quota for cpu in flavor any, 1 more needed"
PENDING = condition("QuotaReserved", "False", "Pending", FULL)
PREEMPTED = (
    condition("Evicted", "True", "Preempted", "Preempted to accommodate a workload (UID: 1, JobUID: 2)"),
    condition("Preempted", "True", "InClusterQueue"),
)
RESERVED = condition("QuotaReserved", "True", "QuotaReserved")
CHECKS = [
    {"name": "capacity", "state": "Pending", "message": "no machine yet"},
    {"name": "b", "state": "Ready"},
]

# Workload -> (homeless, stopped, sentence), as Kueue 0.15 was seen to write them
SAID: dict[str, tuple[dict[str, Any], tuple[bool, bool, str]]] = {
    "nothing yet": (workload(), (False, False, "waits for its queue")),
    "no quota": (workload(PENDING), (False, False, NEEDS)),
    "no such queue": (
        workload(condition("QuotaReserved", "False", "Inadmissible", "LocalQueue team doesn't exist")),
        (True, False, "waits for its queue: LocalQueue team doesn't exist"),
    ),
    "a queue of nothing": (
        workload(condition("QuotaReserved", "False", "Inadmissible", "ClusterQueue all doesn't exist")),
        (False, False, "waits for its queue: ClusterQueue all doesn't exist"),
    ),
    "a held queue": (
        workload(condition("QuotaReserved", "False", "Inadmissible", "LocalQueue team is inactive")),
        (False, False, "waits for its queue: LocalQueue team is inactive"),
    ),
    "preempted": (
        workload(PENDING, *PREEMPTED),
        (False, True, f"was preempted by a workload of higher priority and {NEEDS}"),
    ),
    "preempted by a reason of tomorrow": (
        workload(PENDING, PREEMPTED[0], condition("Preempted", "True", "OnAWhim")),
        (False, True, f"was preempted and {NEEDS}"),
    ),
    "stopped by a reason of tomorrow": (
        workload(PENDING, condition("Evicted", "True", "FullMoon")),
        (False, True, f"was stopped by its queue (FullMoon) and {NEEDS}"),
    ),
    "admitted": (workload(RESERVED, condition("Admitted", "True", "Admitted")), (False, False, "")),
    "preempted, its quota not taken away yet": (
        workload(RESERVED, condition("Admitted", "True", "Admitted"), *PREEMPTED),
        (False, True, "was preempted by a workload of higher priority"),
    ),
    "preempted, its quota just taken away": (
        workload({**PENDING, "message": PREEMPTED[0]["message"]}, *PREEMPTED),
        (False, True, "was preempted by a workload of higher priority and waits for its queue"),
    ),
    "admitted again": (
        workload(
            RESERVED,
            condition("Admitted", "True", "Admitted"),
            condition("Evicted", "False", "QuotaReserved"),
        ),
        (False, False, ""),
    ),
    "checked": (
        workload(RESERVED, admissionChecks=CHECKS),
        (False, False, "has quota and waits for admission checks: capacity: no machine yet"),
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_a_workload_says_why_its_child_waits(case):
    found, (homeless, stopped, sentence) = SAID[case]
    assert queued(found) == Queued(homeless=homeless, stopped=stopped, sentence=sentence)


def a_child(phase: Any) -> Child:
    return Child("Job", "x", "1", "1", "", "", False, phase, queue="team")


# what is told, phase, age -> words of the sentence with which it is given up; "" it is not
GIVEN_UP: dict[str, tuple[Queued, str, float, str]] = {
    "no Kueue, young": (NO_KUEUE, "Waiting", SETTLE - 1, ""),
    "no Kueue": (NO_KUEUE, "Waiting", SETTLE, "Kueue is not installed"),
    "no Kueue and it runs": (NO_KUEUE, "Active", SETTLE, "Kueue is not installed"),
    "no such queue, young": (Queued(homeless=True), "Waiting", SETTLE - 1, ""),
    "no such queue": (Queued(homeless=True), "Waiting", SETTLE, "there is no LocalQueue team"),
    "not seen, held": (UNSEEN, "Waiting", SETTLE * PATIENCE - 1, ""),
    "not seen, held for long": (UNSEEN, "Waiting", SETTLE * PATIENCE, "Kueue made no Workload for its Job"),
    "not seen and it runs": (UNSEEN, "Active", SETTLE, "so that no quota is bypassed"),
    "waits its turn": (Queued(sentence=NEEDS), "Waiting", 1e6, ""),
    "let in": (Queued(), "Active", 1e6, ""),
}


@pytest.mark.parametrize("case", GIVEN_UP)
def test_a_child_is_given_up_when_no_waiting_helps(case):
    told, phase, age, words = GIVEN_UP[case]
    said = given_up(told, a_child(phase), age, SETTLE)
    assert bool(said) == bool(words)
    assert words in said


def test_a_child_that_its_queue_has_not_seen_says_so_when_it_should_have():
    assert waiting(UNSEEN, a_child("Waiting"), SETTLE - 1, SETTLE) == "waits for its queue"
    assert "has not seen it yet" in waiting(UNSEEN, a_child("Waiting"), SETTLE, SETTLE)


# in a world


def in_a_queue(**spec: Any) -> World:
    return World(a_run(scheduling={"queueName": "team"}, **spec))


def hold(world: World, told: Queued, suspended: bool) -> None:
    """Kueue says so of every child, and holds or lets it run."""
    for found in world.children.values():
        world.workloads[found["metadata"]["uid"]] = told
        where = found["spec"].get("runPolicy", found["spec"])
        where["suspend"] = suspended


def test_every_child_with_a_queue_begins_suspended_and_carries_its_labels():
    run = a_run(scheduling={"queueName": "team"})
    run["metadata"]["labels"] = {"kueue.x-k8s.io/priority-class": "soon", "other": "label"}
    world = World(run)
    world.settle()
    assert world.children
    for found in world.children.values():
        assert found["spec"].get("runPolicy", found["spec"])["suspend"] is True
        labels = found["metadata"]["labels"]
        assert labels["kueue.x-k8s.io/queue-name"] == "team"
        assert labels["kueue.x-k8s.io/priority-class"] == "soon"
        assert "other" not in labels


def test_without_a_queue_nothing_is_suspended():
    world = World(a_run())
    world.settle()
    for found in world.children.values():
        assert "suspend" not in found["spec"].get("runPolicy", found["spec"])


def test_a_step_waits_runs_is_preempted_and_runs_on_with_no_try_counted():
    world = in_a_queue()
    world.settle()
    hold(world, queued(workload(PENDING)), suspended=True)
    world.settle()
    assert world.line("fetch-s0")["state"] == "Waiting"
    assert NEEDS in world.condition("Ready")["message"]
    hold(world, Queued(), suspended=False)
    world.settle()
    assert world.line("fetch-s0")["state"] == "Running"
    hold(world, queued(workload(PENDING, *PREEMPTED)), suspended=True)
    world.settle()
    assert world.line("fetch-s0")["state"] == "Waiting"
    assert "was preempted by a workload of higher priority" in world.condition("Ready")["message"]
    assert [reason for _, reason, _ in world.events][-1] == "StepStoppedByQueue"
    hold(world, Queued(), suspended=False)
    world.settle()
    assert "tries" not in world.line("fetch-s0")
    assert world.attempts("fetch-s0") == 1


def test_a_queue_that_takes_nobody_stalls_the_run_and_a_retry_begins_anew_with_no_try_counted():
    world = in_a_queue()
    world.settle()
    hold(world, Queued(homeless=True, sentence="waits for its queue"), suspended=True)
    world.now += 11
    world.settle()
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "QueueDidNotAdmit")
    assert stalled["message"].count("there is no LocalQueue team") == 1
    assert not world.children
    world.retry()
    world.settle()
    assert "fetch-s0" in {step_of(found) for found in world.children.values()}
    assert not [line for line in world.status()["steps"] if line.get("tries")]


def test_what_runs_goes_on_to_its_end_when_a_later_step_is_not_taken():
    world = in_a_queue()
    world.settle()
    hold(world, Queued(), suspended=False)
    astray = next(found for found in world.children.values() if step_of(found) == "fetch-s1")
    world.workloads[astray["metadata"]["uid"]] = Queued(homeless=True)
    astray["spec"]["suspend"] = True
    world.now += 11
    world.settle()
    assert world.line("fetch-s1")["state"] == "Failed"
    assert world.line("fetch-s0")["state"] == "Running"
    assert world.condition("Stalled") == {}
    assert "fetch-s1: failed: there is no LocalQueue team" in world.condition("Ready")["message"]
    for found in world.active():
        world.play(found)
    world.settle()
    assert world.line("fetch-s0")["state"] == "Succeeded"


def test_a_waiting_step_moves_to_the_queue_that_is_named_now_and_a_running_one_stays():
    world = in_a_queue()
    world.settle()
    hold(world, queued(workload(PENDING)), suspended=True)
    runs = next(found for found in world.children.values() if step_of(found) == "fetch-s0")
    world.workloads[runs["metadata"]["uid"]] = Queued()
    runs["spec"]["suspend"] = False
    world.settle()
    world.edit(scheduling={"queueName": "other"})
    world.settle()
    queues = {
        step_of(c): c["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for c in world.children.values()
    }
    assert queues["fetch-s0"] == "team"
    assert queues["fetch-s1"] == "other"
    assert not [line for line in world.status()["steps"] if line.get("tries")]


def test_a_child_that_somebody_suspended_says_so():
    world = World(a_run())
    world.settle()
    hold(world, Queued(), suspended=True)
    world.settle()
    assert "somebody set its suspend" in world.condition("Ready")["message"]


def test_the_queue_is_asked_about_few_of_many_steps_that_wait():
    world = World(a_run(sources=20, scheduling={"queueName": "team"}))
    world.settle()
    hold(world, queued(workload(PENDING)), suspended=True)
    world.settle()
    world.now += 10 * 10 * PATIENCE
    world.asked.clear()
    world.turn()
    assert 0 < sum(count for ask, count in world.asked.items() if ask.what == "workload") <= 4
    assert "; and 22 more" in world.condition("Ready")["message"], "all are told of"
