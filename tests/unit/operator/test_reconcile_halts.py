"""What must stop does stop, whatever else is wrong, and what has ended stays ended: by reconcile alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fusechat_operator import naming, rest

from tests.unit.operator.acts import nothing, step_of
from tests.unit.operator.runs import SETTINGS, a_run
from tests.unit.operator.world import Crash, World, begun

OF_THE_STORE = ("sink", "hit", "artifact", "metrics", "attempts", "progress")


def at_work(world):
    return [step_of(found) for found in world.active()]


def store_is_away(world):
    world.away = lambda ask: ask.what in OF_THE_STORE


def launcher_is_missing(world):
    world.edit(launcher="TrainJob")
    world.launchers = ("PyTorchJob", "Job")


def spec_is_bad(world):
    world.edit(dataset={"uri": "file:///x"})


@pytest.mark.parametrize("trouble", [store_is_away, launcher_is_missing, spec_is_bad])
def test_a_suspended_run_stops_whatever_else_is_wrong(trouble):
    world = begun("fuse-s0")
    trouble(world)
    world.edit(suspend=True)
    world.settle()
    assert (world.deleted, at_work(world)) == (["fuse-s0"], [])


def test_a_suspended_run_says_so_while_its_store_is_away_and_counts_no_attempt():
    world = begun("fuse-s0")
    store_is_away(world)
    world.edit(suspend=True)
    world.settle()
    assert "cannot be reached" in world.condition("Suspended")["message"]
    world.away = lambda ask: False
    world.edit(suspend=False)
    world.script.clear()
    world.drive()
    assert world.attempts("fuse-s0") == 2
    assert "tries" not in world.line("fuse-s0")


def test_a_run_that_is_late_stops_while_its_store_is_away():
    world = begun("fuse-s0", deadline="10m")
    store_is_away(world)
    world.edit(ttl="12m")
    world.now += 700
    world.settle()
    assert at_work(world) == []
    world.away = lambda ask: False
    world.settle()
    assert world.condition("Stalled")["reason"] == "DeadlineExceeded"


def test_a_run_that_is_late_while_its_origins_are_resolved_ends():
    world = World(a_run(pinned=False, deadline="10m"))
    world.script = {"resolve": [nothing] * 99}
    world.settle()
    world.now += 3600
    decision = world.settle()
    assert world.condition("Stalled")["reason"] == "DeadlineExceeded"
    assert (at_work(world), decision.again) == ([], None)


def late(world):
    world.now += 700


def edited(world):
    world.edit(sources=world.runs["run"]["spec"]["sources"][1:])


@pytest.mark.parametrize("change", [late, edited])
def test_a_child_that_changed_since_it_was_looked_at_is_stopped_all_the_same(change):
    world = begun("fuse-s0", deadline="10m")
    change(world)
    decision = world.decide()
    world.child_of("fuse-s0")["metadata"]["resourceVersion"] = world.version()
    world.carry_out("run", decision)
    assert "fuse-s0" not in at_work(world)


@pytest.mark.parametrize("change", [late, edited])
def test_no_status_says_that_a_child_is_stopped_before_it_is(change):
    for most in range(3):
        world = begun("fuse-s0", deadline="10m")
        change(world)
        with pytest.raises(Crash):
            world.turn(most=most)
        world.settle()
        assert "fuse-s0" not in at_work(world), f"a crash after {most} effects loses the deletion"


def test_a_retry_long_after_the_deadline_stops_nothing_that_still_runs():
    world = begun("fuse-s0", deadline="10m")
    world.status()["conditions"] = [
        {**c, "status": "False"} if c["type"] == "Succeeded" else c for c in world.status()["conditions"]
    ]
    world.now += 7000
    world.retry()
    world.settle()
    assert (at_work(world), world.deleted) == (["fuse-s0"], [])


def test_a_run_that_succeeded_stays_so_without_a_store_and_without_its_annotation():
    world = World(a_run())
    world.drive()
    world.retry()
    world.drive()
    del world.runs["run"]["metadata"]["annotations"][naming.RETRY_AT]
    assert rest.rests(world.runs["run"])
    world.settings = replace(SETTINGS, store=None)
    world.settle()
    assert world.condition("Ready")["reason"] == "Succeeded"


def test_a_retry_makes_what_a_succeeded_run_has_lost():
    world = World(a_run())
    world.drive()
    merged = world.address("merge")
    world.artifacts.pop(merged)
    world.now += 1e6
    world.children.clear()
    world.retry()
    status = world.drive()
    assert merged in world.artifacts
    assert (status["score"], world.attempts("merge")) == ("0.500", 2)


def test_the_steps_of_before_an_edit_are_told_while_new_origins_are_resolved():
    world = begun("fuse-s0")
    known = {line["name"]: line["state"] for line in world.status()["steps"]}
    world.script["resolve"] = [nothing] * 9
    new = {"name": "s9", "uri": "s3://fuse/models/s9"}
    world.edit(sources=[*world.runs["run"]["spec"]["sources"], new])
    world.settle()
    told = {line["name"]: line["state"] for line in world.status()["steps"]}
    assert told == {"resolve": "Running", **known}
    world.script.clear()
    world.drive()
    assert "resolve" not in {line["name"] for line in world.status()["steps"]}
    assert world.attempts("fuse-s0") == 1
