"""Other operators, a store that is away, an API server that refuses, full nodes: by reconcile alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fusechat import plan as planning
from fusechat_operator import begins as module
from fusechat_operator import rest
from fusechat_operator.settings import DefaultStore

from tests.unit.operator.acts import finish, running, step_of
from tests.unit.operator.runs import SETTINGS, STORE, a_run
from tests.unit.operator.world import World, begun

NOW = module.VERSIONS["merge"]


def newer(monkeypatch, **versions):
    for each in (module, planning):
        monkeypatch.setattr(each, "VERSIONS", {**module.VERSIONS, **versions})


def images(world):
    jobs = [found for found in world.children.values() if found["kind"] == "Job"]
    return {job["spec"]["template"]["spec"]["containers"][0]["image"] for job in jobs}


def test_another_operator_goes_on_with_the_stages_that_a_run_began_with(monkeypatch):
    world = begun("fuse-s0")
    newer(monkeypatch, fuse=9, merge=NOW + 1, report=9)
    world.settings = replace(world.settings, image="registry.example/stages:2")
    world.script.clear()
    status = world.drive()
    assert world.condition("Succeeded")["status"] == "True"
    assert {world.told(found).version for found in world.children.values()} <= {1, NOW}
    assert images(world) == {"registry.example/stages:1"}
    assert (status["plan"]["versions"]["merge"], world.attempts("fuse-s0")) == (NOW, 1)


def test_a_retry_begins_anew_with_the_stages_of_now(monkeypatch):
    world = begun("fuse-s0")
    running(world.child_of("fuse-s0"))
    newer(monkeypatch, merge=NOW + 1)
    world.settings = replace(world.settings, image="registry.example/stages:2")
    world.script.clear()
    world.retry()
    status = world.drive()
    assert status["plan"]["versions"]["merge"] == NOW + 1
    assert set(status["plan"]["images"].values()) == {"registry.example/stages:2"}
    assert world.attempts("fuse-s0") == 1, "what it was at is as before"


def test_a_run_that_another_operator_plans_otherwise_waits_for_a_retry_or_for_the_first_to_come_back():
    world = begun("fuse-s0")
    digest = world.status()["plan"]["digest"]
    world.status()["plan"]["digest"] = "of other code"
    world.settle()
    stalled = world.condition("Stalled")
    assert stalled["reason"] == "PlanChanged"
    assert "set the annotation fusechat.io/retry-at" in stalled["message"]
    assert (world.deleted, rest.rests(world.runs["run"])) == ([], False), "nothing is lost"
    world.script.clear()
    world.status()["plan"]["digest"] = digest
    world.drive()
    assert (world.condition("Succeeded")["status"], world.attempts("fuse-s0")) == ("True", 1)


def test_another_operator_leaves_what_has_ended_alone(monkeypatch):
    world = World(a_run())
    world.drive()
    newer(monkeypatch, merge=NOW + 1)
    world.settle()
    assert world.condition("Ready")["status"] == "True"


def test_another_operator_with_the_same_plan_goes_on_with_the_images_it_began_with():
    world = begun("fuse-s0")
    world.settings = replace(world.settings, image="registry.example/stages:2")
    world.script.clear()
    world.drive()
    assert images(world) == {"registry.example/stages:1"}
    world.edit(merge={"method": "linear"})
    world.drive()
    assert set(world.status()["plan"]["images"].values()) == {"registry.example/stages:2"}


def begun_and_moved():
    """A run at its training when the chart names another default store."""
    world = begun("fuse-s0")
    old = world.child_of("fuse-s0")["metadata"]["name"]
    world.settings = replace(SETTINGS, store=DefaultStore("s3://other/world"))
    world.artifacts, world.there = {}, world.artifacts
    world.script.clear()
    return world, old


def test_another_default_store_starts_nothing_and_the_old_one_lets_the_run_go_on():
    world, _ = begun_and_moved()
    before, made = world.status(), list(world.created)
    decision = world.settle()
    stalled = world.condition("Stalled")
    assert stalled["reason"] == "StoreChanged"
    assert f"began in the store {STORE}" in stalled["message"]
    assert "makes it s3://other/world now" in stalled["message"]
    assert "set the chart's store back, or set the annotation fusechat.io/retry-at" in stalled["message"]
    assert (world.created, world.deleted, decision.again) == (made, [], None)
    assert [reason for _, reason, _ in world.events].count("StoreChanged") == 1
    assert {**world.status(), "conditions": ()} == {**before, "conditions": ()}
    world.settings, world.artifacts = SETTINGS, world.there
    world.drive()
    assert world.condition("Ready")["status"] == "True"
    assert world.attempts("fuse-s0") == 1
    assert "tries" not in world.line("fuse-s0")


@pytest.mark.parametrize("asked", ["a retry", "an edit"])
def test_after_another_default_store_the_run_begins_anew_there_if_a_person_says_so(asked):
    world, old = begun_and_moved()
    world.settle()
    assert world.condition("Stalled")["reason"] == "StoreChanged"
    world.retry() if asked == "a retry" else world.edit(ttl="20m")
    world.settle()
    assert world.deleted == ["fuse-s0"], "the training in the old store is stopped"
    assert world.status()["plan"]["store"] == "s3://other/world"
    world.drive()
    assert world.attempts("fetch-s0") == 2
    assert world.child_of("fuse-s0")["metadata"]["name"] != old
    assert not [line for line in world.status()["steps"] if line.get("tries")]


def test_a_suspended_run_says_once_that_its_store_is_another():
    world, _ = begun_and_moved()
    world.settle()
    world.settings = SETTINGS
    world.edit(suspend=True)
    world.settle()
    world.settings = replace(SETTINGS, store=DefaultStore("s3://other/world"))
    world.settle()
    world.now += 60
    assert world.settle().again is None
    assert "began in the store" in world.condition("Suspended")["message"]
    assert [reason for _, reason, _ in world.events].count("StoreChanged") == 2, "once each time"


def test_a_run_of_an_older_operator_that_wrote_no_store_down_goes_on():
    world = begun("fuse-s0")
    del world.status()["plan"]["store"]
    world.settle()
    assert world.status()["plan"]["store"] == STORE
    assert world.condition("Ready")["reason"] == "Progressing"


def test_a_run_that_has_ended_does_not_mind_another_default_store():
    world = World(a_run())
    world.drive()
    world.settings = replace(SETTINGS, store=DefaultStore("s3://other/world"))
    world.settle()
    assert world.condition("Ready")["status"] == "True"


def test_a_store_that_is_away_stops_nothing_for_good_and_is_said():
    world = begun("fuse-s0")
    world.away = lambda ask: ask.what in ("artifact", "hit", "sink", "metrics", "progress", "attempts")
    finish(world, world.child_of("fuse-s0"))
    decision = world.settle()
    ready = world.condition("Ready")
    assert (ready["reason"], "the store cannot be reached" in ready["message"]) == ("StoreUnavailable", True)
    assert decision.again is not None
    assert decision.again <= 15
    assert world.condition("Stalled") == {}
    world.away = lambda ask: False
    world.drive()
    assert world.attempts("fuse-s0") == 1


def test_a_new_run_waits_for_a_store_that_is_away_and_creates_nothing():
    world = World(a_run(pinned=True))
    world.away = lambda ask: ask.what in ("artifact", "hit", "sink")
    decision = world.settle()
    assert world.condition("Ready")["reason"] == "StoreUnavailable"
    assert (world.created, decision.again is not None) == ([], True)


def test_a_refused_child_is_said_and_the_rest_goes_on():
    world = World(a_run())
    world.refuses = lambda found: "exceeded quota: few" if step_of(found) == "fetch-s0" else ""
    decision = world.settle()
    ready = world.condition("Ready")
    assert "fetch-s0: the API server does not take its child: exceeded quota: few" in ready["message"]
    assert decision.again is not None
    assert "fetch-s1" in world.created
    assert world.condition("Stalled") == {}
    world.refuses = lambda found: ""
    world.now += 16
    world.drive()
    assert world.attempts("fetch-s0") == 1


def test_a_child_without_pods_says_what_its_controller_complains_of():
    world = World(a_run())
    world.settle()
    uid = world.child_of("fetch-s0")["metadata"]["uid"]
    world.warnings[uid] = "pods is forbidden: exceeded quota: few"
    world.now += 9
    world.settle()
    assert "fetch-s0: its Pods cannot be made: pods is forbidden" in world.condition("Ready")["message"]
    assert world.condition("Stalled") == {}


def test_a_pod_without_room_is_said_and_waited_for():
    world = World(a_run())
    world.drive(until=lambda: "extract-pivot" in world.created)
    pending = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    waiting = {
        "phase": "Pending",
        "conditions": [{**pending, "message": "0/3 nodes: Insufficient nvidia.com/gpu"}],
    }
    world.add_pod(world.child_of("extract-pivot"), waiting)
    world.now += 9
    world.settle()
    message = world.condition("Ready")["message"]
    assert "extract-pivot: no node has room for Pod" in message
    assert "Insufficient nvidia.com/gpu" in message
    assert world.condition("Stalled") == {}


@pytest.mark.parametrize("asked", ["a retry", "an edit"])
def test_a_store_that_is_away_when_a_run_begins_anew_takes_none_of_its_deadline(asked):
    world = begun("fuse-s0", deadline="10m")
    world.now += 700
    world.settle()
    assert world.condition("Stalled")["reason"] == "DeadlineExceeded"
    world.away = lambda ask: ask.what in ("artifact", "hit", "sink")
    world.retry() if asked == "a retry" else world.edit(ttl="20m")
    world.settle()
    assert world.condition("Ready")["reason"] == "StoreUnavailable"
    world.away = lambda ask: False
    world.settle()
    assert world.condition("Ready")["reason"] == "Progressing"
