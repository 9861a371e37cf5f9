"""A run that rests is one that reconcile would do nothing about: the one is asked of the other."""

from __future__ import annotations

import pytest
from fusechat_operator import naming
from fusechat_operator.decision import Decision
from fusechat_operator.rest import rests

from tests.unit.operator.acts import fails
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import World, begun


def ended(*, failed: bool = False, launcher: str = "Job") -> World:
    world = World(a_run(launcher=launcher))
    world.script = {"merge": [fails(65)]} if failed else {}
    world.drive()
    return world


def deleted() -> World:
    world = begun("merge")
    world.runs["run"]["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    return world


def retried() -> World:
    world = ended(failed=True)
    world.retry()
    return world


def tried_again_in_vain() -> World:
    world = retried()
    world.script = {"merge": [fails(65)]}
    world.drive()
    return world


def edited(world: World | None = None) -> World:
    world = world or ended()
    world.edit(ttl="2h")
    return world


def cleared() -> World:
    """Its TrainJobs are gone by its time to live."""
    world = World(a_run(launcher="TrainJob", ttl="10m"))
    world.drive()
    world.now += 601
    world.settle()
    assert sorted(world.deleted) == ["fuse-s0", "fuse-s1"]
    return world


def of_hits() -> World:
    """Another has trained all of it."""
    world = World(a_run(launcher="TrainJob"))
    world.drive()
    world.remove("run")
    world.add(a_run(launcher="TrainJob"))
    world.drive()
    world.settle()
    return world


def unplannable() -> World:
    run = a_run()
    run["spec"]["storage"] = {"uri": "file:///somewhere"}
    world = World(run)
    world.settle()
    return world


RESTING = {
    "succeeded": ended,
    "failed": lambda: ended(failed=True),
    "failed, and again after a retry": tried_again_in_vain,
    "deleted": deleted,
    "of TrainJobs that are gone": cleared,
    "of hits in place of TrainJobs": of_hits,
}
BUSY = {
    "new": lambda: World(a_run()),
    "running": lambda: begun("fuse-s0"),
    "edited": edited,
    "retried": retried,
    "suspended": lambda: World(a_run(suspend=True)),
    "of TrainJobs": lambda: ended(launcher="TrainJob"),
    "of TrainJobs that were gone, and edited": lambda: edited(cleared()),
    "unplannable, which another operator may plan": unplannable,
}


@pytest.mark.parametrize("case", RESTING)
def test_nothing_would_be_done_about_a_run_that_rests(case):
    world = RESTING[case]()
    assert rests(world.runs["run"])
    world.asked.clear()
    assert world.decide() == Decision()
    assert not world.asked


@pytest.mark.parametrize("case", BUSY)
def test_a_run_about_which_something_may_be_done_does_not_rest(case):
    assert not rests(BUSY[case]().runs["run"])


def test_a_note_of_somebody_else_wakes_nobody():
    world = ended()
    world.runs["run"]["metadata"]["annotations"]["example.org/team"] = "x"
    assert naming.RETRY_AT not in world.runs["run"]["metadata"]["annotations"]
    assert rests(world.runs["run"])


def test_an_edit_of_a_run_whose_trainjobs_are_gone_makes_and_clears_those_that_it_needs():
    world = edited(cleared())
    world.edit(fuse={"epochs": 9})
    world.drive()
    assert not rests(world.runs["run"])
    world.now += 2 * 3600 + 1
    world.settle()
    assert len(world.deleted) == 4
    assert rests(world.runs["run"])


@pytest.mark.parametrize("answer", ["no answer", "not gone yet"])
def test_a_run_whose_trainjobs_may_be_there_still_does_not_rest(answer):
    world = ended(launcher="TrainJob")
    world.now += 601 if answer == "no answer" else 1
    world.away = lambda ask: answer == "no answer" and ask.what == "own"
    world.settle()
    assert not rests(world.runs["run"])
