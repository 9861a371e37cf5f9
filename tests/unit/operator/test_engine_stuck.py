"""No run is left without a look or a sentence: what is lost, refused or away, by the engine's loop."""

from __future__ import annotations

import pytest
from fusechat_operator.children import child
from fusechat_operator.cluster import ApiRefusal
from fusechat_operator.facts import Trouble

from tests.unit.operator.acts import evicted, fails, step_of
from tests.unit.operator.edges import an_engine, look, work
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import World


def until_only_an_old_child_is_left(world, engine):
    """When the engine would look again, as all that the run waits for is a child on its way out."""
    for _ in range(200):
        for _ in range(4):  # looks that its own writes lead to
            again = work(engine)
        going = [found for found in world.children.values() if "deletionTimestamp" in found["metadata"]]
        active = [found for found in world.active() if found not in going]
        if going and not active:
            return again
        for found in active:
            world.play(found)
        world.now += 1 if active else (again or 1) + 0.1
    raise AssertionError(world.children)


@pytest.mark.parametrize("act", [evicted, fails(75), fails(65)])
def test_the_end_of_an_old_child_is_asked_for_too_as_its_event_may_be_lost(monkeypatch, act):
    """A watch that was too old is begun anew, and a new list says nothing of what is gone."""
    world = World(a_run(sources=1))
    world.lingers = True
    world.script = {"fuse-s0": [act]}
    if act not in (evicted,):
        world.drive(until=lambda: world.over() or world.line("fuse-s0").get("tries"))
    if world.over():
        world.retry()
    engine, _ = an_engine(world, monkeypatch)
    assert until_only_an_old_child_is_left(world, engine) is not None


def test_a_retry_that_clears_another_runs_child_is_looked_at_again_whenever_the_operator_dies(monkeypatch):
    world = World(a_run("run", data="x", sources=1), a_run("other", data="x", sources=1))
    world.script = {"fuse-s0": [fails(65)]}
    world.drive("other", "run")
    assert child(world.child_of("fuse-s0")).owner == world.runs["other"]["metadata"]["uid"]
    world.retry("run")
    for _ in range(12):
        decision = world.decide("run")
        if decision.delete:
            world.write_status("run", decision.status)  # and here it dies
            break
        world.carry_out("run", decision)
    engine, edges = an_engine(world, monkeypatch)
    again = look(engine, 1)
    deleted = edges.done("delete")
    assert deleted
    assert again is not None or list(engine.waiters.of(("team", deleted[0].split()[1])))


def test_a_last_attempt_that_may_not_be_deleted_is_said(monkeypatch):
    world = World(a_run(sources=1))
    world.script = {"fuse-s0": [fails(65)]}
    world.drive()
    world.retry()
    engine, edges = an_engine(world, monkeypatch)

    async def refuses(namespace, gone, whatever=False):
        raise ApiRefusal(403, "Forbidden", "admission webhook keep.example denied the request")

    edges.delete = refuses
    for _ in range(20):
        world.now += (work(engine) or 30) + 1
    assert "keep.example" in world.condition("Ready")["message"]


def test_a_failed_child_that_cannot_be_kept_does_not_swallow_the_event(monkeypatch):
    world = World(a_run(sources=1))
    world.script = {"fuse-s0": [fails(65)]}
    engine, edges = an_engine(world, monkeypatch)

    async def refuses(namespace, failed):
        raise ApiRefusal(403, "Forbidden", "no patch")

    edges.keep = refuses
    for _ in range(80):
        work(engine)
        for found in world.active():
            world.play(found)
        world.now += 1
    assert world.over()
    assert "StepFailed" in {event["reason"] for event in edges.posted}


def test_a_report_that_the_api_server_refuses_is_said_and_not_asked_for_again_at_once():
    world, tries = World(a_run()), []

    def refuses(manifest):
        if step_of(manifest) == "report":
            tries.append(world.now)
            return "exceeded quota: count/jobs.batch"
        return ""

    world.refuses = refuses
    world.drive(turns=60, until=lambda: bool(tries))
    for _ in range(3):
        world.settle()
    assert len(tries) <= 2
    assert (
        "the report waits: the API server does not take its child: exceeded quota"
        in (world.condition("Ready")["message"])
    )
    world.refuses = lambda manifest: ""
    world.drive()
    assert world.condition("Succeeded")["status"] == "True"


@pytest.mark.parametrize("how", ["a document is refused", "the spec cannot be read"])
def test_a_suspended_run_stays_suspended_whatever_else_is_said(monkeypatch, how):
    world = World(a_run(sources=1))
    engine, edges = an_engine(world, monkeypatch)
    world.settle()
    world.edit(suspend=True)
    world.settle()
    assert world.condition("Suspended")["status"] == "True"
    if how == "a document is refused":
        world.edit(ttl="20m")
        edges.trouble = Trouble("writing refs/ is refused: 403")
    else:
        world.edit(dataset={"uri": "file:///x"})
    work(engine)
    assert world.condition("Ready")["reason"] in ("StoreUnavailable", "InvalidSpec")
    assert world.condition("Suspended")["status"] == "True"
