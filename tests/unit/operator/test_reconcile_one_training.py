"""One training of an artifact at a time, whatever launches it and whoever asks: by reconcile alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.operator.acts import nothing, running, step_of
from tests.unit.operator.runs import SETTINGS, a_run
from tests.unit.operator.world import World, begun

IN_QUEUE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/5 nodes"}
NO_IMAGE = {
    "name": "pytorch",
    "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
}


def trainings(world, step="fuse-s0"):
    return [found["kind"] for found in world.children.values() if step_of(found) == step]


def with_a_pod(world, step="fuse-s0"):
    """The Pods of a training that runs, to be left over when it is deleted."""
    found = world.child_of(step)
    world.add_pod(found, {"phase": "Running"})
    return found["metadata"]["name"], world.pods[found["metadata"]["name"]]


def out_of_memory(world, found):
    state = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    listed = [{"name": "pytorch", "state": state}]
    world.add_pod(found, {"phase": "Failed", "containerStatuses": listed})
    world.end(found, "Failed", "JobFailed", "the child failed")


def test_another_launcher_trains_when_the_first_ones_pods_are_gone():
    world = begun("fuse-s0")
    name, pods = with_a_pod(world)
    world.edit(launcher="Job")
    world.turn()
    world.pods[name] = pods
    world.settle()
    assert trainings(world) == []
    del world.pods[name]
    world.settle()
    assert trainings(world) == ["Job"]
    world.script.clear()
    world.drive()
    assert "tries" not in world.line("fuse-s0"), "an edit is no fault of the training"


def test_a_launcher_that_is_installed_later_is_for_runs_that_begin():
    world = World(a_run())
    world.launchers, world.script = ("Job",), {"fuse-s0": [nothing] * 99}
    world.drive(until=lambda: world.line("fuse-s0").get("state") == "Running")
    world.launchers = ("PyTorchJob", "Job")
    world.edit(ttl="11m")
    world.settle()
    assert (trainings(world), world.deleted) == (["Job"], [])
    assert world.status()["launcher"].startswith("Job (Auto")


def test_two_runs_with_two_launchers_share_one_training():
    world = World(a_run("a", launcher="PyTorchJob"), a_run("b", launcher="Job"))
    world.script = {"fuse-s0": [nothing] * 99, "fuse-s1": [nothing] * 99}
    for _ in range(20):
        for name in ("a", "b"):
            world.settle(name)
        for found in world.active():
            world.play(found)
        world.now += 3
    assert trainings(world) == trainings(world, "fuse-s1") == ["PyTorchJob"]
    assert world.line("fuse-s0", "b")["state"] == "Waiting"
    world.script.clear()
    world.drive("a", "b")
    assert world.created.count("fuse-s0") == 1


def resumed(world):
    world.edit(suspend=True)
    world.settle()
    world.edit(suspend=False)


def applied_again(world):
    world.remove("run")
    world.add(a_run())


@pytest.mark.parametrize("change", [resumed, applied_again])
def test_a_training_waits_until_the_pods_of_the_one_before_have_saved(change):
    world = begun("fuse-s0")
    name, pods = with_a_pod(world)
    change(world)
    world.pods[name] = pods
    decision = world.settle()
    assert trainings(world) == []
    assert decision.again is not None
    del world.pods[name]
    world.settle()
    assert trainings(world) == ["PyTorchJob"]


def stuck(world, **pod):
    world.now += 60
    world.add_pod(world.child_of("fuse-s0"), {"phase": "Pending", **pod})
    world.settle()
    assert world.condition("Ready")["status"] == "False"


def test_a_training_that_cannot_be_placed_is_made_anew_when_an_edit_says_where():
    world = begun("fuse-s0")
    stuck(world, conditions=[IN_QUEUE])
    world.edit(scheduling={"nodeSelector": {"zone": "b"}})
    world.settle()
    replica = world.child_of("fuse-s0")["spec"]["pytorchReplicaSpecs"]["Master"]
    assert replica["template"]["spec"]["nodeSelector"] == {"zone": "b"}
    assert world.deleted == ["fuse-s0"]


def test_an_edit_that_does_not_concern_it_leaves_a_training_that_waits_in_its_place():
    world = begun("fuse-s0")
    stuck(world, conditions=[IN_QUEUE])
    world.edit(merge={"method": "linear"})
    world.settle()
    assert world.deleted == []


def test_a_retry_takes_the_image_that_was_mended():
    world = begun("fuse-s0")
    stuck(world, containerStatuses=[NO_IMAGE])
    world.settings = replace(SETTINGS, image="registry.example/stages:good")
    world.retry()
    world.settle()
    replica = world.child_of("fuse-s0")["spec"]["pytorchReplicaSpecs"]["Master"]
    assert replica["template"]["spec"]["containers"][0]["image"] == "registry.example/stages:good"


def test_a_training_that_runs_is_not_made_anew_by_edit_or_retry():
    world = begun("fuse-s0")
    running(world.child_of("fuse-s0"))
    uid = world.child_of("fuse-s0")["metadata"]["uid"]
    world.settings = replace(SETTINGS, image="registry.example/stages:2")
    world.edit(scheduling={"nodeSelector": {"zone": "b"}})
    world.settle()
    world.retry()
    world.settle()
    assert world.child_of("fuse-s0")["metadata"]["uid"] == uid


def test_of_two_runs_neither_repeats_a_training_that_both_have_given_up():
    """While both have other work: taking the other's failed child over would go on without end."""
    world = World(a_run("first", data="x"), a_run("second", data="x"))
    world.script = {"fuse-s1": [nothing] * 10_000, "fuse-s0": [out_of_memory] * 10_000}
    for _ in range(60):
        for name in ("first", "second"):
            world.settle(name)
        for found in world.active():
            world.play(found)
        world.now += 10
    assert world.attempts("fuse-s0") <= 2
    for name in ("first", "second"):
        assert world.line("fuse-s0", name)["state"] == "Failed"
        assert world.line("fuse-s0", name)["tries"]["bug"] == 1
