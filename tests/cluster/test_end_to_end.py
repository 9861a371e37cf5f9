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
from tests.conftest import CHECKOUT

pytestmark = pytest.mark.timeout(1200)  # the first test waits for the node, its images and trained models
TINY = CHECKOUT / "examples" / "tiny"
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
def example(node):
    """examples/tiny.yaml for two CPUs and no GPU, its models (trained here, if need be) and data on S3."""
    subprocess.run([sys.executable, str(TINY / "make_tiny.py")], check=True)
    there = f"{node.origins}/example"
    installed.put_folder(TINY / "build", there)
    return installed.on_cluster(TINY.with_suffix(".yaml"), "file://./tiny/build", there)["spec"]


@pytest.fixture(scope="module")
def small(node, tmp_path_factory):
    """A run of models that learned nothing, its origins on S3."""
    return {**bench.put_tiny(node, tmp_path_factory.mktemp("tiny")), "resources": RESOURCES}


def apply(node, name, namespace, spec):
    meta = {"name": name, "namespace": namespace}
    node.apply({"apiVersion": "fusechat.io/v1alpha1", "kind": "FusionRun", "metadata": meta, "spec": spec})


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
def computed(node, example, tmp_path_factory):
    """A run that the cluster computed: (its object, its plan, the lines of `kubectl get fusionruns -w`)."""
    namespace, watched = node.namespace(), tmp_path_factory.mktemp("watch") / "lines"
    with node.watching(namespace, watched):
        apply(node, "tiny", namespace, example)
        found = succeeded(node, "tiny", namespace)
        node.wait("the watch saw it", lambda: " True " in watched.read_text(), 30)
    pins = memory.read(found["status"]).pins
    return found, plan(load(found), pins), watched.read_text().splitlines()


def test_the_example_is_computed_in_containers_while_one_watches(computed, node):
    found, made, lines = computed
    status = found["status"]
    assert {line["state"] for line in status["steps"]} == {"Succeeded"}
    namespace = found["metadata"]["namespace"]
    assert {child["kind"] for child in node.children("tiny", namespace)} == {"Job", "PyTorchJob"}
    enforced = node.get("namespace", namespace)["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforced == "restricted"
    assert lines[0].split() == ["NAME", "READY", "STAGE", "PROGRESS", "CACHED", "SCORE", "AGE"]
    print("\n".join(lines))
    stages = {step.stage for step in made.steps}
    assert len({stage for stage in stages if any(f" {stage}" in line for line in lines)}) > 5
    assert lines[-1].split()[:3] == ["tiny", "True", f"{len(made.steps)}/{len(made.steps)}"]


def test_its_scores_are_those_of_the_artifacts_and_the_fused_model_is_the_best(computed, node):
    found, made, _ = computed
    status = found["status"]
    said = {score["subject"]: score["score"] for score in status["scores"]}
    evaluations = [step for step in made.steps if step.stage == "evaluate"]
    measured = [node.store.manifest(str(step.address)).metrics["score"] for step in evaluations]
    assert len(said) == len(evaluations) == 7
    assert sorted(said.values()) == sorted(round(score, 4) for score in measured)
    assert said["Fused"] == max(said.values())
    assert status["score"] == f"{said['Fused']:.3f}"
    assert status["model"].endswith(str(made.step("merge").address))
    report = Store(node.store.uri).manifest(status["report"].removeprefix(f"{node.store.uri}/"))
    assert "report.html" in {entry.name for entry in report.files}


def test_a_laptop_makes_the_same_addresses_and_the_same_bytes(computed, node, example, tmp_path):
    _, made, _ = computed
    on_a_laptop(example, LAPTOP, tmp_path)
    here, there = Store(LAPTOP), node.store
    for step in made.steps:
        ours, theirs = here.manifest(str(step.address)), there.manifest(str(step.address))
        assert ours, f"{step.name} has another address on a laptop"
        assert {f.name: f.sha256 for f in ours.files} == {f.name: f.sha256 for f in theirs.files}, step.name


def test_what_a_laptop_computed_is_cached_on_the_cluster(computed, node, example, tmp_path, record_property):
    changed = {**example, "merge": {"method": "linear"}}
    on_a_laptop(changed, node.store.uri, tmp_path, "linear")
    begun = time.monotonic()
    namespace = node.namespace()
    apply(node, "linear", namespace, changed)
    found = succeeded(node, "linear", namespace)
    seconds = time.monotonic() - begun
    assert {line["state"] for line in found["status"]["steps"]} == {"Cached"}
    steps = {c["metadata"]["labels"][naming.STEP] for c in node.children("linear", namespace)}
    assert steps == {"resolve", "report"}
    record_property("seconds", round(seconds, 1))
    print(f"cached on the cluster: {seconds:.1f} s")


@pytest.mark.parametrize("launcher", ["PyTorchJob", "Job"])
def test_two_pods_train_one_target_together(node, small, launcher):
    seed = {"PyTorchJob": 101, "Job": 102}[launcher]
    two = {**small, "controls": [], "launcher": launcher, "sources": small["sources"][:1]}
    two["fuse"] = {**small["fuse"], "nodes": 2, "seed": seed}
    two["evaluate"] = {**small["evaluate"], "subjects": ["Fused"]}
    name = f"two-{launcher.lower()}"
    namespace = node.namespace()
    apply(node, name, namespace, two)
    found = succeeded(node, name, namespace)
    (child,) = [c for c in node.children(name, namespace) if c["metadata"]["labels"][naming.STAGE] == "fuse"]
    assert child["kind"] == launcher
    pods = node.listed("pod", namespace, f"{naming.CHILD}={child['metadata']['name']}")
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
