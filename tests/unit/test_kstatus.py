"""How Flux, Argo CD and whoever else reads health from a FusionRun's status read it, in each of its states.

Flux, `kpt` and others use kstatus. Argo CD has no such rule: for a kind that it does not know it asks Lua
(`resource.customizations` of argocd-cm), and an object without an answer counts for nothing, so that an
Application is Healthy beside a failed run. docs/argocd/argocd-cm.yaml has the Lua, which runs here as it does
there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import yaml
from fusechat import crd
from lupa import lua51

from tests.conftest import CHECKOUT
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


HEALTH = yaml.safe_load((CHECKOUT / "docs/argocd/argocd-cm.yaml").read_text())["data"]
ARGO_HAS = ("assert", "error", "ipairs", "next", "pairs", "select", "tonumber", "tostring", "type", "table")


def argocd(found: Object) -> tuple[str, str]:
    """Status and message (gitops-engine, health.go; argo-cd, util/lua: Lua 5.1 without most libraries)."""
    if found["metadata"].get("deletionTimestamp"):
        return "Progressing", "Pending deletion"
    lua = lua51.LuaRuntime(register_eval=False, register_builtins=False)
    lua.execute('debug.setmetatable("", nil)')
    names = lua.globals()
    for name in set(names) - set(ARGO_HAS):
        names[name] = None
    names["obj"] = lua.table_from(found, recursive=True)
    told = lua.execute(HEALTH["resource.customizations.health.fusechat.io_FusionRun"])
    return told["status"], told["message"]


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
    world.away = lambda ask: ask.what in ("artifact", "hit", "sink")
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
TABLE: list[tuple[str, Callable[[], World], str, str]] = [
    ("new, no operator has looked at it", new, "InProgress", "Progressing"),
    ("its first steps run", lambda: settled(World(a_run())), "InProgress", "Progressing"),
    (
        "what is not pinned is being resolved",
        lambda: settled(World(a_run(pinned=False))),
        "InProgress",
        "Progressing",
    ),
    ("a training runs", running, "InProgress", "Progressing"),
    ("a Pod has no room", stuck, "InProgress", "Progressing"),
    ("the store is away", store_away, "InProgress", "Progressing"),
    ("its launcher is missing", launcher_missing, "Failed", "Degraded"),
    ("its launcher is installed after all", launcher_installed, "InProgress", "Progressing"),
    ("suspended, its children are stopping", suspending, "InProgress", "Suspended"),
    ("suspended and stopped", suspended, "InProgress", "Suspended"),
    ("suspended before it began", lambda: settled(World(a_run(suspend=True))), "InProgress", "Suspended"),
    ("resumed", resumed, "InProgress", "Progressing"),
    ("a step failed", failed, "Failed", "Degraded"),
    ("a budget is spent", lambda: failed(fails(75, reason="BackoffLimitExceeded")), "Failed", "Degraded"),
    ("a gate is closed", lambda: over(World(a_run(gates={"keptShare": 0.99}))), "Failed", "Degraded"),
    ("past its deadline", late, "Failed", "Degraded"),
    ("a spec that cannot be obeyed", invalid, "Failed", "Degraded"),
    ("retried after a failure", retried, "InProgress", "Progressing"),
    ("succeeded", lambda: over(World(a_run())), "Current", "Healthy"),
    (
        "edited after its success, not looked at yet",
        lambda: over(World(a_run()), LINEAR),
        "InProgress",
        "Progressing",
    ),
    ("edited after its success", lambda: settled(over(World(a_run()), LINEAR)), "InProgress", "Progressing"),
    (
        "edited after its failure, not looked at yet",
        lambda: over_with_edit(failed()),
        "InProgress",
        "Progressing",
    ),
    (
        "edited into nonsense",
        lambda: settled(over(World(a_run()), {"fuse": {"globalBatch": 2}})),
        "Failed",
        "Degraded",
    ),
    ("deleted while it runs", deleted, "Terminating", "Progressing"),
]


def over_with_edit(world: World) -> World:
    world.edit(**LINEAR)
    return world


@pytest.mark.parametrize(("what", "state", "flux", "argo"), TABLE, ids=[row[0] for row in TABLE])
def test_a_run_reads_as_what_it_is(what, state, flux, argo):
    found = state().runs["run"]
    assert (kstatus(found), argocd(found)[0]) == (flux, argo)


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


def test_argo_cd_shows_the_sentence_of_ready():
    found = failed().runs["run"]
    (ready,) = (c for c in found["status"]["conditions"] if c["type"] == "Ready")
    assert argocd(found) == ("Degraded", ready["message"])


def test_argo_cd_says_that_nobody_has_looked_yet():
    unseen = "no operator has looked at it yet"
    found = new().runs["run"]
    assert argocd(found) == ("Progressing", unseen)
    assert argocd({key: value for key, value in found.items() if key != "status"}) == ("Progressing", unseen)
    edited = over_with_edit(failed()).runs["run"]
    assert argocd(edited) == ("Progressing", "the operator has not looked at its last change yet")


def test_the_lua_that_argo_cd_runs_has_no_libraries_here_either():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(HEALTH, "resource.customizations.health.fusechat.io_FusionRun", 'return ("x"):rep(2)')
        with pytest.raises(lua51.LuaError, match="index"):
            argocd(new().runs["run"])
