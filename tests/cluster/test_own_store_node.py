"""On a real node: a run whose store is another bucket, by a Secret that is not there at first."""

from __future__ import annotations

import pytest
from fusechat.plan import plan
from fusechat.spec import load
from fusechat.store import Store
from fusechat_operator import memory

from tests.cluster import bench, installed
from tests.cluster.test_end_to_end import RESOURCES, apply, succeeded


@pytest.fixture(scope="module")
def node(node):
    """The node with the operator on it, installed by the chart."""
    installed.install(node)
    yield node
    print(node.kubectl("logs", "-n", "fusechat-system", "deploy/fusechat", "--tail=50", check=False))


@pytest.fixture(scope="module")
def spec(node, tmp_path_factory):
    """The tiny run with one source, its origins on S3 where they are readable with the same keys."""
    made = {**bench.put_tiny(node, tmp_path_factory.mktemp("tiny")), "resources": RESOURCES}
    return {**made, "sources": made["sources"][:1]}


def test_a_run_waits_for_its_secret_says_so_and_goes_to_its_end_in_its_own_bucket(node, spec):
    node.store.client.create_bucket(Bucket="team")
    own, there = Store("s3://team/fusions"), {found.key for found in node.store.keys("")}
    storage = {"uri": own.uri, "secretRef": {"name": "team-keys"}}
    namespace = node.namespace()
    apply(node, "own", namespace, {**spec, "storage": storage})

    def said() -> str:
        return node.condition("own", "Ready", namespace).get("message", "")

    node.wait("the sentence", lambda: 'secret "team-keys" not found' in said(), 90, said)
    data = node.get("secret", "store", namespace)["data"]
    meta = {"name": "team-keys", "namespace": namespace}
    node.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": data})
    found = succeeded(node, "own", namespace)
    made = plan(load(found), memory.read(found["status"]).pins)
    addresses = [str(step.address) for step in made.steps]
    assert [a for a in addresses if own.manifest(a) is None] == []
    assert {found.key for found in node.store.keys("")} == there
    assert found["status"]["scores"]
    assert found["status"]["report"].startswith("s3://team/fusions/report/")
