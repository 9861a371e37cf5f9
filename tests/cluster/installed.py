"""The operator as people have it: in its image, by the chart, under its own ServiceAccount, on the real node.

Used by the end-to-end tests and the demo. `install` is what docs tell people to do, for the node's store and
images; the rest puts what a run names on S3 and gives the run its namespace.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml
from fusechat.store import Store

from tests.cluster.node import SECRET, Node
from tests.helm import CHART, NAMESPACE, helm

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def install(node: Node, **values: Any) -> None:
    """`helm upgrade --install`, and wait until a replica leads or stands by; values go over the defaults."""
    restricted_namespace(node, NAMESPACE)
    node.give_secret(NAMESPACE)
    told = yaml.safe_dump({**defaults(node), **values})
    command = [helm(), "upgrade", "--install", "fusechat", str(CHART), "--namespace", NAMESPACE]
    command += ["--kubeconfig", node.kubeconfig, "--values", "-", "--wait", "--timeout", "120s"]
    done = subprocess.run(command, input=told, capture_output=True, text=True)
    if done.returncode:
        pods = node.kubectl("describe", "pods", "-n", NAMESPACE, check=False)[-3000:]
        raise AssertionError(f"helm: {done.stderr}{done.stdout}\n{pods}")


def defaults(node: Node) -> dict[str, Any]:
    """Values for the node: its images, its store, and quicker looks than a cluster of many needs."""
    store = {"uri": node.store.uri, "endpoint": node.endpoint, "region": "us-east-1"}
    return {
        "replicas": 1,
        "image": _image(node.images["operator"]),
        "stages": {"image": _image(node.images["stages"]), "scratchRequests": node.scratch_requests},
        "store": {**store, "operatorSecret": SECRET, "secret": SECRET},
        "tuning": {"pollSeconds": 5},
    }


def _image(name: str) -> dict[str, str]:
    repository, _, tag = name.rpartition(":")
    return {"repository": repository, "tag": tag}


def restricted_namespace(node: Node, name: str) -> None:
    """A namespace that admits no Pod but restricted ones."""
    node.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}})


def put_folder(folder: Path, uri: str) -> None:
    """Every file below a folder, to S3."""
    target = Store(uri)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        target.put_bytes(path.relative_to(folder).as_posix(), path.read_bytes())


def on_cluster(path: Path, was: str, now: str, **spec: Any) -> dict[str, Any]:
    """A FusionRun's file for one node with two CPUs and no GPU: its origins at `now` in place of `was`."""
    run = yaml.safe_load(path.read_text().replace(was, now))
    two_at_a_time = {"gpus": 0, "cpu": "900m"}
    resources = dict.fromkeys(("extract", "align", "fuse", "merge", "evaluate"), two_at_a_time)
    run["spec"] = {**run["spec"], "resources": resources, **spec}
    return dict(run)
