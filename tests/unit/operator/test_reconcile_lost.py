"""Artifacts that are gone or of other bytes, by reconcile alone: what is made again, and what is not."""

from __future__ import annotations

import copy

import pytest
from fusechat_operator.facts import Ask

from tests.unit.operator.acts import fails, finish, publish
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import Crash, World, begun, matching


def lost(world: World, step: str):
    """An act: the stage misses an input, which is gone."""

    def act(world: World, found) -> None:
        world.artifacts.pop(world.address(step), None)
        fails(66, f"input {step} is not in the store")(world, found)

    return act


def test_a_missing_input_is_made_again_once():
    world = World(a_run())
    world.loses = True
    world.script["filter-s0"] = [lost(world, "align-s0")]
    status = world.drive()
    twice = {step for step in world.created if world.attempts(step) == 2}
    assert twice == {"align-s0", "filter-s0"}
    assert status["progress"] == "16/16"


def test_a_second_miss_is_a_bug():
    world = World(a_run())
    world.loses = True
    world.script["filter-s0"] = [lost(world, "align-s0")] * 3
    world.drive()
    assert world.attempts("filter-s0") == 2
    assert world.line("filter-s0")["state"] == "Failed"
    assert world.condition("Stalled")["message"] == "filter-s0: input align-s0 is not in the store"


def test_inputs_of_a_missing_input_that_are_gone_too_are_made_again():
    world = World(a_run())
    world.loses = True
    extract = world.address("extract-s0")

    def both(world, found):
        world.artifacts.pop(extract)
        lost(world, "align-s0")(world, found)

    def lacks(world, found):
        (finish if extract in world.artifacts else fails(66, "no extract"))(world, found)

    world.script = {"filter-s0": [both], "align-s0": [finish, lacks, lacks]}
    world.drive()
    counts = {step: world.attempts(step) for step in ("extract-s0", "align-s0", "filter-s0")}
    assert counts == {"extract-s0": 2, "align-s0": 3, "filter-s0": 2}
    assert world.condition("Ready")["status"] == "True"


def grown(world: World) -> World:
    """A run that succeeded, and whose pivot's extract is gone when a source is added."""
    sources = world.runs["run"]["spec"]["sources"]
    world.runs["run"]["spec"]["sources"] = sources[:2]
    world.drive()
    world.artifacts.pop(world.address("extract-pivot"))
    world.created.clear()
    world.edit(sources=sources)
    return world


def test_a_hit_made_of_other_bytes_than_its_input_has_now_is_made_anew():
    world = grown(World(a_run(sources=3)))
    world.script["extract-pivot"] = [lambda w, f: (publish(w, f, "other bytes"), finish(w, f))]
    world.drive()
    assert world.forgotten, "the stale artifact is set aside, or its step could not publish"
    own = {f"{stage}-s2" for stage in ("fetch", "extract", "align", "filter", "fuse")}
    stale = {f"{stage}-s{i}" for stage in ("align", "filter", "fuse") for i in (0, 1)}
    ends = {"extract-pivot", "merge", "evaluate-fused", "report"}
    assert set(world.created) == own | stale | ends
    assert len(world.created) == len(set(world.created))


def test_an_input_made_again_with_the_same_bytes_leaves_its_hits():
    world = grown(World(a_run(sources=3)))
    world.drive()
    assert not world.forgotten
    assert not matching(world.created, "(align|filter|fuse)-s[01]")


@pytest.mark.parametrize("cleared", [False, True], ids=["its old child is there", "its old child is gone"])
def test_a_crash_around_a_stale_artifact_that_is_set_aside_loses_nothing(cleared):
    world = grown(World(a_run(sources=3)))
    if cleared:
        world.children.clear()
    world.script["extract-pivot"] = [lambda w, f: (publish(w, f, "other bytes"), finish(w, f))]
    for _ in range(60):
        if (decision := world.decide()).forget:
            break
        if not world.carry_out("run", decision):
            world.now += 1.0
            for found in world.active():
                world.play(found)
    assert decision.forget
    for most in range(len(list(world.effects("run", decision)))):
        twin = copy.deepcopy(world)
        with pytest.raises(Crash):
            twin.carry_out("run", decision, most)
        twin.drive()
        steps = [line["name"] for line in twin.status()["steps"]]
        assert not [step for step in steps if twin.address(step) not in twin.artifacts]


@pytest.mark.parametrize("asked", ["hit", "sink"])
def test_a_child_that_ends_between_two_questions_of_one_look_is_not_judged_by_the_first(asked):
    """An edit makes every step be looked for anew; its child publishes and ends right after the answer."""
    step = "fuse-s0" if asked == "hit" else "merge"
    world = begun(step)
    active, answer = world.child_of(step), world.answer

    def and_then_it_ends(ask: Ask) -> object:
        found = answer(ask)
        if ask == Ask(asked, world.address(step)):  # type: ignore[arg-type]
            finish(world, active)
        return found

    world.answer = and_then_it_ends  # type: ignore[method-assign]
    world.edit(ttl="20m")
    world.turn()
    assert "tries" not in world.line(step)
    assert world.line(step)["state"] in ("Succeeded", "Running", "Cached")
