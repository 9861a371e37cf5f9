"""The Pods of jobs.build on a real node under `restricted` run, fail and stop as the operator expects it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fusechat.plan import Step, plan
from fusechat_operator import children
from fusechat_operator.causes import cause

from tests.cluster import bench
from tests.cluster.bench import Bench
from tests.cluster.node import Node

BEGINNING = ("fetch-pivot", "fetch-dataset", "extract-pivot")
HELD = [{"op": "add", "path": "/metadata/finalizers/-", "value": "fusechat.io/test"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def spec(node: Node, folder: Path) -> dict[str, Any]:
    """The tiny run, its origins on S3."""
    return bench.put_tiny(node, folder)


@pytest.fixture(scope="module")
def begun(node: Node, spec: dict[str, Any]) -> Bench:
    """A bench that has its pins, its inputs and what the pivot says, each made by a Pod."""
    made = bench.resolved(bench.apply(node, spec))
    for name in BEGINNING:
        made.complete(made.plan.step(name))
    return made


def pod_of(made: Bench, step: Step) -> children.Pod:
    (found,) = made.pods(step)
    return children.pod(found)


def test_steps_run_restricted_and_publish_under_the_addresses_of_a_laptop(begun, folder):
    assert plan(begun.run, bench.pins_of_a_laptop(begun, folder)) == begun.plan
    labels = begun.node.get("namespace", begun.namespace)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for name in BEGINNING:
        step = begun.plan.step(name)
        pod, made = pod_of(begun, step), begun.node.store.manifest(str(step.address))
        assert (pod.phase, pod.exit_code, pod.node) == ("Succeeded", 0, "node1")
        assert pod.summary["metrics"] == made.metrics
        assert pod.summary["published"]


def test_bad_data_is_not_tried_again_and_its_sentence_reaches_the_operator(begun):
    step = begun.plan.step("fetch-a")
    uri = f"{begun.node.origins}/nowhere"
    nowhere = replace(step, address=f"fetch/{'0' * 64}", runtime={**step.runtime, "uri": uri})
    begun.create(nowhere)
    child, pod = begun.ended(nowhere), pod_of(begun, nowhere)
    assert (child.phase, child.reason, pod.exit_code) == ("Failed", "PodFailurePolicy", 65)
    found = cause(child, [pod], [])
    assert (found.kind, found.exit_code) == ("bug", 65)
    assert f"{uri}: nothing lies there" in found.sentence


def test_a_container_over_its_memory_is_a_bug_that_says_what_to_do(node, spec, begun):
    small = bench.apply(node, spec, begun.pins, {"extract": {"gpus": 0, "memory": "150Mi"}})
    step = replace(small.plan.step("extract-pivot"), address=f"extract/{'1' * 64}")
    small.create(step)
    child, pod = small.ended(step), pod_of(small, step)
    assert (child.phase, pod.reason, pod.out_of_memory) == ("Failed", "OOMKilled", True)
    found = cause(child, [pod], [])
    assert found.kind == "bug"
    assert "more memory" in found.sentence


def test_a_deleted_training_saves_and_ends_as_143_and_the_next_attempt_goes_on_from_there(node, spec, begun):
    long = bench.apply(node, {**spec, "fuse": {**spec["fuse"], "epochs": 1000}}, begun.pins)
    step = long.plan.step("control-sft")
    long.create(step)
    node.wait("steps of the training", lambda: steps_done(node, step) > 3, 120, lambda: long.tell(step))
    pod = stopped(long, step)
    assert pod.exit_code == 143, long.tell(step)
    assert cause(long.child(step), [pod], []).kind == "disruption"
    saved = [
        o.key for o in node.store.keys(f"{step.address}/checkpoints/") if o.key.endswith("manifest.json")
    ]
    assert len(saved) == 1
    assert f"checkpoints/{pod.summary['attempt']}/" in saved[0]
    node.kubectl("delete", "job", long.name(step), "-n", long.namespace)
    long.create(step)
    node.wait("the resuming", lambda: "resumed at step" in long.log(step), 60, lambda: long.tell(step))


def steps_done(node: Node, step: Step) -> int:
    return int((node.store.get_json(f"{step.address}/progress.json") or {}).get("done", 0))


def stopped(made: Bench, step: Step) -> children.Pod:
    """The step's only Pod, after `kubectl delete pod` has ended its Job; a finalizer keeps it until then."""
    (raw,) = made.pods(step)
    pod = ("pod", raw["metadata"]["name"], "-n", made.namespace)
    made.node.kubectl("patch", *pod, "--type=json", "-p", json.dumps(HELD))
    made.node.kubectl("delete", *pod, "--wait=false")
    assert made.ended(step).phase == "Failed"
    found = pod_of(made, step)
    made.node.kubectl("patch", *pod, "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
    return found
