"""The real node under test: kubelet and containerd that run our own images, and a real S3 for its Pods.

`running_node` is the fixture `node` of tests/cluster/conftest.py, and what the demo stands on. Without
KUBECONFIG it brings up ../shared/kube in a network namespace (root, Debian, the packages of
tests/cluster/install.sh; the images are built from this checkout) and forwards TCP: Pods find this machine's
S3 at 198.18.0.1:8333, and kubectl on this machine finds the API server at a port of 127.0.0.1. What is
missing is a skip; where CI=true, a failure. With KUBECONFIG the cluster is yours, and these say the rest:

    FUSECHAT_TEST_IMAGE_STAGES, FUSECHAT_TEST_IMAGE_OPERATOR   images that its nodes can pull
    FUSECHAT_TEST_STORE      s3://bucket/prefix; the bucket exists
    FUSECHAT_TEST_ENDPOINT   its endpoint as Pods reach it; default AWS_ENDPOINT_URL_S3, as this machine does
    FUSECHAT_TEST_SCRATCH_REQUESTS   false where its nodes count no disk (default true)
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY   copied into a Secret of every test's namespace
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fusechat.s3server import LocalS3
from fusechat.store import Store

from tests.cluster import images
from tests.cluster.plane import Plane, cluster_run, missing
from tests.conftest import CHECKOUT

HERE = Path(__file__).resolve().parent
S3_ADDRESS = "198.18.0.1:8333"
API_ADDRESS = "198.18.0.1:6443"
SECRET = "store"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass
class Node(Plane):
    """A cluster whose Pods are real. `endpoint` is the S3 as Pods reach it; `seconds`: what each part took.

    `scratch_requests`: whether its nodes count disk; the kubelet of ../shared/kube does not.
    """

    images: Mapping[str, str] = field(default_factory=dict)
    endpoint: str = ""
    netns: str | None = None
    scratch_requests: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    @property
    def origins(self) -> str:
        """Where the models and data of runs lie: beside the artifacts, so that one bucket does."""
        return f"{self.store.uri.rstrip('/')}/origins"

    def namespace(self) -> str:
        """A fresh namespace under Pod Security `restricted`, with the store's Secret."""
        name = super().namespace()
        self.made.append(name)
        self.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        self.give_secret(name)
        return name

    def give_secret(self, namespace: str) -> None:
        """The store's credentials, as the Secret `store` of a namespace."""
        data = {key: os.environ[key] for key in KEYS}
        meta = {"name": SECRET, "namespace": namespace}
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data})


@contextmanager
def running_node(
    folder: Path, extra: str = "training-operator", s3_folder: Path | None = None
) -> Iterator[Node]:
    """A node with the images on it and the CRD; all of it is gone at the end, whatever happened."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}"
    given = os.environ.get("KUBECONFIG")
    with _given_node(folder, given) if given else _own_node(folder, extra, s3_folder) as node:
        node.kubectl("apply", "-f", str(CHECKOUT / "crds"))
        node.established("fusionruns.fusechat.io")
        yield node


@contextmanager
def _given_node(folder: Path, kubeconfig: str) -> Iterator[Node]:
    names = [f"FUSECHAT_TEST_{name}" for name in ("STORE", "IMAGE_STAGES", "IMAGE_OPERATOR")]
    if unset := [name for name in (*names, *KEYS) if not os.environ.get(name)]:
        missing(f"KUBECONFIG is set, and {', '.join(unset)} not (see tests/cluster/node.py)")
    store, stages, operator = (os.environ[name] for name in names)
    found = {"stages": stages, "operator": operator}
    endpoint = os.environ.get("FUSECHAT_TEST_ENDPOINT") or os.environ.get("AWS_ENDPOINT_URL_S3", "")
    node = Node(kubeconfig, None, Store(store), None, folder, images=found, endpoint=endpoint)  # type: ignore[arg-type]
    node.scratch_requests = os.environ.get("FUSECHAT_TEST_SCRATCH_REQUESTS", "true") == "true"
    try:
        yield node
    finally:
        for name in node.made:
            node.kubectl("delete", "namespace", name, "--wait=false", check=False)


@contextmanager
def _own_node(folder: Path, extra: str, s3_folder: Path | None) -> Iterator[Node]:
    _check_machine()
    kube, seconds, started = folder / "kube", {}, time.monotonic()
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        building = pool.submit(images.archives)
        stack.callback(_down, kube)  # before it is up: half a cluster has processes too
        cluster_run("up", str(kube), "--node", "--with", extra)
        seconds["up"] = time.monotonic() - started
        archives = building.result()
        seconds["images"], started = time.monotonic() - started, time.monotonic()
        cluster_run("load", str(kube), *map(str, archives))
        seconds["load"] = time.monotonic() - started
        s3 = stack.enter_context(LocalS3(s3_folder or folder / "s3"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in s3.environment().items():
            patch.setenv(name, value)
        netns = json.loads((kube / "state.json").read_text())["netns"]
        port = stack.enter_context(_forwarding(folder, netns, s3.endpoint.removeprefix("http://")))
        store = Store("s3://fuse/node")
        node = Node(_kubeconfig(kube, port), s3, store, None, folder)  # type: ignore[arg-type]
        node.images, node.endpoint, node.netns = dict(images.NAMES), f"http://{S3_ADDRESS}", netns
        node.seconds, node.scratch_requests = seconds, False
        yield node


def _check_machine() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        missing("a real node needs root on Linux; name a cluster of yours in KUBECONFIG")
    checked = subprocess.run(["sh", str(HERE / "install.sh"), "--check"], capture_output=True, text=True)
    if checked.returncode:
        missing(f"a real node: {checked.stderr.strip()}; run tests/cluster/install.sh")


def _down(kube: Path) -> None:
    if (kube / "state.json").exists():
        left = _pod_networks(kube)
        cluster_run("down", str(kube))
        for name in left:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    shutil.rmtree(kube, ignore_errors=True)


def _pod_networks(kube: Path) -> list[str]:
    """The network namespaces of Pods that still run, which nobody removes once their kubelet is gone."""
    netns = json.loads((kube / "state.json").read_text()).get("netns", "")
    links = subprocess.run(["ip", "-n", netns, "-o", "link"], capture_output=True, text=True).stdout
    return re.findall(r"link-netns (cni-[0-9a-f-]+)", links)


@contextmanager
def _forwarding(folder: Path, netns: str, s3: str) -> Iterator[int]:
    """The forwarder, for as long as the block lasts; the port of the API server on this machine."""
    pairs = ["IN", f"{S3_ADDRESS}={s3}", "OUT", f"127.0.0.1:0={API_ADDRESS}"]
    with (folder / "forward.log").open("wb") as log:
        command = [sys.executable, str(HERE / "forward.py"), netns, *pairs]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line, f"the forwarder did not start: {(folder / 'forward.log').read_text()}"
        yield int(json.loads(line)[1])
    finally:
        process.kill()
        process.communicate()


def _kubeconfig(kube: Path, port: int) -> str:
    """The admin's kubeconfig for use outside of the cluster's network namespace."""
    config = json.loads((kube / "admin.kubeconfig").read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    path = kube / "outside.kubeconfig"
    path.write_text(json.dumps(config))
    return str(path)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A real node and a real S3, for all tests of the session."""
    s3 = tmp_path_factory.getbasetemp() / "s3"  # plane's too: there is one environment for both
    with running_node(tmp_path_factory.mktemp("node"), "training-operator,kueue", s3) as found:
        yield found
