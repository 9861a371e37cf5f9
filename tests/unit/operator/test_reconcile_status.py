"""What a status says and how much: fits etcd, fits the schema, is stable, has one sentence for people."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import jsonschema
import pytest
from fusechat.spec_status import CONDITIONS, Status
from fusechat_operator import memory, status
from fusechat_operator.children import child

from tests.unit.operator.acts import evicted, fails, finish, nothing
from tests.unit.operator.runs import STATUS, a_run
from tests.unit.operator.world import World, begun

MOST_BYTES = 32 << 10
VALIDATOR = jsonschema.Draft202012Validator(STATUS)


def size(made) -> int:
    return len(json.dumps(made, separators=(",", ":")).encode())


def valid(made) -> None:
    """As the API server checks it, and as Python reads it."""
    VALIDATOR.validate(json.loads(json.dumps(made)))
    Status.model_validate_json(json.dumps(made))


def wide(sources: int, **spec) -> World:
    """A run of many sources with names as long as real ones, nothing pinned."""
    run = a_run(sources=sources, pinned=False, **spec)
    for number, source in enumerate(run["spec"]["sources"]):
        source["name"] = f"chat-model-{number:02d}b"
    return World(run)


@pytest.mark.parametrize("sources", [6, 50])
@pytest.mark.parametrize("profile", ["Corrected", "Published"])
def test_a_status_of_many_sources_fits_32_kb_all_steps_active_and_all_done(sources, profile):
    world = wide(sources, profile=profile, dataset={"uri": "s3://fuse/data.jsonl", "shards": 4})
    biggest = 0
    for _ in range(40):
        world.settle()
        found = world.status()
        if size(found) > biggest:
            valid(found)
        biggest = max(biggest, size(found))
        if world.over():
            break
        for each in world.active():
            finish(world, each)
        world.now += 1.0
    assert world.states() == {"Succeeded"}
    assert biggest < MOST_BYTES


def test_a_status_of_fifty_sources_fits_32_kb_when_every_training_was_tried_often():
    world = wide(50)
    names = [source["name"] for source in world.runs["run"]["spec"]["sources"]]
    world.script = {
        f"fuse-{name}": [evicted, fails(75, "x" * 900), nothing, nothing, nothing] for name in names
    }
    world.drive(until=lambda: all(len(world.script[f"fuse-{name}"]) == 1 for name in names), turns=20)
    for found in world.active():
        asked = child(found).address
        told = {"done": 123, "total": 4567, "seconds": 89.5, "unit": "steps", "loss": 1.25, "share": 0.5}
        world.progress[asked] = {**told, "lastCheckpoint": "2027-01-15T08:00:00Z"}
    world.settle()
    world.now += 100
    world.settle()
    found = world.status()
    valid(found)
    assert sum("tries" in line for line in memory.lines_of(found)) == 50
    assert len(found["details"]) == status.MOST_DETAILS // 2
    assert size(found) < MOST_BYTES


def test_every_condition_names_the_generation_and_the_absent_ones_are_not_true():
    world = World(a_run())
    seen = []
    for _ in range(30):
        world.turn()
        found = world.status()["conditions"]
        assert {c["type"] for c in found} <= set(CONDITIONS)
        assert {c["observedGeneration"] for c in found} == {1}
        assert all(re.fullmatch(r"[A-Z][A-Za-z]+", c["reason"]) for c in found)
        for name in ("Reconciling", "Stalled", "Suspended"):
            assert world.condition(name).get("status", "True") == "True"
        assert not (world.condition("Stalled") and world.condition("Reconciling"))
        seen.append(world.condition("Ready")["status"])
        if world.over():
            break
        for each in world.active():
            finish(world, each)
        world.now += 10
    assert seen == ["False"] * (len(seen) - 1) + ["True"]
    assert world.condition("Reconciling") == {}


def test_a_condition_keeps_its_time_while_it_stays_what_it_is():
    world = World(a_run())
    world.settle()
    since = world.condition("Ready")["lastTransitionTime"]
    world.now += 60
    for each in world.active():
        finish(world, each)
    world.settle()
    assert world.condition("Ready")["lastTransitionTime"] == since
    world.drive()
    assert world.condition("Ready")["lastTransitionTime"] > since


def test_a_status_that_is_read_back_is_the_same_memory():
    world = World(a_run(pinned=False))
    world.script = {"fuse-s0": [evicted, fails(75)], "fuse-s1": [fails(65)]}
    for _ in range(40):
        world.turn()
        read = memory.read(world.status())
        again = {name: memory.line_json(line) for name, line in read.lines.items()}
        assert list(again.values()) == world.status().get("steps", [])
        if world.over():
            break
        for each in world.active():
            world.play(each)
        world.now += 10


def test_what_a_newer_operator_wrote_is_left_alone():
    world = World(a_run())
    world.settle()
    found = memory.read({**world.status(), "somethingNew": {"a": 1}})
    assert found.lines


def test_details_put_failed_steps_first_then_active_ones_and_say_why():
    world = World(a_run())
    world.script = {"extract-s1": [fails(65, "no supervised token")], "fuse-s0": [nothing] * 99}
    world.drive(until=lambda: world.line("fuse-s0").get("state") == "Running")
    failed, active = world.status()["details"]
    assert (failed["name"], failed["message"]) == ("extract-s1", "no supervised token")
    assert failed["attempts"] == {"disruption": 0, "infrastructure": 0, "bug": 1}
    assert active["name"] == "fuse-s0"
    assert active["child"] == "PyTorchJob/" + world.child_of("fuse-s0")["metadata"]["name"]
    assert active["artifact"].startswith("s3://fuse/world/fuse/")
    assert world.status()["stage"] == "fuse"


@pytest.mark.parametrize(
    "odd",
    [
        {"lastCheckpoint": "fuse/abc/checkpoints/30"},
        {"lastCheckpoint": 3},
        {"loss": float("nan"), "seconds": "2 s"},
        {"loss": True, "from": None},
    ],
)
def test_what_the_api_server_would_refuse_of_a_progress_is_left_out(odd):
    world = begun("fuse-s0")
    world.progress[world.address("fuse-s0")] = {"done": 40, "total": 100, "unit": "steps", **odd}
    world.settle()
    told = next(d for d in world.status()["details"] if d["name"] == "fuse-s0")
    assert told["percent"] == 40
    assert not {"lastCheckpoint", "metrics", "rate"} & told.keys()


@pytest.mark.parametrize("done", [float("nan"), "40", None])
def test_a_progress_without_a_share_is_none(done):
    world = begun("fuse-s0")
    world.progress[world.address("fuse-s0")] = {"done": done, "total": 100}
    world.settle()
    assert "percent" not in next(d for d in world.status()["details"] if d["name"] == "fuse-s0")


def test_progress_becomes_a_share_a_rate_and_the_time_that_is_left():
    world = begun("fuse-s0")
    address = child(world.child_of("fuse-s0")).address
    told = {"done": 25, "total": 100, "seconds": 50.0, "unit": "steps", "loss": 1.5}
    world.progress[address] = {**told, "lastCheckpoint": "2027-01-15T08:00:00Z"}
    world.settle()
    (told,) = world.status()["details"]
    assert (told["percent"], told["rate"], told["etaSeconds"]) == (25.0, "0.5 steps/s", 150)
    assert (told["metrics"], told["lastCheckpoint"]) == ({"loss": 1.5}, "2027-01-15T08:00:00Z")


def test_a_training_that_waits_still_tells_how_far_it_came():
    world = begun("fuse-s0")
    found = world.child_of("fuse-s0")
    told = {"done": 25, "total": 100, "seconds": 50.0, "lastCheckpoint": "2027-01-15T08:00:00Z"}
    world.progress[child(found).address] = told
    world.settle()
    found["spec"]["runPolicy"]["suspend"] = True
    world.settle()
    (told,) = world.status()["details"]
    assert world.line("fuse-s0")["state"] == "Waiting"
    assert (told["percent"], told["lastCheckpoint"]) == (25.0, "2027-01-15T08:00:00Z")
    assert "rate" not in told


def test_what_earlier_attempts_did_is_done_and_says_nothing_of_the_rate():
    world = begun("fuse-s0")
    address = child(world.child_of("fuse-s0")).address
    told = {"done": 80, "total": 100, "from": 70, "seconds": 20.0, "unit": "steps", "checkpointStep": 75}
    world.progress[address] = told
    world.settle()
    (told,) = world.status()["details"]
    assert (told["percent"], told["rate"], told["etaSeconds"]) == (80.0, "0.5 steps/s", 40)
    assert told["metrics"] == {"checkpointStep": 75}


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"done": 5, "total": 10, "seconds": 1.0, "from": 7},
        {"done": 5, "total": 10, "seconds": 1.0, "from": None},
        {"done": 0, "total": 0, "seconds": 0},
        {"done": 0, "total": 10, "seconds": 0.0},
        {"done": 11, "total": 10, "seconds": 1.0, "unit": "x" * 200},
        {"done": None, "total": None, "seconds": None},
        {
            "done": 1,
            "total": 10,
            "seconds": 1e9,
            "ok": True,
            "file": "name",
            **{f"m{i}": i for i in range(99)},
        },
    ],
)
def test_no_progress_of_a_stage_breaks_the_status(told):
    world = begun("fuse-s0")
    world.progress[child(world.child_of("fuse-s0")).address] = told
    world.settle()
    valid(world.status())


def test_shards_are_told_as_done_of_all():
    world = World(a_run(dataset={"uri": "s3://fuse/d", "revision": "sha256:" + "a" * 64, "shards": 4}))
    world.drive(until=lambda: "extract-s0" in world.created)
    world.child_of("extract-s0")["status"] = {"succeeded": 3, "ready": 1}
    world.settle()
    told = {d["name"]: d for d in world.status()["details"]}
    assert told["extract-s0"]["shards"] == "3/4"
    assert "shards" not in told.get("fetch-s0", {})


def test_the_sentence_says_what_is_at_work():
    world = World(a_run(sources=6))
    world.settle()
    assert world.condition("Ready")["message"] == (
        "0 of 36 steps done; at work: fetch-pivot, fetch-s0, fetch-s1, fetch-s2 and 5 more"
    )


def test_a_score_is_the_fused_models_and_has_its_interval():
    world = World(a_run())
    world.metrics["evaluate-fused"] = {"score": 0.123456789, "ci95": [0.1, 0.2]}
    found = world.drive()
    assert found["score"] == "0.123"
    (score,) = found["scores"]
    assert (score["score"], score["low"], score["high"]) == (0.1235, 0.1, 0.2)


def test_an_evaluation_without_a_score_is_none():
    world = World(a_run())
    world.metrics["evaluate-fused"] = {"score": None}
    found = world.drive()
    assert "score" not in found


def test_a_look_makes_at_most_one_event_and_the_same_one_is_not_made_twice():
    world = World(a_run())
    world.script = {"fuse-s0": [evicted], "extract-s1": [fails(65)]}
    for _ in range(60):
        count = len(world.events)
        world.turn()
        assert len(world.events) <= count + 1
        world.turn()
        if world.over():
            break
        for each in world.active():
            world.play(each)
        world.now += 10
    reasons = [reason for _, reason, _ in world.events]
    assert {"StepStarted", "StepSucceeded", "StepFailed", "StepRetried"} <= set(reasons)
    assert all(a != b for a, b in pairwise(world.events))
    assert {kind for kind, reason, _ in world.events if reason in ("StepFailed", "StepRetried")} == {
        "Warning"
    }


def test_an_ended_run_says_so_in_one_event():
    world = World(a_run())
    world.drive()
    kind, reason, message = world.events[-1]
    assert (kind, reason) == ("Normal", "Succeeded")
    assert message == world.condition("Ready")["message"]
