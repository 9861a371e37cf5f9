"""What a Job meets and goes on from by itself: it is told, counted once, and has a limit."""

from __future__ import annotations

import json

import pytest

from tests.unit.operator.acts import finish
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import World, begun

STEP = "extract-s0"
FAILED = {"exitCode": 75, "message": json.dumps({"exitCode": 75, "error": "the hub is away"})}


def a_failed_pod(world: World, terminated=FAILED, **counts: int) -> None:
    status = {
        "phase": "Failed",
        "containerStatuses": [{"name": "stage", "state": {"terminated": terminated}}],
    }
    world.add_pod(world.child_of(STEP), status)
    count(world, **counts)


def count(world: World, failures: int = 0, disruptions: int = 0, index: int = 0) -> None:
    """What its Job writes on the Pod that was made last."""
    told = {"job-completion-index": index}
    told |= {"job-index-failure-count": failures, "job-index-ignored-failure-count": disruptions}
    made = world.pods[world.child_of(STEP)["metadata"]["name"]][-1]
    made["metadata"]["annotations"] = {f"batch.kubernetes.io/{k}": str(v) for k, v in told.items()}


def running(ready: int = 0, **spec) -> World:
    """The Job runs, and its Pods had time to come up."""
    world = begun(STEP, **spec)
    world.child_of(STEP)["status"] = {"ready": ready, "startTime": "2027-01-15T08:00:00Z"}
    world.now += 60
    return world


def end(world: World) -> None:
    finish(world, world.child_of(STEP))
    world.drive()


def tries(world: World) -> dict[str, int]:
    return world.line(STEP).get("tries", {})


def test_between_two_pods_of_a_job_the_status_says_why_and_that_it_is_tried_again():
    world = running()
    a_failed_pod(world)
    world.settle()
    assert "extract-s0: the hub is away; it is tried again" in world.condition("Ready")["message"]
    assert world.line(STEP)["state"] == "Running"
    assert world.attempts(STEP) == 1


def test_once_the_next_pod_runs_it_is_a_count_and_no_problem():
    world = running()
    a_failed_pod(world)
    world.add_pod(world.child_of(STEP), {"phase": "Running"})
    count(world, failures=1)
    world.settle()
    assert "away" not in world.condition("Ready")["message"]
    assert tries(world) == {"disruption": 0, "infrastructure": 1, "bug": 0}
    end(world)
    assert tries(world) == {"disruption": 0, "infrastructure": 1, "bug": 0}, "and stays when it is done"
    assert "within" not in world.line(STEP)


def test_what_pods_of_each_index_say_is_added_up_and_counted_once():
    world = running(dataset={**a_run()["spec"]["dataset"], "shards": 3})
    for index, (failures, disruptions) in enumerate([(2, 0), (0, 3), (1, 1)]):
        world.add_pod(world.child_of(STEP), {"phase": "Pending", "reason": "ContainerCreating"})
        count(world, failures, disruptions, index)
    for _ in range(3):
        world.settle()
        world.now += 60
    assert tries(world) == {"disruption": 4, "infrastructure": 3, "bug": 0}


def test_the_next_child_counts_from_nothing_again():
    world = running()
    world.add_pod(world.child_of(STEP), {"phase": "Pending"})
    count(world, disruptions=2)
    world.settle()
    world.gone(f"Job/{world.child_of(STEP)['metadata']['name']}")
    world.settle()
    world.now += 5
    world.settle()
    assert world.attempts(STEP) == 2
    assert tries(world)["disruption"] == 3
    world.child_of(STEP)["status"] = {"startTime": "2027-01-15T08:00:00Z"}
    world.now += 60
    world.add_pod(world.child_of(STEP), {"phase": "Pending"})
    count(world, disruptions=1)
    world.settle()
    assert tries(world)["disruption"] == 4


@pytest.mark.parametrize(("met", "state"), [(3, "Running"), (4, "Failed")])
def test_being_taken_away_is_free_but_has_a_limit_in_a_job_too(met, state):
    world = running(retries={"disruption": 3})
    world.add_pod(world.child_of(STEP), {"phase": "Pending"})
    count(world, disruptions=met)
    world.settle()
    assert world.line(STEP)["state"] == state
    assert world.deleted == ([STEP] if state == "Failed" else [])
    if state == "Failed":
        world.drive()
        assert "taken away more than 3 times" in world.condition("Stalled")["message"]
        assert world.attempts(STEP) == 1
        world.retry()
        world.script.clear()
        world.drive()
        assert world.condition("Succeeded")["status"] == "True"
        assert world.attempts(STEP) == 2


def test_a_job_that_gives_up_says_all_of_its_tries():
    world = running()
    a_failed_pod(world, failures=6)
    world.end(world.child_of(STEP), "Failed", "FailedIndexes", "index 0 failed")
    world.drive()
    assert tries(world)["infrastructure"] == 7
    assert world.condition("Stalled")["message"] == "extract-s0: the hub is away"


def test_a_bug_is_not_said_to_be_tried_again():
    world = running()
    told = {"exitCode": 65, "message": json.dumps({"exitCode": 65, "error": "row 3 is no conversation"})}
    a_failed_pod(world, told)
    world.settle()
    assert "tried again" not in world.condition("Ready")["message"]
