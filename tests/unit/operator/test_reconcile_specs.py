"""What is settled before a plan, by reconcile alone: pins, launcher, store, specs that cannot be obeyed."""

from __future__ import annotations

import pytest

from tests.unit.operator.acts import step_of, told
from tests.unit.operator.runs import SETTINGS, a_run
from tests.unit.operator.world import World, matching


def test_origins_that_are_not_pinned_are_resolved_first_and_once():
    world = World(a_run(pinned=False))
    world.settle()
    assert world.created == ["resolve"]
    assert {line["name"] for line in world.status()["steps"]} == {"resolve"}
    status = world.drive()
    assert world.created.count("resolve") == 1
    pins = {pin["name"]: pin["pin"] for pin in status["plan"]["pins"]}
    assert set(pins) == {"pivot", "s0", "s1", "dataset", "exactmatch"}
    assert all(pin.startswith("sha256:") for pin in pins.values())
    condition = world.condition("Reproducible")
    assert (condition["status"], condition["reason"]) == ("False", "NotPinned")
    assert "pivot, s0, s1, dataset, exactmatch" in condition["message"]
    assert "resolve" not in {line["name"] for line in status["steps"]}


def test_an_edit_keeps_the_pins_of_what_it_leaves():
    world = World(a_run(pinned=False))
    before = {pin["name"]: pin["pin"] for pin in world.drive()["plan"]["pins"]}
    count = len(world.created)
    sources = world.runs["run"]["spec"]["sources"]
    sources[1]["uri"] = "s3://fuse/models/other"
    world.edit(sources=sources)
    after = {pin["name"]: pin["pin"] for pin in world.drive()["plan"]["pins"]}
    assert {name for name in before if before[name] != after[name]} == {"s1"}
    assert world.created[count:].count("resolve") == 1
    assert not matching(world.created[count:], "(fetch|extract|align|filter|fuse)-s0")


def test_a_hub_model_at_a_branch_waits_for_its_commit_too():
    run = a_run()
    run["spec"]["pivot"] = {"name": "pivot-model", "uri": "hf://owner/model", "revision": "main"}
    world = World(run)
    world.settle()
    assert world.created == ["resolve"]
    origins = told(world.child_of("resolve")).params["origins"]
    assert set(origins) == {"pivot"}, "what is pinned is not asked for"


@pytest.mark.parametrize(
    ("asked", "there", "kind", "why"),
    [
        ("Auto", ("PyTorchJob", "TrainJob", "Job"), "PyTorchJob", "PyTorchJob (Auto: the first"),
        ("Auto", ("TrainJob", "Job"), "TrainJob", "TrainJob (Auto: the first"),
        ("Auto", ("Job",), "Job", "Job (Auto: the first"),
        ("Job", ("PyTorchJob", "TrainJob", "Job"), "Job", "Job (as asked)"),
        ("TrainJob", ("PyTorchJob", "TrainJob", "Job"), "TrainJob", "TrainJob (as asked)"),
    ],
)
def test_the_launcher_is_what_is_asked_for_or_the_first_that_is_installed(asked, there, kind, why):
    world = World(a_run(launcher=asked))
    world.launchers = there
    status = world.drive()
    assert {c["kind"] for c in world.children.values() if step_of(c).startswith("fuse")} <= {kind}
    assert world.created.count("fuse-s0") == 1
    assert status["launcher"].startswith(why)


def test_a_launcher_that_is_not_installed_is_said_and_waited_for():
    world = World(a_run(launcher="TrainJob"))
    world.launchers = ("PyTorchJob", "Job")
    decision = world.turn()
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "LauncherMissing")
    assert "launcher TrainJob is not installed" in stalled["message"]
    assert "PyTorchJob, Job" in stalled["message"]
    assert decision.again is not None, "it may be installed yet"
    assert not world.created
    world.launchers = ("PyTorchJob", "TrainJob", "Job")
    world.drive()


def test_a_launcher_that_is_installed_later_does_not_change_a_run_that_has_begun():
    world = World(a_run())
    world.launchers = ("Job",)
    world.settle()
    world.launchers = ("PyTorchJob", "TrainJob", "Job")
    status = world.drive()
    assert status["launcher"].startswith("Job ")


def test_local_files_are_refused_with_a_sentence():
    run = a_run()
    run["spec"]["sources"][0] = {"name": "s0", "uri": "file://./models/s0"}
    world = World(run)
    world.settle()
    stalled = world.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "InvalidSpec")
    assert stalled["message"].startswith("s0: a cluster's Pods cannot read file:// of your machine; copy it")
    assert not world.created
    assert [kind for kind, *_ in world.events] == ["Warning"], "once, however often it is looked at"
    world.edit(sources=a_run()["spec"]["sources"])
    world.drive()


def test_without_any_storage_the_run_says_what_to_set():
    settings = type(SETTINGS)(**{**vars(SETTINGS), "store": None})
    world = World(a_run(), settings=settings)
    world.settle()
    stalled = world.condition("Stalled")
    assert (stalled["status"], "no default store" in stalled["message"]) == ("True", True)
    assert not world.created
    world.settings = SETTINGS
    world.drive()


def test_a_refused_run_is_reconsidered_only_by_its_spec_and_writes_nothing_twice():
    run = a_run()
    run["spec"]["fuse"] = {"globalBatch": 2}
    world = World(run)
    world.settle()
    version = world.runs["run"]["metadata"]["resourceVersion"]
    world.now += 1000
    world.settle()
    assert world.runs["run"]["metadata"]["resourceVersion"] == version
    assert "is more than globalBatch" in world.condition("Ready")["message"]
    world.edit(fuse={})
    assert world.drive()["observedGeneration"] == 2


def test_a_store_that_is_away_does_not_change_what_is_reproducible():
    run = a_run()
    del run["spec"]["pivot"]["revision"]
    world = World(run)
    world.drive(until=lambda: world.line("extract-pivot").get("state") == "Running")
    world.edit(merge={"method": "linear"})
    world.away = lambda ask: ask.what in ("artifact", "hit", "sink")
    world.settle()
    assert world.condition("Reproducible")["status"] == "False"


def test_an_unreadable_spec_leaves_what_was_said_of_reproducibility():
    run = a_run()
    del run["spec"]["pivot"]["revision"]
    world = World(run)
    world.drive()
    world.edit(fuse={"globalBatch": 2})
    world.settle()
    assert world.condition("Reproducible")["status"] == "False"
