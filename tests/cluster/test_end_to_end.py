"""All of it on a real node: chart, images, ServiceAccount, real stages in containers, real S3, real bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import yaml
from fusechat.plan import plan
from fusechat.spec import load
from fusechat.store import Store
from fusechat_operator import memory, naming

from tests.cluster import bench, installed

LAPTOP = "s3://fuse/laptop"
SECONDS = 420.0
SMALL = {"cpu": "400m", "memory": "2Gi", "gpus": 0}
RESOURCES = dict.fromkeys(("extract", "align", "filter", "fuse", "merge", "evaluate"), SMALL)


@pytest.fixture(scope="module")
def node(node):
    """The node with the operator on it, installed by the chart."""
    installed.install(node)
    yield node
    print(node.kubectl("logs", "-n", "fusechat-system", "deploy/fusechat", "--tail=50", check=False))


@pytest.fixture(scope="module")
def spec(node, tmp_path_factory):
    """The tiny run, its origins on S3."""
    return {**bench.put_tiny(node, tmp_path_factory.mktemp("tiny")), "resources": RESOURCES}


def apply(node, name, spec):
    namespace = node.namespace()
    meta = {"name": name, "namespace": namespace}
    node.apply({"apiVersion": "fusechat.io/v1alpha1", "kind": "FusionRun", "metadata": meta, "spec": spec})
    return namespace


def succeeded(node, name, namespace):
    """`kubectl wait`, as people do; the object."""
    words = ("wait", "--for=condition=Succeeded", f"fusionrun/{name}", "-n", namespace)
    said = node.kubectl(*words, f"--timeout={SECONDS:.0f}s", check=False)
    pods = node.kubectl("get", "pods", "-n", namespace, check=False)
    assert "condition met" in said, f"{said}\n{json.dumps(node.status(name, namespace), indent=1)}\n{pods}"
    return node.get("fusionrun", name, namespace)


def on_a_laptop(spec, store, folder, name="small"):
    """`fusechat run` of the same spec on this machine."""
    meta = {"name": name}
    run = {"apiVersion": "fusechat.io/v1alpha1", "kind": "FusionRun", "metadata": meta, "spec": spec}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    command = [sys.executable, "-m", "fusechat.cli", "run", str(path), "--store", store, "--threads", "1"]
    done = subprocess.run(
        [*command, "--home", str(folder / "home")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def computed(node, spec):
    """A run that the cluster computed: (its object, its plan)."""
    found = succeeded(node, "small", apply(node, "small", spec))
    pins = memory.read(found["status"]).pins
    return found, plan(load(found), pins)


def test_a_run_is_computed_in_containers_and_tells_its_scores(computed, node):
    found, made = computed
    status = found["status"]
    # test_pods has computed the first of them in the same session, on the same store.
    assert {line["state"] for line in status["steps"]} <= {"Succeeded", "Cached"}
    assert len(status["scores"]) == len([s for s in made.steps if s.stage == "evaluate"])
    assert status["model"].endswith(str(made.step("merge").address))
    report = Store(node.store.uri).manifest(status["report"].removeprefix(f"{node.store.uri}/"))
    assert "report.html" in {entry.name for entry in report.files}
    namespace = found["metadata"]["namespace"]
    kinds = {c["kind"] for c in node.children("small", namespace)}
    assert kinds == {"Job", "PyTorchJob"}
    enforced = node.get("namespace", namespace)["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforced == "restricted"


def test_a_laptop_makes_the_same_addresses_and_the_same_bytes(computed, node, spec, tmp_path):
    _, made = computed
    on_a_laptop(spec, LAPTOP, tmp_path)
    here, there = Store(LAPTOP), node.store
    for step in made.steps:
        ours, theirs = here.manifest(str(step.address)), there.manifest(str(step.address))
        assert ours, f"{step.name} has another address on a laptop"
        assert {f.name: f.sha256 for f in ours.files} == {f.name: f.sha256 for f in theirs.files}, step.name


def test_what_a_laptop_computed_is_cached_on_the_cluster(computed, node, spec, tmp_path, record_property):
    changed = {**spec, "merge": {"method": "linear"}}
    on_a_laptop(changed, node.store.uri, tmp_path, "linear")
    begun = time.monotonic()
    namespace = apply(node, "linear", changed)
    found = succeeded(node, "linear", namespace)
    seconds = time.monotonic() - begun
    assert {line["state"] for line in found["status"]["steps"]} == {"Cached"}
    steps = {c["metadata"]["labels"][naming.STEP] for c in node.children("linear", namespace)}
    assert steps == {"resolve", "report"}
    record_property("seconds", round(seconds, 1))
    print(f"cached on the cluster: {seconds:.1f} s")


@pytest.mark.parametrize("launcher", ["PyTorchJob", "Job"])
def test_two_pods_train_one_target_together(computed, node, spec, launcher):
    seed = {"PyTorchJob": 101, "Job": 102}[launcher]
    two = {**spec, "controls": [], "launcher": launcher, "sources": spec["sources"][:1]}
    two["fuse"] = {**spec["fuse"], "nodes": 2, "seed": seed}
    two["evaluate"] = {**spec["evaluate"], "subjects": ["Fused"]}
    name = f"two-{launcher.lower()}"
    namespace = apply(node, name, two)
    found = succeeded(node, name, namespace)
    (child,) = [c for c in node.children(name, namespace) if c["metadata"]["labels"][naming.STAGE] == "fuse"]
    assert child["kind"] == launcher
    pods = node.pods(namespace, f"{naming.CHILD}={child['metadata']['name']}")
    assert len(pods) == 2
    assert {pod["status"]["phase"] for pod in pods} == {"Succeeded"}
    made = plan(load(found), memory.read(found["status"]).pins)
    fused = next(step for step in made.steps if step.stage == "fuse")
    manifest = node.store.manifest(str(fused.address))
    assert not manifest.deterministic, "sums over two machines add in an order that nobody fixes"
    services = node.kubectl("get", "services", "-n", namespace, "-o", "name").split()
    assert len(services) >= 1


def test_the_operator_asked_for_nothing_that_it_may_not(computed, node):
    log = node.kubectl("logs", "-n", "fusechat-system", "deploy/fusechat", "--tail=-1")
    assert "leading as" in log
    assert "forbidden" not in log.lower()
    assert "a fault of ours" not in log
