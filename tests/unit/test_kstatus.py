"""How Flux, `kpt` and whoever else uses kstatus read a FusionRun in each of its states.

Argo CD has no such rule of its own: for a kind that it does not know it asks Lua (`resource.customizations`),
and an object without an answer counts for nothing, so that an Application is Healthy beside a failed run
(gitops-engine, pkg/health/health.go; argo-cd, controller/health.go). Whoever wants it to wait for runs needs
a health check in argocd-cm; the table below is what that must say, with Degraded for Failed, Progressing for
InProgress and Healthy for Current.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from fusechat import crd

from tests.unit.operator.acts import fails, nothing
from tests.unit.operator.runs import a_run, defaulted
from tests.unit.operator.world import World, begun

Object = Mapping[str, Any]


def kstatus(found: Object) -> str:
    """The published algorithm for custom resources (cli-utils, pkg/kstatus/status: generic.go, status.go)."""
    meta, status = found["metadata"], found.get("status", {})
    if meta.get("deletionTimestamp"):
        return "Terminating"
    if "generation" in meta and status.get("observedGeneration", meta["generation"]) != meta["generation"]:
        return "InProgress"
    conditions = status.get("conditions", ())
    for condition in conditions:
        if condition["type"] == "Reconciling" and condition["status"] == "True":
            return "InProgress"
        if condition["type"] == "Stalled" and condition["status"] == "True":
            return "Failed"
    ready = [condition["status"] for condition in conditions if condition["type"] == "Ready"]
    return "InProgress" if ready and ready[0] != "True" else "Current"


def new() -> World:
    """As the API server has it before any operator looks: with the CRD's defaults."""
    world = World(a_run())
    schema = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    run = world.runs["run"]
    run["status"] = defaulted({"properties": {"status": schema["properties"]["status"]}}, {})["status"]
    return world


def settled(world: World) -> World:
    world.settle()
    return world


def running() -> World:
    return begun("fuse-s0")


def stuck() -> World:
    """A Pod finds no node: waiting may help."""
    world = begun("fuse-s0")
    pending = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
    world.add_pod(world.child_of("fuse-s0"), {"phase": "Pending", "conditions": [pending]})
    world.now += 60
    return settled(world)


def store_away() -> World:
    world = World(a_run())
    world.away = lambda ask: ask.what in ("artifact", "hit")
    return settled(world)


def launcher_missing() -> World:
    world = World(a_run(launcher="TrainJob"))
    world.launchers = ("Job",)
    return settled(world)


def launcher_installed() -> World:
    world = launcher_missing()
    world.launchers = ("TrainJob", "Job")
    return settled(world)


def suspending() -> World:
    world = begun("fuse-s0")
    world.lingers = True
    world.edit(suspend=True)
    world.turn()
    return world


def suspended() -> World:
    world = begun("fuse-s0")
    world.edit(suspend=True)
    return settled(world)


def resumed() -> World:
    world = suspended()
    world.edit(suspend=False)
    return settled(world)


def over(world: World, edit: Mapping[str, Any] | None = None) -> World:
    world.drive()
    if edit:
        world.edit(**edit)
    return world


def failed(act: Any = None, **spec: Any) -> World:
    world = World(a_run(**spec))
    world.script = {"merge": [act or fails(65)]}
    return over(world)


def retried() -> World:
    world = failed()
    world.script = {"merge": [nothing]}
    world.retry()
    return settled(world)


def invalid() -> World:
    return settled(World(a_run(fuse={"globalBatch": 2})))


def late() -> World:
    world = begun("fuse-s0", deadline="1h")
    world.now += 2 * 3600
    return settled(world)


def deleted() -> World:
    world = running()
    world.runs["run"]["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    return world


LINEAR = {"merge": {"method": "linear"}}
TABLE: list[tuple[str, Callable[[], World], str]] = [
    ("new, no operator has looked at it", new, "InProgress"),
    ("its first steps run", lambda: settled(World(a_run())), "InProgress"),
    ("what is not pinned is being resolved", lambda: settled(World(a_run(pinned=False))), "InProgress"),
    ("a training runs", running, "InProgress"),
    ("a Pod has no room", stuck, "InProgress"),
    ("the store is away", store_away, "InProgress"),
    ("its launcher is missing", launcher_missing, "Failed"),
    ("its launcher is installed after all", launcher_installed, "InProgress"),
    ("suspended, its children are stopping", suspending, "InProgress"),
    ("suspended and stopped", suspended, "InProgress"),
    ("suspended before it began", lambda: settled(World(a_run(suspend=True))), "InProgress"),
    ("resumed", resumed, "InProgress"),
    ("a step failed", failed, "Failed"),
    ("a budget is spent", lambda: failed(fails(75, reason="BackoffLimitExceeded")), "Failed"),
    ("a gate is closed", lambda: over(World(a_run(gates={"keptShare": 0.99}))), "Failed"),
    ("past its deadline", late, "Failed"),
    ("a spec that cannot be obeyed", invalid, "Failed"),
    ("retried after a failure", retried, "InProgress"),
    ("succeeded", lambda: over(World(a_run())), "Current"),
    ("edited after its success, not looked at yet", lambda: over(World(a_run()), LINEAR), "InProgress"),
    ("edited after its success", lambda: settled(over(World(a_run()), LINEAR)), "InProgress"),
    ("edited after its failure, not looked at yet", lambda: over_with_edit(failed()), "InProgress"),
    ("edited into nonsense", lambda: settled(over(World(a_run()), {"fuse": {"globalBatch": 2}})), "Failed"),
    ("deleted while it runs", deleted, "Terminating"),
]


def over_with_edit(world: World) -> World:
    world.edit(**LINEAR)
    return world


@pytest.mark.parametrize(("what", "state", "want"), TABLE, ids=[row[0] for row in TABLE])
def test_a_run_reads_as_what_it_is(what, state, want):
    assert kstatus(state().runs["run"]) == want


def test_without_the_crds_default_a_new_run_would_read_as_finished():
    found = new().runs["run"]
    assert found["status"] == {"observedGeneration": -1}
    assert kstatus({**found, "status": {}}) == "Current"


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_the_reading_itself_knows_a_run_that_is_not_ready(status):
    made = {"conditions": [{"type": "Ready", "status": status}]}
    assert kstatus({"metadata": {}, "status": made}) == "InProgress"


def test_at_every_look_of_a_run_that_succeeds_it_is_in_progress_until_it_is_current():
    world, seen = World(a_run()), []
    for _ in range(40):
        seen.append(kstatus(world.runs["run"]))
        if world.over():
            break
        world.turn()
        for found in world.active():
            world.play(found)
    seen.append(kstatus(world.runs["run"]))
    assert set(seen[:-2]) == {"InProgress"}
    assert seen[-1] == "Current"
