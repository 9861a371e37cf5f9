"""The loop around reconcile: its order of effects, what it remembers, how it takes refusals and silence."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fusechat_operator.children import child
from fusechat_operator.cluster import ApiRefusal
from fusechat_operator.decision import Decision, Event
from fusechat_operator.facts import Trouble
from fusechat_operator.one_pass import STORE_PAUSE_SECONDS

from tests.unit.operator.acts import fails, finish, step_of
from tests.unit.operator.edges import EFFECTS, KEY, an_engine, look, work
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import World, begun


@pytest.fixture
def told(monkeypatch):
    """Makes an engine and its edges for a world."""
    return lambda world: an_engine(world, monkeypatch)


def test_a_decision_is_carried_out_in_its_order(told):
    world = begun("fuse-s0")
    engine, edges = told(world)
    manifests = World(a_run()).decide().create
    there = child(world.child_of("fuse-s0"))
    decision = Decision(
        stop=(replace(there, uid="another"),),
        documents={"runs/u.json": {}},
        forget=("fuse/abc",),
        create=manifests[:2],
        status={**world.status(), "stage": "new"},
        delete=(there,),
        keep=(there,),
        events=(Event("Normal", "StepStarted", "x"),),
        again=3.0,
    )
    again = asyncio.run(engine._carry_out(KEY, world.runs["run"], decision))
    kinds = [entry.partition(" ")[0] for entry in edges.log]
    assert sorted(set(kinds), key=kinds.index) == list(EFFECTS)
    assert again == 3.0


def test_the_worlds_order_of_effects_is_the_engines(told):
    """So that what the laws say of crashes in World is true of the engine."""
    one, other = World(a_run()), World(a_run())
    engine, _ = told(one)
    for world in (one, other):
        world.script = {"fuse-s0": [fails(75)], "extract-s1": [fails(65)]}
    for _ in range(30):
        look(engine)
        other.turn()
        assert one.created == other.created
        assert one.deleted == other.deleted
        assert one.status() == other.status()
        assert one.kept == other.kept
        if one.over():
            break
        for world in (one, other):
            world.now += 5.0
            for found in world.active():
                world.play(found)
    assert one.over()


def test_a_run_goes_through_the_engine_to_its_end(told):
    world = World(a_run())
    engine, edges = told(world)
    for _ in range(30):
        look(engine, 2)
        for found in world.active():
            world.play(found)
        world.now += 1.0
    assert world.condition("Succeeded")["status"] == "True"
    assert sorted(world.created) == sorted(set(world.created))
    edges.done("run")
    assert look(engine) is None
    assert edges.log == ["run"], "an ended run costs one read"


def test_the_same_status_is_not_written_twice(told):
    world = begun("fuse-s0")
    engine, edges = told(world)
    look(engine, 3)
    assert edges.done("status", "event", "create", "delete") == []


def test_a_child_that_is_refused_is_remembered_said_and_not_sent_again_at_once(told):
    world = World(a_run())
    world.refuses = lambda found: "exceeded quota: few" if step_of(found) == "fetch-s0" else ""
    engine, edges = told(world)
    assert look(engine) == 0.05
    assert edges.done("status") == [], "it is looked at again first"
    assert look(engine) > 1
    assert (
        "fetch-s0: the API server does not take its child: exceeded quota: few"
        in (world.condition("Ready")["message"])
    )
    edges.log.clear()
    world.now += 10
    look(engine, 3)
    assert "create fetch-s0" not in edges.log
    world.refuses = lambda found: ""
    world.now += 10
    look(engine, 2)
    assert edges.log.count("create fetch-s0") == 1
    assert world.line("fetch-s0")["state"] == "Running"


@pytest.mark.parametrize(
    ("launcher", "kind", "nodes"), [("TrainJob", "TrainingRuntime", 1), ("Job", "Service", 2)]
)
def test_what_a_child_needs_beside_it_may_be_refused_too(told, launcher, kind, nodes):
    world = begun("filter-s0", launcher=launcher, fuse={"nodes": nodes})
    world.refuses = lambda found: "forbidden" if found["kind"] == kind else ""
    finish(world, world.child_of("filter-s0"))
    engine, edges = told(world)
    look(engine, 2)
    assert "fuse-s0: the API server does not take its child: forbidden" in world.condition("Ready")["message"]
    edges.log.clear()
    look(engine, 3)
    assert "create fuse-s0" not in edges.log


def test_a_refusal_that_waiting_may_mend_is_raised(told):
    world = World(a_run())
    engine, edges = told(world)
    edges.raises["create"] = [ApiRefusal(429, "TooManyRequests", "slow down")]
    with pytest.raises(ApiRefusal, match="slow down"):
        look(engine)


def test_after_a_conflict_the_run_is_looked_at_again_at_once(told):
    world = World(a_run())
    engine, edges = told(world)
    edges.raises["status"] = [ApiRefusal(409, "Conflict", "modified")] * 2
    for _ in range(2):
        again = work(engine)
        assert again is not None
        assert again < 0.1
    work(engine)
    assert world.line("fetch-s0")["state"] == "Running"
    assert max(map(world.created.count, world.created)) == 1


def test_an_edit_during_a_look_is_a_conflict_and_not_overwritten(told):
    world = World(a_run())
    engine, edges = told(world)
    create = edges.create

    async def and_then_somebody_edits(manifest):
        await create(manifest)
        if len(world.created) == 1:
            world.edit(suspend=True)

    edges.create = and_then_somebody_edits
    assert work(engine) < 0.1
    assert world.status()["observedGeneration"] == -1
    work(engine)
    assert world.condition("Suspended")["status"] == "True"


def test_a_silent_api_server_is_asked_again_after_a_pause_that_doubles_and_ends(told):
    world = World(a_run())
    engine, edges = told(world)
    edges.raises["run"] = [OSError("the API server cannot be reached")] * 9
    pauses = [work(engine) for _ in range(9)]
    assert [round(pause or 0, 1) for pause in pauses] == [1, 2, 4, 8, 16, 30, 30, 30, 30]
    work(engine)
    edges.raises["run"] = [OSError("again")]
    assert round(work(engine) or 0, 1) == 1, "a good look forgets the bad ones"


def test_a_fault_of_ours_is_counted_and_does_not_end_the_loop(told, caplog):
    world = World(a_run())
    engine, edges = told(world)
    edges.raises["run"] = [KeyError("x")]
    again = work(engine)
    assert again is not None
    assert again > 0.5
    assert engine.metrics.faults._value.get() == 1
    assert "a fault of ours" in caplog.text


def test_a_reconcile_that_never_stops_asking_is_a_fault(told, monkeypatch):
    from fusechat_operator import engine as module
    from fusechat_operator.facts import Ask

    engine, _ = told(World(a_run()))
    monkeypatch.setattr(module, "reconcile", lambda *_: Decision(asks=frozenset([Ask("launchers")])))
    with pytest.raises(RuntimeError, match="still asks after 64 rounds"):
        look(engine)


def test_documents_that_the_store_does_not_take_keep_everything_else_from_happening(told):
    world = World(a_run())
    engine, edges = told(world)
    edges.trouble = Trouble("writing refs/ is refused: 403 AccessDenied")
    assert look(engine) == STORE_PAUSE_SECONDS
    assert edges.done(*EFFECTS) == ["status"]
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "StoreUnavailable")
    assert ready["message"] == "writing refs/ is refused: 403 AccessDenied"
    assert world.condition("Succeeded")["status"] == "Unknown"
    assert "steps" not in world.status(), "nothing else of the decision is in it"
    look(engine)
    assert edges.done(*EFFECTS) == [], "it is said once"
    edges.trouble = None
    look(engine)
    assert edges.done(*EFFECTS)[0] == "document refs"
    assert world.condition("Ready")["reason"] == "Progressing"


def test_an_edit_that_the_store_keeps_waiting_still_knows_how_the_run_ended(told):
    world = begun("fuse-s0", deadline="10m")
    world.now += 700
    world.settle()
    assert world.condition("Stalled")["reason"] == "DeadlineExceeded"
    world.edit(ttl="20m")
    engine, edges = told(world)
    edges.trouble = Trouble("the store is away")
    look(engine)
    assert world.condition("Ready")["reason"] == "StoreUnavailable"
    edges.trouble = None
    look(engine)
    assert world.condition("Ready")["reason"] == "Progressing", "it begins with all of its deadline"


def test_a_stale_artifact_that_cannot_be_set_aside_is_not_made_anew(told):
    """Its new attempt would lose to it, and the stale one pass for what this run made."""
    world = begun("fuse-s0")
    engine, edges = told(world)
    manifests = World(a_run()).decide().create
    stale = Decision(forget=("fuse/abc",), create=manifests[:1], status={**world.status(), "stage": "new"})
    edges.cannot_forget = Trouble("deleting fuse/abc is refused: 403 AccessDenied")
    assert asyncio.run(engine._carry_out(KEY, world.runs["run"], stale)) == STORE_PAUSE_SECONDS
    assert edges.done(*EFFECTS) == ["status"]
    assert world.condition("Ready")["message"] == "deleting fuse/abc is refused: 403 AccessDenied"


def test_a_record_that_the_store_does_not_take_keeps_no_run_from_its_end(told, caplog):
    world = begun("fuse-s0")
    fails(65)(world, world.child_of("fuse-s0"))
    engine, edges = told(world)
    edges.trouble = Trouble("writing runs/ is refused: 403 AccessDenied")
    look(engine)
    assert world.condition("Stalled")["reason"] == "StepFailed"
    assert "runs/00000001-0000-4000-8000-000000000000.json is not written: writing runs/" in caplog.text


def test_what_must_stop_does_not_wait_for_the_store(told):
    world = begun("fuse-s0", deadline="10m")
    world.now += 700
    engine, edges = told(world)

    async def never(address):
        assert edges.done("stop") == [f"stop {name}"], "first"
        raise OSError("the store does not answer")

    name = world.child_of("fuse-s0")["metadata"]["name"]
    edges.metrics = never
    with pytest.raises(OSError, match="does not answer"):
        look(engine)
    assert world.deleted == ["fuse-s0"]


def test_a_third_conflict_in_a_row_is_waited_for_longer_and_longer(told):
    world = World(a_run())
    engine, edges = told(world)
    edges.raises["status"] = [ApiRefusal(409, "Conflict", "modified")] * 5
    assert [round(work(engine) or 0, 2) for _ in range(5)] == [0.05, 0.05, 4, 8, 16]
    work(engine)
    assert world.line("fetch-s0")["state"] == "Running"


def test_a_child_that_meets_conflicts_only_is_refused_and_the_others_are_made(told):
    """A webhook may say 409 for ever; a quota that somebody else has just used says it once."""
    world = World(a_run())
    engine, edges = told(world)
    create = edges.create

    async def conflict(manifest):
        if step_of(manifest) == "fetch-s0":
            edges.log.append("asked")
            raise ApiRefusal(409, "Conflict", "admission webhook: not now")
        await create(manifest)

    edges.create = conflict
    for _ in range(4):
        again = work(engine)
    assert edges.log.count("asked") == 3
    assert again is not None
    assert again > 1
    assert (
        "fetch-s0: the API server does not take its child: admission webhook: not now"
        in (world.condition("Ready")["message"])
    )
    assert world.line("fetch-s1")["state"] == "Running"


def test_a_pause_that_the_api_server_asks_for_is_kept_within_reason(told):
    engine, edges = told(World(a_run()))
    edges.raises["run"] = [ApiRefusal(429, "TooManyRequests", "slow down", again) for again in (7.0, 999.0)]
    assert [round(work(engine) or 0, 1) for _ in range(2)] == [7, 30]


def test_a_launcher_that_is_uninstalled_in_mid_run_is_said(told):
    world = begun("fuse-s0")
    engine, edges = told(world)
    look(engine)
    world.launchers = ("Job",)  # its kind is gone, and with it all of that kind
    for key in [key for key in world.children if key.startswith("PyTorchJob")]:
        world.gone(key)
    create = edges.create

    async def without_the_kind(manifest):
        if manifest["kind"] == "PyTorchJob":
            raise ApiRefusal(404, "NotFound", "the server could not find the requested resource")
        await create(manifest)

    edges.create = without_the_kind
    for _ in range(10):
        work(engine)
        world.now += 5
    assert "could not find the requested resource" in world.condition("Ready")["message"]


@pytest.mark.parametrize("how", ["suspend", "deadline"])
def test_a_child_that_may_not_be_deleted_is_said_and_the_others_stop(told, how):
    world = begun("extract-s0", "extract-s1", deadline="1h")
    engine, edges = told(world)
    delete, guarded = edges.delete, world.child_of("extract-s0")["metadata"]["name"]

    async def refuses(namespace, gone, whatever=False):
        if gone.name == guarded:
            raise ApiRefusal(403, "Forbidden", "admission webhook denied: deletion is protected")
        await delete(namespace, gone, whatever)

    edges.delete = refuses
    if how == "suspend":
        world.edit(suspend=True)
    else:
        world.now += 3601
    for _ in range(5):
        work(engine)
        world.now += 30
    assert [step_of(found) for found in world.active()] == ["extract-s0"]
    assert f"Job {guarded} cannot be stopped: admission webhook denied" in world.condition("Ready")["message"]
    edges.delete = delete
    for _ in range(5):
        work(engine)
        world.now += 30
    assert not world.active()
    assert world.condition("Ready")["reason"] == ("Suspended" if how == "suspend" else "DeadlineExceeded")
