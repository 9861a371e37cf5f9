"""A FusionRun's life on a real control plane: run, edit, suspend, delete, retry, share; stages are played."""

from __future__ import annotations

import json
import time

import pytest
from fusechat.plan import plan
from fusechat.spec import load
from fusechat_operator import naming

from tests.cluster.plane import Plane
from tests.cluster.stagehand import Act, a_run


def patch(plane: Plane, name: str, namespace: str, spec: dict) -> None:
    plane.kubectl(
        "patch", "fusionrun", name, "-n", namespace, "--type=merge", "-p", json.dumps({"spec": spec})
    )


def annotate_retry(plane: Plane, name: str, namespace: str) -> None:
    note = f"{naming.RETRY_AT}={time.time_ns()}"
    plane.kubectl("annotate", "fusionrun", name, "-n", namespace, note, "--overwrite")


def played(plane: Plane, namespace: str) -> list[str]:
    return [each.step for each in plane.hand.played if each.namespace == namespace]


def steps_of(plane: Plane, run: str, namespace: str) -> list[str]:
    return [c["metadata"]["labels"][naming.STEP] for c in plane.children(run, namespace)]


def wait_for_child(plane: Plane, run: str, step: str, namespace: str) -> dict:
    def found() -> dict | None:
        children = plane.children(run, namespace)
        return next((c for c in children if c["metadata"]["labels"][naming.STEP] == step), None)

    return plane.wait(f"a child for {step}", found, about=lambda: plane.status(run, namespace))


def test_a_run_goes_through_all_its_steps_and_its_addresses_are_the_plans(plane, operator, namespace):
    run = a_run("whole", namespace=namespace)
    plane.apply(run)
    status = plane.until("whole", namespace=namespace)
    planned = plan(load(run))
    addresses = {s.name: str(s.address).rpartition("/")[2][:10] for s in planned.steps}
    assert {line["name"]: line["address"] for line in status["steps"]} == addresses
    assert {line["state"] for line in status["steps"]} == {"Succeeded"}
    assert sorted(played(plane, namespace)) == sorted([*addresses, "report"])
    assert status["model"].endswith(str(planned.step("merge").address))
    assert status["scores"] == [
        {"subject": "Fused", "benchmark": "exactMatch", "score": 0.5, "low": 0.4, "high": 0.6}
    ]
    kinds = {c["kind"] for c in plane.children("whole", namespace)}
    assert kinds == {"Job", "PyTorchJob"}
    for child in plane.children("whole", namespace):
        owners = child["metadata"]["ownerReferences"]
        assert [(o["kind"], o["controller"]) for o in owners] == [("FusionRun", True)]
    assert plane.store.get_json(f"runs/{plane.get('fusionrun', 'whole', namespace)['metadata']['uid']}.json")


def test_the_same_recipe_again_is_cached_and_starts_only_its_report(plane, operator, namespace):
    plane.apply(a_run("whole", namespace=namespace))
    plane.until("whole", namespace=namespace)
    other = plane.namespace()
    plane.apply(a_run("whole", namespace=other))
    status = plane.until("whole", namespace=other)
    assert {line["state"] for line in status["steps"]} == {"Cached"}
    assert played(plane, other) == ["report"]


def test_an_ended_run_is_final_whatever_happens_to_its_artifacts(plane, operator, namespace):
    plane.apply(a_run("final", namespace=namespace))
    status = plane.until("final", namespace=namespace)
    address = status["model"].removeprefix(plane.store.uri + "/")
    plane.store.delete([f"{address}/manifest.json"])
    plane.kubectl("label", "fusionrun", "final", "-n", namespace, "touched=yes")
    time.sleep(3)
    assert plane.status("final", namespace) == status


def test_an_edit_recomputes_what_it_changes_and_nothing_else(plane, operator, namespace):
    plane.apply(a_run("edited", namespace=namespace))
    plane.until("edited", namespace=namespace)
    before = len(played(plane, namespace))
    patch(plane, "edited", namespace, {"merge": {"method": "linear"}})
    plane.wait("the edit is seen", lambda: plane.status("edited", namespace)["observedGeneration"] == 2)
    plane.until("edited", namespace=namespace)
    assert sorted(played(plane, namespace)[before:]) == ["evaluate-fused", "merge", "report"]


def test_an_edit_in_the_middle_stops_what_nobody_needs_any_more(plane, operator, namespace):
    plane.hand.script["fuse-s0"] = [Act(seconds=300)]
    plane.apply(a_run("middle", namespace=namespace))
    old = wait_for_child(plane, "middle", "fuse-s0", namespace)
    patch(plane, "middle", namespace, {"fuse": {"epochs": 2}})
    plane.until("middle", namespace=namespace)
    assert plane.get("pytorchjob", old["metadata"]["name"], namespace) is None
    assert played(plane, namespace).count("extract-s0") == 1


def test_a_source_added_runs_only_its_own_steps_the_merge_and_what_follows(plane, operator, namespace):
    run = a_run("grown", sources=3, namespace=namespace)
    added = run["spec"]["sources"].pop()
    plane.apply(run)
    plane.until("grown", namespace=namespace)
    before = len(played(plane, namespace))
    patch(plane, "grown", namespace, {"sources": [*run["spec"]["sources"], added]})
    plane.wait("the edit is seen", lambda: plane.status("grown", namespace)["observedGeneration"] == 2)
    plane.until("grown", namespace=namespace)
    own = [f"{stage}-s2" for stage in ("fetch", "extract", "align", "filter", "fuse")]
    assert sorted(played(plane, namespace)[before:]) == sorted([*own, "merge", "evaluate-fused", "report"])


def test_a_source_removed_runs_only_the_merge_and_what_follows(plane, operator, namespace):
    run = a_run("shrunk", sources=3, namespace=namespace)
    plane.apply(run)
    plane.until("shrunk", namespace=namespace)
    before = len(played(plane, namespace))
    patch(plane, "shrunk", namespace, {"sources": run["spec"]["sources"][:2]})
    plane.wait("the edit is seen", lambda: plane.status("shrunk", namespace)["observedGeneration"] == 2)
    status = plane.until("shrunk", namespace=namespace)
    assert sorted(played(plane, namespace)[before:]) == ["evaluate-fused", "merge", "report"]
    assert not [line for line in status["steps"] if "s2" in line["name"]]


def test_a_suspended_run_stops_its_children_and_resumes_where_it_was(plane, operator, namespace):
    plane.hand.script["fuse-s1"] = [Act(seconds=300)]
    plane.apply(a_run("paused", namespace=namespace))
    child = wait_for_child(plane, "paused", "fuse-s1", namespace)
    plane.wait("its Pod runs", lambda: "fuse-s1" in played(plane, namespace))
    patch(plane, "paused", namespace, {"suspend": True})
    plane.until("paused", "Suspended", namespace=namespace)
    plane.wait(
        "the child is gone", lambda: plane.get("pytorchjob", child["metadata"]["name"], namespace) is None
    )
    assert plane.condition("paused", "Reconciling", namespace)["status"] == "True"
    patch(plane, "paused", namespace, {"suspend": False})
    status = plane.until("paused", namespace=namespace)
    assert played(plane, namespace).count("fuse-s1") == 2
    assert played(plane, namespace).count("extract-s1") == 1
    assert not [line for line in status["steps"] if line.get("tries")]


@pytest.mark.parametrize(
    "step", ["fetch-s0", "extract-s0", "align-s0", "filter-s0", "fuse-s0", "merge", "evaluate-fused"]
)
def test_deleted_in_any_stage_a_run_goes_at_once_and_its_children_after_it(plane, operator, namespace, step):
    plane.hand.script[step] = [Act(seconds=300)]
    plane.apply(a_run(f"gone-{step}", namespace=namespace))
    wait_for_child(plane, f"gone-{step}", step, namespace)
    plane.kubectl("delete", "fusionrun", f"gone-{step}", "-n", namespace, "--timeout=60s")
    plane.wait("no child is left", lambda: not plane.children(f"gone-{step}", namespace))
    kept = plan(load(a_run(f"gone-{step}", namespace=namespace))).step("fetch-pivot").address
    if step != "fetch-s0":
        assert plane.store.manifest(str(kept))


def test_a_failed_run_says_why_and_a_retry_goes_on_from_there(plane, operator, namespace):
    plane.hand.script["extract-s1"] = [Act(exit_code=65, error="the dataset has no supervised token")]
    plane.apply(a_run("failing", namespace=namespace))
    plane.until("failing", "Stalled", namespace=namespace)
    stalled = plane.condition("failing", "Stalled", namespace)
    assert stalled["reason"] == "StepFailed"
    assert stalled["message"].startswith("extract-s1: ")
    assert plane.condition("failing", "Succeeded", namespace)["status"] == "False"
    line = plane.step("failing", "extract-s1", namespace)
    assert (line["state"], line["tries"]["bug"]) == ("Failed", 1)
    assert plane.step("failing", "fuse-s0", namespace)["state"] == "Succeeded", "the rest goes on"
    failed = wait_for_child(plane, "failing", "extract-s1", namespace)
    assert "ttlSecondsAfterFinished" not in failed["spec"], "a failed child stays for a person to look at"
    annotate_retry(plane, "failing", namespace)
    plane.until("failing", namespace=namespace)
    assert played(plane, namespace).count("extract-s1") == 2
    assert played(plane, namespace).count("extract-s0") == 1


def test_two_runs_that_need_one_artifact_have_one_child(plane, operator, namespace):
    plane.hand.script["extract-s0"] = [Act(seconds=6)]
    first = a_run("first", namespace=namespace)
    second = json.loads(json.dumps(first))
    second["metadata"]["name"] = "second"
    plane.apply(first)
    wait_for_child(plane, "first", "extract-s0", namespace)
    plane.apply(second)
    plane.until("first", namespace=namespace)
    plane.until("second", namespace=namespace)
    steps = [step for step in played(plane, namespace) if step != "report"]
    assert sorted(steps) == sorted(set(steps)), "each step ran once"


def test_when_the_owner_of_a_shared_child_is_deleted_the_other_makes_its_own(plane, operator, namespace):
    plane.hand.script["extract-s0"] = [Act(seconds=300), Act()]
    first = a_run("owner", namespace=namespace)
    second = json.loads(json.dumps(first))
    second["metadata"]["name"] = "other"
    plane.apply(first)
    wait_for_child(plane, "owner", "extract-s0", namespace)
    plane.apply(second)
    plane.wait(
        "the other waits for it",
        lambda: plane.step("other", "extract-s0", namespace).get("state") == "Waiting",
    )
    plane.kubectl("delete", "fusionrun", "owner", "-n", namespace)
    plane.until("other", namespace=namespace)
    assert played(plane, namespace).count("extract-s0") == 2


def test_a_namespace_that_is_deleted_takes_its_run_along(plane, operator, namespace):
    plane.hand.script["fuse-s0"] = [Act(seconds=300)]
    plane.apply(a_run("doomed", namespace=namespace))
    wait_for_child(plane, "doomed", "fuse-s0", namespace)
    plane.kubectl("delete", "namespace", namespace, "--timeout=60s")
    assert plane.get("namespace", namespace) is None
    assert operator.process.poll() is None


def test_a_gate_stops_before_the_training_and_lowering_it_goes_on(plane, operator, namespace):
    plane.apply(a_run("gated", namespace=namespace, gates={"keptShare": 0.95}))
    plane.until("gated", "Stalled", namespace=namespace)
    assert plane.condition("gated", "Stalled", namespace)["reason"] == "GateClosed"
    assert "keptShare" in plane.condition("gated", "Ready", namespace)["message"]
    assert not [step for step in played(plane, namespace) if step.startswith("fuse")]
    patch(plane, "gated", namespace, {"gates": {"keptShare": 0.5}})
    plane.until("gated", namespace=namespace)


def test_a_deadline_ends_the_run_and_its_children(plane, operator, namespace):
    plane.hand.script["fuse-s0"] = [Act(seconds=300)]
    plane.apply(a_run("late", namespace=namespace, deadline="12s"))
    plane.until("late", "Stalled", namespace=namespace)
    assert plane.condition("late", "Stalled", namespace)["reason"] == "DeadlineExceeded"
    plane.wait(
        "nothing runs any more",
        lambda: (
            not [
                c
                for c in plane.children("late", namespace)
                if c["metadata"]["labels"][naming.STEP] == "fuse-s0"
            ]
        ),
    )


def test_finished_children_go_after_their_time_and_the_run_stays(plane, operator, namespace):
    plane.apply(a_run("tidy", namespace=namespace, ttl="1m"))
    plane.until("tidy", namespace=namespace)
    plane.wait("all children are gone", lambda: not plane.children("tidy", namespace), 100)
    assert plane.status("tidy", namespace)["progress"] == "16/16"
