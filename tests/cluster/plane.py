"""The control plane under test: a real Kubernetes with fake nodes, a real S3, the operator as a process.

Used by the fixtures of conftest. With KUBECONFIG set the cluster is yours and has kwok's fake nodes; else
../shared/kube starts one; without either the tests skip with a reason, and fail where CI=true.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from fusechat.s3server import LocalS3
from fusechat.store import Store
from fusechat_operator import naming
from kubernetes import client, config

from tests.cluster.stagehand import Stagehand
from tests.conftest import CHECKOUT, find_shared

BUCKET_PREFIX = "s3://fuse/plane"

POLLED = {
    "deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "fusionrun": "/apis/fusechat.io/v1alpha1/namespaces/{}/fusionruns",
    "job": "/apis/batch/v1/namespaces/{}/jobs",
    "namespace": "/api/v1/namespaces",
    "pod": "/api/v1/namespaces/{}/pods",
    "pytorchjob": "/apis/kubeflow.org/v1/namespaces/{}/pytorchjobs",
    "service": "/api/v1/namespaces/{}/services",
    "trainjob": "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{}/trainjobs",
}
"""Kinds that tests ask for ten times a second: by one connection, for a kubectl each takes a core."""


def missing(why: str) -> None:
    """Skip with the reason; where CI=true that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@dataclass
class Plane:
    """A cluster with all that the operator needs."""

    kubeconfig: str
    s3: LocalS3
    store: Store
    hand: Stagehand
    folder: Path
    namespaces: int = 0
    extra: dict[str, str] = field(default_factory=dict)

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        """kubectl's output; CalledProcessError with its words where it fails."""
        done = subprocess.run(
            ["kubectl", "--kubeconfig", self.kubeconfig, *words], input=stdin, capture_output=True, text=True
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(words)}: {done.stderr or done.stdout}")
        return done.stdout if done.returncode == 0 else done.stderr

    def apply(self, *objects: dict[str, Any]) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(listed))

    @cached_property
    def _api(self) -> client.ApiClient:
        return config.new_client_from_config(self.kubeconfig)

    def _asked(self, path: str, selector: str = "") -> dict[str, Any] | None:
        """GET; None for 404, AssertionError for any other refusal."""
        request = self._api.param_serialize(
            "GET",
            path,
            query_params=[("labelSelector", selector)] if selector else [],
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        answer = self._api.call_api(*request)
        said = answer.read()
        assert answer.status in (200, 404), f"GET {path}: {answer.status} {said.decode()}"
        return json.loads(said) if answer.status == 200 else None

    def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any] | None:
        """An object as the API server has it now; None where there is none."""
        if kind in POLLED:
            return self._asked(f"{POLLED[kind].format(namespace)}/{name}")
        found = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(found) if found.strip() else None

    def listed(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """Objects of a kind of `POLLED`, each with its kind, which a built-in one's list leaves out."""
        found = self._asked(POLLED[kind].format(namespace), selector)
        assert found, f"the API server does not know {kind}"
        return [{"kind": found["kind"].removesuffix("List"), **each} for each in found["items"]]

    def children(
        self, run: str, namespace: str = "default", kinds: Sequence[str] = ("job", "pytorchjob")
    ) -> list[dict[str, Any]]:
        return [each for kind in kinds for each in self.listed(kind, namespace, f"{naming.RUN}={run}")]

    def status(self, run: str, namespace: str = "default") -> dict[str, Any]:
        found = self.get("fusionrun", run, namespace)
        assert found, f"there is no run {run}"
        return found.get("status", {})

    def condition(self, run: str, kind: str, namespace: str = "default") -> dict[str, Any]:
        listed = self.status(run, namespace).get("conditions", ())
        return next((c for c in listed if c["type"] == kind), {})

    def wait(
        self,
        what: str,
        ready: Callable[[], Any],
        seconds: float = 60.0,
        about: Callable[[], Any] | None = None,
    ) -> Any:
        """What `ready` returns once it is true; a failure that says what was waited for."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := ready():
                return found
            time.sleep(0.1)
        raise AssertionError(f"{what}: not within {seconds:.0f} s; {about() if about else ''}")

    def established(self, crd: str) -> None:
        """Wait for a CRD; of one without any condition yet, kubectl's own wait makes an error."""
        asked = ("wait", "--for=condition=Established", f"crd/{crd}")
        self.wait("the CRD", lambda: "condition met" in self.kubectl(*asked, check=False))

    def until(
        self, run: str, condition: str = "Succeeded", seconds: float = 90.0, namespace: str = "default"
    ) -> dict[str, Any]:
        """Wait for a condition to be True; the status."""
        self.wait(
            f"{run} {condition}",
            lambda: self.condition(run, condition, namespace).get("status") == "True",
            seconds,
            lambda: json.dumps(self.status(run, namespace).get("conditions"), indent=1),
        )
        return self.status(run, namespace)

    def step(self, run: str, name: str, namespace: str = "default") -> dict[str, Any]:
        lines = self.status(run, namespace).get("steps", ())
        return next((line for line in lines if line["name"] == name), {})

    @contextmanager
    def store_away(self) -> Iterator[None]:
        """The S3 server does not answer inside of this."""
        os.kill(self.s3.pid, signal.SIGKILL)
        try:
            yield
        finally:
            self.s3.ensure()

    @contextmanager
    def watching(self, namespace: str, path: Path) -> Iterator[None]:
        """`kubectl get fusionruns -w`, as people watch; what it prints goes to the file at `path`."""
        words = ["kubectl", "--kubeconfig", self.kubeconfig, "get", "fusionruns", "-w", "-n", namespace]
        with path.open("wb") as log:
            process = subprocess.Popen(words, stdout=log)
            try:
                yield
            finally:
                process.kill()
                process.wait()

    def namespace(self) -> str:
        """A fresh namespace."""
        self.namespaces += 1
        name = f"test-{os.getpid()}-{self.namespaces}"
        self.kubectl("create", "namespace", name)
        return name


def cluster_script() -> Path:
    """../shared/kube/cluster.py, or a skip."""
    shared = find_shared()
    script = (shared or Path()) / "kube" / "cluster.py"
    if shared is None or not script.exists():
        missing("no cluster: neither KUBECONFIG nor ../shared/kube")
    return script


def cluster_run(*words: str) -> None:
    """Run cluster.py, one at a time (clusters share binaries and certificates); its words where it fails."""
    with (Path(tempfile.gettempdir()) / "fusechat-cluster.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _cluster_run(*words)


def _cluster_run(*words: str) -> None:
    done = subprocess.run([sys.executable, str(cluster_script()), *words], capture_output=True, text=True)
    assert done.returncode == 0, f"cluster.py {' '.join(words)}: {done.stderr}{done.stdout}"


@contextmanager
def running_plane(
    folder: Path, extra: str, fake_nodes: int = 3, s3_folder: Path | None = None
) -> Iterator[Plane]:
    """A cluster, an S3 and a stagehand; all gone at the end."""
    given, kube = os.environ.get("KUBECONFIG"), str(folder / "kube")
    if not given:
        cluster_run("up", kube, "--with", extra, "--fake-nodes", str(fake_nodes))
    try:
        kubeconfig = given or f"{kube}/admin.kubeconfig"
        with LocalS3(s3_folder or folder / "s3") as s3, pytest.MonkeyPatch.context() as patch:
            for name, value in s3.environment().items():
                patch.setenv(name, value)
            store = Store(BUCKET_PREFIX)
            with Stagehand(kubeconfig, store) as hand:
                plane = Plane(kubeconfig, s3, store, hand, folder)
                plane.kubectl("apply", "-f", str(CHECKOUT / "crds"))
                plane.established("fusionruns.fusechat.io")
                yield plane
    finally:
        if not given:
            cluster_run("down", kube)


@dataclass
class Operator:
    """One replica as a process of its own."""

    plane: Plane
    process: subprocess.Popen[bytes]
    log: Path
    health: int
    metrics: int

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def start_operator(plane: Plane, name: str = "op", **environment: str) -> Operator:
    """Start a replica; it leads as soon as it has the Lease."""
    from tests.cluster.ports import free_ports

    health, metrics = free_ports(2)
    if not plane.get("namespace", "fusechat-system"):
        plane.kubectl("create", "namespace", "fusechat-system")
    told = {
        **os.environ,
        **plane.s3.environment(),
        "KUBECONFIG": plane.kubeconfig,
        "FUSECHAT_NAMESPACE": "fusechat-system",
        "FUSECHAT_IDENTITY": name,
        "FUSECHAT_IMAGE": "localhost/stages:test",
        "FUSECHAT_STORE": BUCKET_PREFIX,
        "FUSECHAT_STORE_ENDPOINT": plane.s3.endpoint,
        "FUSECHAT_CLUSTER": "plane",
        "FUSECHAT_HEALTH_PORT": str(health),
        "FUSECHAT_METRICS_PORT": str(metrics),
        "FUSECHAT_LEASE_SECONDS": "7",
        "FUSECHAT_POLL_SECONDS": "5",
        "FUSECHAT_QUEUE_SECONDS": "4",
        "FUSECHAT_SCRATCH_REQUESTS": "false",  # a fake node has no disk to ask for
        "FUSECHAT_POD_ANNOTATIONS": '{"fusechat.io/seconds": "1h"}',  # until the stagehand says how long
        **plane.extra,
        **environment,
    }
    log = (
        plane.folder / f"{name}-{health}-{time.monotonic_ns()}.log"
    )  # what an earlier one said is not its own
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "fusechat_operator"], env=told, stdout=file, stderr=file
        )
    return Operator(plane, process, log, health, metrics)
