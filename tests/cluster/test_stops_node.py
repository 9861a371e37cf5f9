"""Real trainings that are stopped, and real Pods that cannot go on, as an operator on a real node tells it.

The chart's operator, real stages in containers, real S3. test_preemption_node.py has what Kueue stops.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fusechat.plan import Step, plan
from fusechat.spec import load
from fusechat_operator import memory, naming

from tests.cluster import bench, installed
from tests.cluster.node import Node

SMALL = {"cpu": "400m", "memory": "2Gi", "gpus": 0}
RESOURCES = dict.fromkeys(("extract", "align", "filter", "fuse", "merge", "evaluate"), SMALL)
SECONDS = 240.0


@pytest.fixture(scope="module")
def node(node: Node) -> Iterator[Node]:
    """The node with the operator on it, installed by the chart."""
    installed.install(node)
    yield node
    print(node.kubectl("logs", "-n", "fusechat-system", "deploy/fusechat", "--tail=50", check=False))


@pytest.fixture(scope="module")
def spec(node: Node, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tiny run of one source, its origins on S3, with a training that no test sees the end of."""
    made = bench.put_tiny(node, tmp_path_factory.mktemp("tiny"))
    kept = {name: value for name, value in made.items() if name != "evaluate"}
    fuse = {**made["fuse"], "epochs": 1000, "globalBatch": 1, "microBatch": 1, "seed": 77}
    return {**kept, "sources": made["sources"][:1], "controls": [], "fuse": fuse, "resources": RESOURCES}


def apply(node: Node, name: str, namespace: str, spec: dict[str, Any]) -> None:
    meta = {"name": name, "namespace": namespace}
    node.apply({"apiVersion": "fusechat.io/v1alpha1", "kind": "FusionRun", "metadata": meta, "spec": spec})


def suspend(node: Node, name: str, namespace: str, value: bool) -> None:
    told = json.dumps({"spec": {"suspend": value}})
    node.kubectl("patch", "fusionrun", name, "-n", namespace, "--type=merge", "-p", told)


def is_true(node: Node, run: str, condition: str, namespace: str) -> bool:
    return node.condition(run, condition, namespace).get("status") == "True"


def about(node: Node, namespace: str) -> Callable[[], str]:
    def tell() -> str:
        pods = node.kubectl("get", "pods", "-n", namespace, check=False)
        return (
            f"{node.kubectl('get', 'fusionruns', '-n', namespace, '-o', 'yaml', check=False)[-6000:]}\n{pods}"
        )

    return tell


def detail(node: Node, run: str, namespace: str, step: str) -> dict[str, Any]:
    details = node.status(run, namespace).get("details", ())
    return next((each for each in details if each["name"] == step), {})


def training(node: Node, run: str, namespace: str) -> Step:
    """The run's fuse, once its pins are known."""
    found = node.get("fusionrun", run, namespace)
    assert found
    made = plan(load(found), memory.read(found["status"]).pins)
    return next(step for step in made.steps if step.stage == "fuse")


def ended(node: Node, step: Step) -> list[dict[str, Any]]:
    """The records of its attempts that have ended, in their order."""
    keys = [found.key for found in node.store.keys(f"{step.address}/attempts/")]
    return sorted((node.store.get_json(key) for key in keys), key=lambda told: told["started"])


def saved(told: dict[str, Any]) -> int:
    found = re.search(r"saved at step (\d+)", told.get("error", ""))
    assert found, told
    return int(found[1])


def resumed(node: Node, namespace: str) -> int:
    """The step from which the training that runs now says that it goes on; 0 if it does not say so yet."""
    words = ("-n", namespace, "-l", f"{naming.STAGE}=fuse", "--tail=-1")
    found = re.search(r"resumed at step (\d+)", node.kubectl("logs", *words, check=False))
    return int(found[1]) if found else 0


def owner(node: Node, namespace: str) -> str:
    """The run whose training there is."""
    found = node.listed("pod", namespace, f"{naming.STAGE}=fuse")
    return str(next((p["metadata"]["labels"][naming.RUN] for p in found), ""))


def test_a_training_saves_when_its_run_is_suspended_or_deleted_and_whoever_needs_it_goes_on_from_there(
    node, spec
):
    """Suspended, taken on by another run, whose deletion gives it back: no saved step is done twice."""
    namespace = node.namespace()
    tell = about(node, namespace)
    apply(node, "first", namespace, spec)
    told = node.wait(
        "progress in the status", lambda: _whole(detail(node, "first", namespace, "fuse-a")), SECONDS, tell
    )
    assert 0 < told["percent"] < 100
    assert re.fullmatch(r"[\d.e+]+ steps/s", told["rate"])
    step = training(node, "first", namespace)

    suspend(node, "first", namespace, True)
    node.wait("it stands", lambda: is_true(node, "first", "Suspended", namespace), 90, tell)
    node.wait("the training has ended", lambda: ended(node, step), 90, tell)
    (one,) = ended(node, step)
    assert one["exitCode"] == 143
    node.wait("its Pod is gone", lambda: not owner(node, namespace), 60, tell)
    assert not [
        c for c in node.children("first", namespace) if c["metadata"]["labels"][naming.STAGE] == "fuse"
    ]

    apply(node, "second", namespace, spec)
    node.wait("the other run goes on", lambda: resumed(node, namespace), 120, tell)
    assert (owner(node, namespace), resumed(node, namespace)) == ("second", saved(one))
    suspend(node, "first", namespace, False)
    waits = "another run is making the same artifact: second"
    node.wait(
        "the first waits",
        lambda: waits in detail(node, "first", namespace, "fuse-a").get("message", ""),
        60,
        tell,
    )

    node.kubectl("delete", "fusionrun", "second", "-n", namespace, "--timeout=30s")
    node.wait("the training has ended again", lambda: len(ended(node, step)) == 2, 90, tell)
    *_, two = ended(node, step)
    assert two["exitCode"] == 143
    assert saved(two) > saved(one)
    node.wait("the first has one of its own", lambda: owner(node, namespace) == "first", 60, tell)
    node.wait("it goes on", lambda: resumed(node, namespace), 120, tell)
    assert resumed(node, namespace) == saved(two)

    node.kubectl("delete", "fusionrun", "first", "-n", namespace, "--timeout=30s")
    node.wait("nothing is left of them", lambda: not _left(node, namespace), 120, tell)
    assert node.store.keys(f"{step.address}/checkpoints/"), "what was saved stays for whoever comes next"


def _whole(told: dict[str, Any]) -> dict[str, Any] | None:
    return told if {"percent", "rate", "etaSeconds", "started", "child"} <= told.keys() else None


def _left(node: Node, namespace: str) -> str:
    return node.kubectl("get", "jobs,pytorchjobs,services,pods", "-n", namespace, "-o", "name").strip()


def test_a_stage_without_enough_memory_stalls_the_run_with_a_sentence_and_is_not_tried_again(node, spec):
    namespace = node.namespace()
    resources = {**RESOURCES, "extract": {**SMALL, "memory": "150Mi"}}
    other = {**spec, "extract": {**spec["extract"], "maxLength": 80}, "resources": resources}
    apply(node, "starved", namespace, other)
    node.wait(
        "it stalls", lambda: is_true(node, "starved", "Stalled", namespace), SECONDS, about(node, namespace)
    )
    message = node.condition("starved", "Ready", namespace)["message"]
    assert "OOMKilled" in message
    assert "give the stage more memory" in message
    lines = {line["name"]: line for line in node.status("starved", namespace)["steps"]}
    failed = [name for name, line in lines.items() if line["state"] == "Failed"]
    assert failed
    assert {name.split("-")[0] for name in failed} == {"extract"}
    for name in failed:
        assert lines[name]["tries"] == {"disruption": 0, "infrastructure": 0, "bug": 1}
        made = node.listed("pod", namespace, f"{naming.STEP}={name}")
        assert len(made) == 1, "kept for a person, and the only one"


def test_an_image_that_cannot_be_pulled_is_said_and_is_no_failure(node, spec):
    namespace = node.namespace()
    missing = {**installed.defaults(node)["stages"], "image": {"repository": "localhost/no-such", "tag": "1"}}
    installed.install(node, stages=missing)
    try:
        apply(node, "unpulled", namespace, {**spec, "extract": {**spec["extract"], "maxLength": 72}})
        wanted = "cannot be pulled"
        node.wait(
            "it says so",
            lambda: wanted in node.condition("unpulled", "Ready", namespace).get("message", ""),
            120,
            about(node, namespace),
        )
        assert "localhost/no-such:1" in node.condition("unpulled", "Ready", namespace)["message"]
        assert not is_true(node, "unpulled", "Stalled", namespace)
        node.kubectl("delete", "fusionrun", "unpulled", "-n", namespace, "--timeout=30s")
    finally:
        installed.install(node)
