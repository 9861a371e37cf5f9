"""Two runs that need the same artifacts, by reconcile alone: one child, and nobody is left behind."""

from __future__ import annotations

import pytest
from fusechat_operator.children import child

from tests.unit.operator.acts import evicted, fails, nothing
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import World


def two(**second) -> World:
    """A run whose extract-s0 goes on for ever, and another that needs the same artifacts."""
    world = World(a_run("first", data="x"), a_run("second", data="x", **second))
    world.script = {"extract-s0": [nothing] * 3}
    for _ in range(4):
        world.settle("first"), world.settle("second")
        for found in world.active():
            world.play(found)
        world.script["extract-s0"] = [nothing] * 3
    return world


def test_two_runs_that_need_one_artifact_have_one_child():
    world = World(a_run("first", data="x"), a_run("second", data="x"))
    world.drive("first", "second")
    steps = [step for step in world.created if step != "report"]
    assert sorted(steps) == sorted(set(steps))
    assert (world.created.count("report"), world.condition("Ready", "second")["status"]) == (2, "True")


def test_the_other_run_waits_for_a_child_that_is_not_its_own_and_says_so():
    world = two()
    decision = world.settle("second")
    name = world.child_of("extract-s0")["metadata"]["name"]
    assert name in decision.shared
    assert decision.again is not None
    assert world.line("extract-s0", "second")["state"] == "Waiting"
    detail = next(d for d in world.status("second")["details"] if d["name"] == "extract-s0")
    assert detail["message"] == "another run is making the same artifact: first"


def test_when_the_owner_goes_the_other_makes_its_own():
    world = two()
    world.script.clear()
    world.remove("first")
    world.drive("second")
    assert world.attempts("extract-s0") == 2
    assert len({step for step in world.created if world.attempts(step) > 1} - {"extract-s0"}) == 0


def test_a_bug_in_anothers_child_fails_the_step_and_a_retry_takes_it_over():
    world = two()
    fails(65, "no supervised token")(world, world.child_of("extract-s0"))
    world.script.clear()
    world.drive("second")
    assert (
        "another run failed to make it (no supervised token)"
        in (world.condition("Stalled", "second")["message"])
    )
    world.retry("second")
    world.drive("second")
    assert world.attempts("extract-s0") == 2
    assert child(world.child_of("extract-s0")).owner == world.runs["second"]["metadata"]["uid"]
    assert world.condition("Ready", "second")["status"] == "True"


def fusing() -> World:
    """Two runs, the second waiting for the first one's training."""
    world = World(a_run("first", data="x"), a_run("second", data="x"))
    world.script = {"fuse-s0": [nothing] * 1000}
    world.drive("first", "second", until=lambda: world.line("fuse-s0", "second").get("state") == "Waiting")
    world.script.clear()
    return world


def test_who_waits_for_anothers_child_says_what_that_one_waits_for():
    world = two()
    world.now += 60
    stuck = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/5 nodes"}
    world.add_pod(world.child_of("extract-s0"), {"phase": "Pending", "conditions": [stuck]})
    world.settle("second")
    told = world.condition("Ready", "second")["message"]
    assert "another run is making the same artifact: first; no node has room" in told


def test_a_child_of_another_that_somebody_deletes_is_waited_for():
    world = two()
    world.child_of("extract-s0")["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    decision = world.settle("second")
    assert world.child_of("extract-s0")["metadata"]["name"] in decision.shared
    assert decision.again is not None


def oom(world, found):
    listed = [{"name": "pytorch", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]
    world.add_pod(found, {"phase": "Failed", "containerStatuses": listed})
    world.end(found, "Failed", "PodFailurePolicy", "the child failed")


def spent(world, found):
    fails(75, "the hub is away", reason="MaxFailedIndexesExceeded")(world, found)


@pytest.mark.parametrize(("step", "act"), [("fuse-s0", oom), ("extract-s0", spent)])
def test_what_the_owner_had_too_little_of_another_may_have_enough_of(step, act):
    frugal, other = a_run("first", data="x", retries={"infrastructure": 0}), a_run("second", data="x")
    world = World(frugal, other)
    world.script = {step: [nothing] * 1000}
    world.drive("first", "second", until=lambda: world.line(step, "second").get("state") == "Waiting")
    act(world, world.child_of(step))
    world.settle("first")
    assert world.line(step, "first")["state"] == "Failed"
    world.script.clear()
    world.drive("second")
    assert (world.attempts(step), world.condition("Ready", "second")["status"]) == (2, "True")


@pytest.mark.parametrize("act", [evicted, fails(75)])
def test_an_attempt_of_the_owner_that_is_tried_again_fails_nobody(act):
    world = fusing()
    act(world, world.child_of("fuse-s0"))
    world.settle("second")
    assert world.line("fuse-s0", "second")["state"] == "Waiting"
    world.drive("first", "second")
    assert world.attempts("fuse-s0") == 2
    assert world.condition("Ready", "second")["status"] == "True"


def test_what_the_owner_leaves_lying_is_taken_over():
    world = fusing()
    evicted(world, world.child_of("fuse-s0"))
    world.runs["first"]["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    world.drive("second")
    assert world.attempts("fuse-s0") == 2
    assert child(world.child_of("fuse-s0")).owner == world.runs["second"]["metadata"]["uid"]


def test_a_child_that_has_done_its_work_for_another_run_is_no_reason_to_wait_when_the_artifact_is_gone():
    world = World(a_run("first", data="x"))
    world.drive("first")
    del world.artifacts[world.address("merge", "first")]
    del world.artifacts[world.address("evaluate-fused", "first")]
    world.add(a_run("second", data="x"))
    world.drive("second")
    assert world.attempts("merge") == 2


def test_a_run_that_owns_nothing_deletes_nothing_of_others_when_it_is_suspended():
    world = two()
    world.edit("second", suspend=True)
    world.settle("second")
    assert not world.deleted
