"""A TrainJob on a real node: Trainer and JobSet start two Pods of our image, which train one target by gloo.

Run by `make test-trainjob`; what test_end_to_end.py does for the other two launchers.
"""

from __future__ import annotations

import pytest
from fusechat.plan import plan
from fusechat.spec import load
from fusechat_operator import memory, naming

from tests.cluster import bench, installed
from tests.cluster.node import running_node
from tests.cluster.test_end_to_end import RESOURCES, apply, succeeded

pytestmark = pytest.mark.trainjob


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A node with Trainer and JobSet and no training operator, and the operator by its chart."""
    with running_node(tmp_path_factory.mktemp("trainer-node"), "trainer") as found:
        installed.install(found)
        yield found


def test_two_pods_of_a_trainjob_train_one_target_together(node, tmp_path):
    spec = {**bench.put_tiny(node, tmp_path), "resources": RESOURCES, "controls": []}
    two = {**spec, "sources": spec["sources"][:1], "fuse": {**spec["fuse"], "nodes": 2}}
    two["evaluate"] = {**spec["evaluate"], "subjects": ["Fused"]}
    namespace = node.namespace()
    apply(node, "two", namespace, two)
    found = succeeded(node, "two", namespace)
    assert found["status"]["launcher"] == "TrainJob (Auto: the first that is installed)"
    (child,) = node.children("two", namespace, ("trainjob",))
    pods = node.listed("pod", namespace, f"{naming.CHILD}={child['metadata']['name']}")
    assert len(pods) == 2
    assert {pod["status"]["phase"] for pod in pods} == {"Succeeded"}
    made = plan(load(found), memory.read(found["status"]).pins)
    (fused,) = [step for step in made.steps if step.stage == "fuse"]
    manifest = node.store.manifest(str(fused.address))
    assert node.store.verify(manifest) == []
    assert not manifest.deterministic, "sums over two machines add in an order that nobody fixes"
    assert not [line for line in found["status"]["steps"] if line.get("tries")]
