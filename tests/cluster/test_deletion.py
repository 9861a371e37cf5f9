"""What is left of a run that is deleted, and what of its artifacts gc may take. Stages are played."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from fusechat.plan import plan
from fusechat.spec import load

from tests.cluster.recorded import COLLECTOR_SECONDS
from tests.cluster.stagehand import Act, a_run
from tests.cluster.test_lifecycle import played, wait_for_child

THE_CLUSTERS = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
"""What it gives to every namespace, some time after that was made."""


def all_in(plane, namespace) -> set[str]:
    """Every object of a namespace that is not the cluster's own, of every kind there is, but Events."""
    listed = plane.kubectl("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    kinds = [kind for kind in listed if kind.partition(".")[0] != "events"]
    return set(plane.kubectl("get", ",".join(kinds), "-n", namespace, "-o", "name").split()) - THE_CLUSTERS


def test_a_namespace_goes_at_once_and_the_run_next_door_that_shares_its_steps_goes_on(
    plane, operator, namespace
):
    doomed = a_run("shared", sources=1, namespace=namespace)
    next_door = json.loads(json.dumps(doomed))
    next_door["metadata"]["namespace"] = other = plane.namespace()
    plane.hand.script["fuse-s0"] = [Act(seconds=300), Act(seconds=8)]
    plane.apply(doomed)
    wait_for_child(plane, "shared", "fuse-s0", namespace)
    plane.wait("it trains", lambda: "fuse-s0" in played(plane, namespace))
    plane.apply(next_door)
    child = wait_for_child(plane, "shared", "fuse-s0", other)
    assert set(played(plane, other)) <= {"fuse-s0"}, "all else is cached"
    found = json.loads(plane.kubectl("get", "fusionruns,pytorchjobs,services", "-n", namespace, "-o", "json"))
    assert {item["kind"] for item in found["items"]} == {"FusionRun", "PyTorchJob", "Service"}
    assert not [item for item in found["items"] if item["metadata"].get("finalizers")]
    plane.kubectl("delete", "namespace", namespace, "--timeout=60s")
    assert plane.get("namespace", namespace) is None, "no finalizer held it"
    held = plane.get("pytorchjob", child["metadata"]["name"], other)
    assert held["metadata"]["uid"] == child["metadata"]["uid"]
    status = plane.until("shared", namespace=other)
    assert not [line for line in status["steps"] if line.get("tries")]
    assert played(plane, other).count("fuse-s0") == 1


@pytest.mark.parametrize(
    ("launcher", "cascade", "alone"), [("PyTorchJob", "background", False), ("Job", "foreground", True)]
)
def test_a_deleted_run_leaves_no_object_whether_or_not_an_operator_is_there(
    plane, operator, namespace, launcher, cascade, alone
):
    name = f"wiped-{launcher.lower()}"
    before = all_in(plane, namespace)
    plane.hand.script["fuse-s0"] = [Act(seconds=300)] * 2
    training = {"launcher": launcher, "fuse": {"nodes": 2, "processes": 1}}
    plane.apply(a_run(name, sources=1, namespace=namespace, **training))
    plane.wait("its two Pods train", lambda: played(plane, namespace).count("fuse-s0") == 2)
    during = {each.partition("/")[0] for each in all_in(plane, namespace) - before}
    assert {"fusionrun.fusechat.io", "job.batch", "pod", "service"} <= during
    if alone:
        operator.kill()
    words = (f"--cascade={cascade}", "--timeout=60s")
    plane.kubectl("delete", "fusionrun", name, "-n", namespace, *words)
    left = lambda: all_in(plane, namespace) - before  # noqa: E731
    plane.wait("nothing is left", lambda: not left(), COLLECTOR_SECONDS, left)
    time.sleep(2)
    assert not left(), "and nothing comes back"


# what gc takes


def gc(plane, *words: str) -> str:
    """What `fusechat gc` or `fusechat cluster gc` prints of whatever is older than now."""
    told = ["--store", plane.store.uri, "--days", "0", "--delete"]
    done = subprocess.run(
        [sys.executable, "-m", "fusechat.cli", *words, *told],
        env={**os.environ, "KUBECONFIG": plane.kubeconfig},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def addresses(run) -> set[str]:
    return {str(step.address) for step in plan(load(run)).steps}


def test_gc_takes_what_only_a_deleted_run_needed_and_nothing_of_one_at_work(plane, operator, namespace):
    gone = a_run("collected", sources=2, namespace=namespace)
    kept = json.loads(json.dumps(gone))
    kept["metadata"]["name"] = "needed"
    kept["spec"]["sources"].pop()
    shared, only = addresses(kept) & addresses(gone), addresses(gone) - addresses(kept)
    there = lambda which: {a for a in which if plane.store.manifest(a)}  # noqa: E731
    plane.apply(gone)
    plane.until("collected", namespace=namespace)
    uid = plane.get("fusionrun", "collected", namespace)["metadata"]["uid"]
    plane.hand.script["merge"] = [Act(seconds=12)]
    plane.apply(kept)
    wait_for_child(plane, "needed", "merge", namespace)
    gc(plane, "cluster", "gc", "--cluster", "plane")
    assert there(only) == only, "it is there, and only has ended"
    plane.kubectl("delete", "fusionrun", "collected", "-n", namespace)
    gc(plane, "gc")
    assert there(only) == only, "without the cluster nobody knows that its run is gone"
    said = gc(plane, "cluster", "gc", "--cluster", "plane")
    assert f"its run is gone: refs/plane/{uid}.json" in said
    assert there(only) == set()
    assert there(shared) == shared
    assert not list(plane.store.keys(f"refs/plane/{uid}.json"))
    assert plane.condition("needed", "Succeeded", namespace)["status"] == "Unknown", "it was at work"
    status = plane.until("needed", namespace=namespace)
    assert status["cached"] == f"{len(shared)}/{len(addresses(kept))}"
    assert there(addresses(kept)) == addresses(kept)
