"""What the engine writes seldom, whom it wakes and what it tells: progress, who waits for whom, events."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from fusechat_operator.children import child
from fusechat_operator.cluster import ApiRefusal
from fusechat_operator.decision import Event

from tests.unit.operator.acts import fails, finish, nothing
from tests.unit.operator.edges import an_engine, child_key, look, work
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import World, begun


@pytest.fixture
def told(monkeypatch):
    """Makes an engine and its edges for a world."""
    return lambda world: an_engine(world, monkeypatch)


def test_progress_alone_is_written_at_most_once_a_minute(told):
    world = begun("fuse-s0")
    engine, edges = told(world)
    address = child(world.child_of("fuse-s0")).address
    written = []
    for second in range(0, 300, 5):
        world.now += 5
        world.progress[address] = {"done": second, "total": 300, "seconds": float(second), "unit": "steps"}
        look(engine)
        written += [second] * len(edges.done("status"))
    assert 4 <= len(written) <= 6
    assert all(b - a >= 60 for a, b in pairwise(written))


def test_what_lasts_is_written_at_once_whenever_progress_was(told):
    world = begun("fuse-s0", "fuse-s1")
    engine, edges = told(world)
    address = child(world.child_of("fuse-s0")).address
    world.progress[address] = {"done": 1, "total": 300, "seconds": 1.0, "unit": "steps"}
    look(engine)
    edges.log.clear()
    world.now += 1
    finish(world, world.child_of("fuse-s1"))
    look(engine)
    assert edges.done("status") == ["status"]
    assert world.line("fuse-s1")["state"] == "Succeeded"


def test_progress_is_polled_and_not_asked_at_every_look(told):
    world = begun("fuse-s0")
    engine, edges = told(world)
    for _ in range(10):
        look(engine)
    assert len(edges.done("progress")) == 1
    world.now += world.settings.poll_seconds + 1
    look(engine)
    assert len(edges.done("progress")) == 1


def test_progress_that_cannot_be_read_is_what_it_was(told):
    world = begun("fuse-s0")
    engine, _ = told(world)
    address = child(world.child_of("fuse-s0")).address
    world.progress[address] = {"done": 30, "total": 300, "seconds": 1.0, "unit": "steps"}
    look(engine)
    world.away = lambda ask: ask.what == "progress"
    world.now += 100
    look(engine)
    (told_of,) = world.status()["details"]
    assert told_of["percent"] == 10.0
    assert world.condition("Ready")["reason"] == "Progressing"


def test_who_waits_for_anothers_child_is_looked_at_when_it_changes(told):
    world = World(a_run("run", data="x"), a_run("other", data="x"))
    world.script = {"fetch-s0": [nothing] * 99}
    engine, _ = told(world)

    async def scene():
        for _ in range(2):
            await engine.look(("team", "run"))
            await engine.look(("team", "other"))
        engine.child_changed(*child_key(world, "fetch-s0"), "run")
        woken = set(engine.agenda._plans)
        engine.agenda._plans.clear()
        world.remove("other")
        await engine.look(("team", "other"))
        engine.child_changed("team", "no-such-child", "run")
        return woken, set(engine.agenda._plans)

    woken, after = asyncio.run(scene())
    assert woken == {("team", "run"), ("team", "other")}
    assert after == {("team", "run")}
    assert not engine.waiters.waiting, "a run that is gone waits for nothing"


def test_a_run_that_is_gone_is_forgotten(told):
    world = World(a_run())
    engine, edges = told(world)
    edges.raises["run"] = [OSError("away")]
    work(engine)
    world.remove("run")
    assert look(engine) is None
    assert not engine._failures
    assert not engine._wrote


def test_an_event_names_its_run_and_the_same_one_has_the_same_name(told):
    world = World(a_run())
    engine, edges = told(world)

    async def twice():
        for message in ("x", "x", "y"):
            await engine._tell(world.runs["run"], Event("Warning", "StepFailed", message))

    asyncio.run(twice())
    first, again, other = edges.posted
    assert first["name"] == again["name"] != other["name"]
    assert first["involvedObject"]["uid"] == world.runs["run"]["metadata"]["uid"]
    assert (first["involvedObject"]["kind"], first["type"], first["count"]) == ("FusionRun", "Warning", 1)


def test_an_event_that_is_not_taken_changes_nothing(told, caplog):
    world = World(a_run())
    engine, edges = told(world)
    edges.raises["event"] = [ApiRefusal(403, "Forbidden", "events are forbidden")]
    assert look(engine) == world.settings.poll_seconds
    assert "its event was not recorded" in caplog.text
    assert world.line("fetch-s0")["state"] == "Running"


def test_what_happened_is_counted(told):
    world = World(a_run())
    engine, _ = told(world)
    look(engine)
    assert engine.metrics.created.labels("Job")._value.get() == 5
    assert engine.metrics.events.labels("StepStarted")._value.get() == 1


def value(engine, name, **labels):
    return engine.metrics.registry.get_sample_value(f"fusechat_{name}", labels)


def test_a_whole_run_is_counted_by_stage_state_and_end(told):
    world = World(a_run(sources=1, resources={"extract": {"gpus": 4}}))
    engine, _ = told(world)
    seen = set()
    for _ in range(60):
        look(engine)
        seen.add(next((s for s in ("Running", "Waiting") if value(engine, "active_runs", state=s)), ""))
        for found in world.active():
            world.now += 100
            world.play(found)
        if world.over():
            break
    look(engine)
    assert seen >= {"Running"}
    assert [value(engine, "active_runs", state=s) for s in ("Running", "Waiting", "Suspended")] == [0, 0, 0]
    assert value(engine, "runs_ended_total", reason="Succeeded") == 1
    assert value(engine, "steps_total", stage="extract", state="Succeeded") == 2
    assert value(engine, "steps_total", stage="merge", state="Succeeded") == 1
    assert value(engine, "step_seconds_count", stage="extract") == 2
    assert value(engine, "step_seconds_sum", stage="merge") >= 100
    assert value(engine, "gpu_seconds_total") == world.status()["gpuSeconds"] > 800


def test_hits_and_failures_are_counted_and_a_look_in_vain_is_not(told):
    world = World(a_run("first", data="x", sources=1))
    world.drive("first")
    world.add(a_run("run", data="x", sources=2))
    world.script = {"extract-s1": [fails(65)]}
    engine, _ = told(world)
    for _ in range(20):
        look(engine)
        for found in world.active():
            world.play(found)
    hits = value(engine, "steps_total", stage="extract", state="Cached")
    failed = value(engine, "steps_total", stage="extract", state="Failed")
    assert (hits, failed) == (2, 1)
    assert value(engine, "runs_ended_total", reason="StepFailed") == 1


def test_a_suspended_run_is_counted_as_such(told):
    world = World(a_run(suspend=True))
    engine, _ = told(world)
    look(engine)
    assert value(engine, "active_runs", state="Suspended") == 1
    world.remove("run")
    look(engine)
    assert value(engine, "active_runs", state="Suspended") == 0


def test_a_run_that_rests_is_not_asked_for(told):
    world = World(a_run(sources=1))
    world.drive()
    engine, _ = told(world)

    async def wakes(found):
        engine.run_changed("team", "run", found)
        return ("team", "run") in engine.agenda._plans

    assert not asyncio.run(wakes(world.runs["run"]))
    assert asyncio.run(wakes(None)), "it is gone, and is to be forgotten"
    world.edit(suspend=True)
    assert asyncio.run(wakes(world.runs["run"]))
