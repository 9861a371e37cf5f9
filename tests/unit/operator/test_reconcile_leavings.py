"""What an ended or stopped run may not leave behind: children, lines, seconds, conditions. Pure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fusechat import plan as planning
from fusechat_operator import begins, naming
from fusechat_operator.children import child
from fusechat_operator.conditions import timestamp
from fusechat_operator.rest import rests
from fusechat_operator.workloads import Queued

from tests.unit.operator.acts import fails, finish, nothing, step_of
from tests.unit.operator.runs import SETTINGS, a_run
from tests.unit.operator.world import World, begun


def at_its_report():
    """A run in a queue whose report's child was made."""
    world = World(a_run(scheduling={"queueName": "team"}))
    for _ in range(60):
        world.settle()
        if "report" in world.created:
            return world
        for found in world.children.values():
            if step_of(found) != "report":
                world.workloads[found["metadata"]["uid"]] = Queued()
                found["spec"].get("runPolicy", found["spec"])["suspend"] = False
        for found in world.active():
            world.play(found)
        world.now += 1
    raise AssertionError(world.created)


@pytest.mark.parametrize("how", ["its queue is missing", "it escapes its quota"])
def test_a_report_that_its_queue_gave_up_does_not_stay(how):
    world = at_its_report()
    found = world.child_of("report")
    if how == "its queue is missing":
        told = Queued(homeless=True, sentence="LocalQueue team does not exist")
        world.workloads[found["metadata"]["uid"]] = told
    else:
        found["spec"]["suspend"] = False  # and it has no Workload
    world.now += 11
    world.settle()
    assert world.condition("Succeeded")["status"] == "True"
    assert [step_of(c) for c in world.children.values() if child(c).phase in ("Active", "Waiting")] == []


@pytest.mark.parametrize("upgraded", [False, True])
def test_trainjobs_go_after_their_time_whatever_stages_the_operator_has_by_then(monkeypatch, upgraded):
    world = World(a_run(launcher="TrainJob", ttl="10m"))
    world.drive()
    if upgraded:
        for module in (begins, planning):
            monkeypatch.setattr(module, "VERSIONS", {**planning.VERSIONS, "extract": 99})
    for _ in range(3):
        world.settle()
        world.now += 601
    assert [key for key in world.children if key.startswith("TrainJob")] == []
    assert rests(world.runs["run"])


@pytest.mark.parametrize("act", [finish, fails(65)])
def test_a_training_that_ends_as_the_deadline_passes_is_not_running_for_ever(act):
    world = begun("fuse-s0", deadline="1h", launcher="TrainJob", ttl="10m", resources={"fuse": {"gpus": 2}})
    found = world.child_of("fuse-s0")
    found.setdefault("status", {})["startTime"] = timestamp(world.now)
    world.now += 3601
    act(world, found)
    world.settle()
    assert world.condition("Stalled")["reason"] == "DeadlineExceeded"
    assert world.line("fuse-s0")["state"] == "Waiting"
    assert "stage" not in world.status()
    assert world.status()["gpuSeconds"] >= 2 * 3600
    for _ in range(3):
        world.now += 3600
        world.settle()
    left = [step_of(c) for c in world.children.values()]
    assert ("fuse-s0" in left) == (act is not finish), "one that failed is kept for whoever asks why"


def test_suspended_while_it_resolves_an_edit_a_run_still_knows_whose_pods_are_ending():
    world = begun("extract-s0", pinned=True)
    name = world.child_of("extract-s0")["metadata"]["name"]
    sources = [dict(source) for source in world.runs["run"]["spec"]["sources"]]
    sources[1].pop("revision")
    world.edit(sources=sources, suspend=True)
    world.settle()
    world.pods[name] = [{"metadata": {"name": "saves"}, "status": {"phase": "Running"}}]
    world.edit(suspend=False)
    world.script = {"extract-s0": [nothing] * 999}
    for _ in range(5):
        world.settle()
        for found in world.active():
            world.play(found)
        world.now += 1
    assert world.attempts("extract-s0") == 1
    assert world.line("extract-s0")["state"] == "Waiting"


def test_the_gpu_seconds_of_what_was_taken_away_too_often_are_counted():
    world = begun("extract-s0", retries={"disruption": 1})
    found = world.child_of("extract-s0")
    found.setdefault("status", {})["startTime"] = timestamp(world.now)
    before = world.status().get("gpuSeconds", 0.0)
    world.now += 1000
    world.add_pod(found, {"phase": "Pending"})
    ignored = {"batch.kubernetes.io/job-index-ignored-failure-count": "2"}
    world.pods[found["metadata"]["name"]][-1]["metadata"]["annotations"] = ignored
    found["metadata"]["resourceVersion"] = world.version()
    world.settle()
    assert world.line("extract-s0")["state"] == "Failed"
    assert world.status()["gpuSeconds"] - before == pytest.approx(1000, abs=10)


def away(ask):
    return ask.what in ("artifact", "hit", "sink")


def test_a_retry_that_is_taken_back_while_the_store_is_away_leaves_a_run_that_succeeded_ready():
    world = World(a_run())
    world.drive()
    world.away = away
    world.retry()
    world.settle()
    assert world.condition("Ready")["reason"] == "StoreUnavailable"
    world.away = lambda ask: False
    del world.runs["run"]["metadata"]["annotations"][
        naming.RETRY_AT
    ]  # as Git does with what it does not know
    assert not rests(world.runs["run"])
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Ready")["message"] == world.condition("Succeeded")["message"]
    assert rests(world.runs["run"])


def test_a_run_that_a_mended_operator_can_begin_is_not_stalled_while_its_store_is_away():
    world = World(a_run(), settings=replace(SETTINGS, store=None))
    world.settle()
    assert world.condition("Stalled")["reason"] == "InvalidSpec"
    world.settings, world.away = SETTINGS, away
    world.settle()
    assert world.condition("Ready")["reason"] == "StoreUnavailable"
    assert world.condition("Stalled") == {}


def test_an_older_resolve_does_not_outlive_its_run():
    """A retry while it is at work makes another; it would go on when that one has failed."""
    world = World(a_run(sources=1, pinned=False))
    world.settle()
    (first,) = world.active()
    world.retry()
    world.settle()
    assert world.created == ["resolve", "resolve"]
    (second,) = world.active()
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    fails(65)(world, second)
    world.settle()
    assert world.over()
    assert world.active() == []


def hours_in_a_queue(launcher):
    """GPU seconds of a run whose training waited for ten hours in its queue, and then took ten seconds."""
    world = World(a_run(sources=1, launcher=launcher, scheduling={"queueName": "q"}))
    for _ in range(60):
        world.settle()
        if world.over():
            break
        for found in list(world.children.values()):
            if child(found).phase == "Waiting":
                world.workloads[child(found).uid] = Queued()
                world.settle()
                world.now += 36_000 if step_of(found) == "fuse-s0" else 0
                admit(world, found)
        for found in world.active():
            world.settle()
            world.now += 10
            world.play(found)
    assert world.condition("Succeeded")["status"] == "True"
    return world.status().get("gpuSeconds", 0.0)


def admit(world, found):
    at = timestamp(world.now)
    found["spec"]["suspend"] = False
    found["metadata"]["resourceVersion"] = world.version()
    resumed = {"type": "Suspended", "status": "False", "reason": "Resumed", "lastTransitionTime": at}
    found["status"] = {"startTime": at, "conditions": [resumed]}


def test_what_waits_in_a_queue_uses_no_gpu_whatever_launches_it():
    assert hours_in_a_queue("TrainJob") == pytest.approx(hours_in_a_queue("Job"), abs=100)
    assert 0 < hours_in_a_queue("TrainJob") < 1000
