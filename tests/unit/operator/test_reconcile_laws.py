"""Laws of reconcile: level-based, crash-safe, indifferent to order. Chance decides what happens."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.operator.acts import evicted, fails, finish, nothing, step_of
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import Crash, World

seeds = st.integers(0, 1 << 32)
"""Of a chance that draws hundreds of times: a failure names the seed, and there is nothing to shrink."""
EXAMPLES = int(os.environ.get("FUSECHAT_EXAMPLES", "10"))
"""Set it to some thousands to hunt."""

few = settings(max_examples=EXAMPLES, deadline=None, database=None)


def ends(world: World) -> dict:
    """What a run came to, whatever its way there was."""
    status = world.status()
    return {
        "lines": {line["name"]: line["address"] for line in status["steps"]},
        "done": {line["state"] for line in status["steps"]} <= {"Succeeded", "Cached"},
        "model": status.get("model"),
        "scores": status.get("scores"),
    }


STRAIGHT = ends(world) if (world := World(a_run(sources=1, data="x"))).drive() else {}


def wander(world: World, chance: Random, *names: str, crashes: bool = False, turns: int = 1500) -> None:
    """Looks, ends of children and time, as chance wants it, until the runs are over."""
    for _ in range(turns):
        if all(world.over(name) for name in names):
            return
        active, act = world.active(), chance.random()
        if act < 0.6:
            with suppress(Crash):
                world.turn(chance.choice(names), chance.randrange(6) if crashes else 1 << 20)
        elif active and act < 0.95:
            world.play(chance.choice(active))
        else:
            world.now += chance.choice([0.1, 3.0, 40.0])
    raise AssertionError(f"not over: {[world.status(name) for name in names]}")


@few
@given(seeds)
def test_a_crash_between_any_two_effects_leads_to_the_same_end_with_every_child_made_once(seed):
    chance = Random(seed)
    world = World(a_run(sources=1, data="x"))
    wander(world, chance, "run", crashes=True)
    assert ends(world) == STRAIGHT
    assert max(Counter(world.created).values()) == 1
    assert not [line for line in world.status()["steps"] if "tries" in line]
    assert not world.forgotten


@few
@given(seeds)
def test_the_order_of_events_does_not_matter_and_shared_steps_are_made_once(seed):
    chance = Random(seed)
    world = World(a_run("run", sources=1, data="x"), a_run("other", sources=1, data="x"))
    wander(world, chance, "run", "other", crashes=chance.random() < 0.5)
    assert ends(world) == STRAIGHT
    steps = Counter(step for step in world.created if step != "report")
    assert set(steps.values()) == {1}


@few
@given(seeds)
def test_looking_twice_decides_the_same_and_asking_in_rounds_the_same_as_knowing_at_once(seed):
    chance = Random(seed)
    world = World(a_run(sources=1, data="x"))
    world.script = {"fuse-s0": [evicted], "extract-s0": [fails(66)]}
    for _ in range(chance.randrange(60)):
        if world.over():
            break
        world.turn()
        if world.active() and chance.random() < 0.7:
            world.play(chance.choice(world.active()))
    before = json.dumps(world.runs)
    first = world.decide()
    assert json.dumps(world.runs) == before, "it changes nothing that it is given"
    world.at_once = False
    assert timeless(world.decide()) == timeless(first)
    world.carry_out("run", first)
    second = world.decide()
    there = {(c["kind"], c["metadata"]["name"]) for c in world.children.values()}
    assert not [m for m in second.create if (m["kind"], m["metadata"]["name"]) in there]
    rest = world.settle()
    assert (rest.create, rest.delete, rest.documents, rest.forget) == ((), (), {}, ())
    assert rest.status is None or rest.status == world.status()


def timeless(decision) -> str:
    """A decision as text, without the seconds that the record's own clock put in."""
    documents = {name: {**d, "seconds": 0} for name, d in decision.documents.items()}
    return json.dumps(
        [documents, vars(decision)["status"], *map(str, decision.create)], sort_keys=True, default=str
    )


@few
@given(seeds)
def test_whatever_fails_and_crashes_budgets_are_kept_and_the_run_ends(seed):
    chance = Random(seed)
    budgets = {"disruption": chance.randrange(3), "infrastructure": chance.randrange(3)}
    world = World(a_run(sources=1, data="x", retries=budgets))
    acts = [evicted, fails(75), fails(69), fails(143), finish, finish]
    world.script = {
        step: [chance.choice(acts) for _ in range(3)] for step in ("fuse-s0", "extract-s0", "merge")
    }
    world.script["align-s0"] = [chance.choice([fails(65), finish, finish])]
    crashes = chance.random() < 0.5
    wander(world, chance, "run", crashes=crashes)
    for line in world.status()["steps"]:
        tries = line.get("tries", {"disruption": 0, "infrastructure": 0, "bug": 0})
        assert tries["disruption"] <= budgets["disruption"] + 1
        assert tries["infrastructure"] <= budgets["infrastructure"] + 1
        attempts = world.created.count(line["name"])
        # What failed before the first status was written reads as an earlier generation's: one free attempt.
        assert attempts <= sum(tries.values()) + 1 + crashes
        assert (line["state"] == "Failed") <= (attempts > 0)
    failed = {line["name"] for line in world.status()["steps"] if line["state"] == "Failed"}
    assert bool(failed) == (world.condition("Stalled").get("reason") == "StepFailed")
    assert failed or ends(world) == STRAIGHT


@few
@given(seeds)
def test_children_taken_away_at_any_time_are_made_again_or_were_done(seed):
    chance = Random(seed)
    world = World(a_run(sources=1, data="x", retries={"disruption": 1000}))
    for _ in range(400):
        if world.over():
            break
        world.turn()
        act = chance.random()
        if world.children and act < 0.1:
            world.gone(chance.choice(list(world.children)))
        elif world.active() and act < 0.7:
            world.play(chance.choice(world.active()))
    world.drive()
    assert ends(world) == STRAIGHT


@few
@given(seeds)
def test_nothing_is_created_while_suspended_and_nothing_is_lost(seed):
    chance = Random(seed)
    world = World(a_run(sources=1, data="x"))
    for _ in range(2):
        for _ in range(chance.randrange(1, 12)):
            world.turn()
            if world.active() and chance.random() < 0.8:
                world.play(chance.choice(world.active()))
        if world.over():
            break
        world.edit(suspend=True)
        count = len(world.created)
        for _ in range(3):
            world.turn()
            if world.active() and chance.random() < 0.3:
                world.play(chance.choice(world.active()))
        world.settle()
        assert len(world.created) == count
        assert not world.active()
        assert world.condition("Suspended")["status"] == "True"
        world.edit(suspend=False)
    world.drive()
    assert ends(world) == STRAIGHT
    assert not [line for line in world.status()["steps"] if "tries" in line]


@few
@given(seeds)
def test_a_run_edited_at_any_time_ends_as_if_it_had_always_been_so(seed):
    chance = Random(seed)
    world = World(a_run(sources=2, data="x"))
    wanted = world.runs["run"]["spec"]["sources"][:1]
    for _ in range(chance.randrange(25)):
        world.turn()
        if world.active() and chance.random() < 0.8:
            world.play(chance.choice(world.active()))
    world.edit(sources=wanted)
    wander(world, chance, "run", crashes=chance.random() < 0.5)
    assert ends(world) == STRAIGHT
    assert max(Counter(world.names).values()) == 1, "no address has two children"
    for found in world.active():
        assert not step_of(found).endswith("s1"), "what nobody needs any more is stopped"


@few
@given(seeds)
def test_a_succeeded_run_is_final_whatever_is_lost_and_whoever_looks(seed):
    chance = Random(seed)
    world = SUCCEEDED
    status = json.dumps(world.status())
    count = len(world.created)
    kept = dict(world.artifacts), dict(world.children)
    for address in chance.sample(sorted(world.artifacts), 5):
        del world.artifacts[address]
    for key in chance.sample(sorted(world.children), 5):
        del world.children[key]
    world.now += chance.choice([0, 100, 1e6])
    world.turn()
    assert (json.dumps(world.status()), len(world.created)) == (status, count)
    world.artifacts, world.children = kept


SUCCEEDED = World(a_run(sources=1, data="x"))
SUCCEEDED.drive()


@pytest.mark.parametrize("step", ["fetch-pivot", "extract-s0", "fuse-s0", "merge", "evaluate-fused"])
def test_any_step_may_take_for_ever_and_nothing_is_made_twice(step):
    world = World(a_run(sources=1, data="x"))
    world.script[step] = [nothing] * 50
    world.drive(turns=70, until=lambda: not world.script[step])
    assert max(Counter(world.created).values()) == 1
    assert not world.over()
