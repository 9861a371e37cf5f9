"""Ends that nobody saw: by which records they are judged, what is counted once, what pauses. Pure."""

from __future__ import annotations

import pytest
from fusechat_operator.conditions import timestamp

from tests.unit.operator.acts import fails, nothing
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import World

FAILURES = "batch.kubernetes.io/job-index-failure-count"
INDEX = "batch.kubernetes.io/job-completion-index"


def gone(world, step):
    found = world.child_of(step)
    world.gone(f"{found['kind']}/{found['metadata']['name']}")


def recorded(world, step, code, error="the hub is away"):
    record = {"exitCode": code, "error": error, "ended": timestamp(world.now)}
    world.attempts_of.setdefault(world.address(step), []).append(record)


@pytest.mark.parametrize("sources", [2, 25])
def test_without_a_detail_the_record_of_the_attempt_before_is_not_this_ones(sources):
    """A status tells details of some steps only, and those say when an attempt began."""
    world, step = World(a_run(sources=sources)), f"extract-s{sources - 1}"
    world.loses = True
    world.script = {
        name: [nothing] * 1000 for name in ("extract-pivot", *(f"extract-s{i}" for i in range(sources)))
    }
    world.drive(until=lambda: world.line(step).get("state") == "Running", turns=100)
    assert (step in {detail["name"] for detail in world.status()["details"]}) == (sources == 2)
    recorded(world, step, 66, "its input is not in the store")
    world.artifacts.pop(world.address(f"fetch-s{sources - 1}"))
    fails(66, "its input is not in the store")(world, world.child_of(step))
    before = world.attempts(step)
    again = lambda: world.attempts(step) > before and world.line(step)["state"] == "Running"  # noqa: E731
    world.drive(until=again, turns=100)
    world.now += 600
    world.settle()
    gone(world, step)
    world.settle()
    assert world.line(step)["state"] == "Running", "it was removed by hand, which is free"


def met_and_went_on(shards):
    """A Job one of whose Pods met trouble outside, and which made it anew by itself and works again."""
    run = a_run(retries={"infrastructure": 1})
    run["spec"]["dataset"]["shards"] = shards
    world = World(run)
    world.script = {"extract-s0": [nothing] * 999}
    world.drive(until=lambda: world.line("extract-s0").get("state") == "Running")
    found = world.child_of("extract-s0")
    world.now += 60
    recorded(world, "extract-s0", 75)
    world.add_pod(found, {"phase": "Pending"})
    world.pods[found["metadata"]["name"]][-1]["metadata"]["annotations"] = {FAILURES: "1", INDEX: "0"}
    found["metadata"]["resourceVersion"] = world.version()
    world.settle()
    assert world.line("extract-s0")["tries"]["infrastructure"] == 1
    world.pods.clear()
    found["status"] = {"active": shards, "ready": shards}
    world.now += 3600
    world.settle()
    return world


@pytest.mark.parametrize("records", [0, 2])
@pytest.mark.parametrize("shards", [1, 2])
def test_trouble_that_a_job_went_on_from_is_counted_once_though_the_job_goes(shards, records):
    world = met_and_went_on(shards)
    for _ in range(records):
        recorded(world, "extract-s0", 143, "stopped")
    gone(world, "extract-s0")
    world.settle()
    assert world.line("extract-s0")["tries"] == {"disruption": 1, "infrastructure": 1, "bug": 0}


def test_trouble_that_nobody_saw_is_followed_by_its_pause():
    world = World(a_run())
    world.settle()
    world.now += 30
    recorded(world, "fetch-s0", 75)
    gone(world, "fetch-s0")
    decision = world.settle()
    assert (world.attempts("fetch-s0"), world.line("fetch-s0")["tries"]["infrastructure"]) == (1, 1)
    assert 0 < decision.again <= 10.1
    assert "the hub is away; it is tried again" in world.condition("Ready")["message"]
    world.now += 10
    world.settle()
    assert world.attempts("fetch-s0") == 2
