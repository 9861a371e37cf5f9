"""The chart on a real API server: what it grants, that twice is as once, an operator that has no more.

The operator runs as a process with a token of the chart's ServiceAccount and the chart's environment, so that
a right that is missing shows as a run that does not end. Kubeflow Trainer is real and there is no training
operator: the run goes through a TrainJob.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fusechat_operator import naming, pods

from tests import rights
from tests.cluster.plane import BUCKET_PREFIX, Operator, Plane, missing, running_plane, start_operator
from tests.cluster.ports import free_ports
from tests.cluster.stagehand import a_run
from tests.helm import CHART, Object, environment, helm, render

WIDE, NARROW, WATCHED, ELSEWHERE = (f"fusechat-{n}" for n in ("wide", "narrow", "watched", "elsewhere"))
BY_HELM = "fusechat-by-helm"
MODES = {WIDE: {}, NARROW: {"watchNamespaces": [WATCHED], "rbac": {"aggregate": False}}}
"""Two installations: one watches all namespaces, one only WATCHED and its own."""


def has_trainer(plane: Plane) -> bool:
    return bool(plane.kubectl("api-resources", "--api-group=trainer.kubeflow.org", "--no-headers"))


def values(mode: str) -> Object:
    health, metrics = free_ports(2)
    store = {"uri": BUCKET_PREFIX, "endpoint": os.environ["AWS_ENDPOINT_URL_S3"]}
    return {
        **MODES[mode],
        "fullnameOverride": mode,
        "store": store,
        "stages": {"scratchRequests": False},
        "tuning": {"pollSeconds": 5, "queueSeconds": 4, "leaseSeconds": 7},
        "ports": {"health": health, "metrics": metrics},
    }


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A cluster of its own, or that of KUBECONFIG, which is left as it was but for the CRD."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}"  # kubectl
    with running_plane(tmp_path_factory.mktemp("chart"), "trainer", fake_nodes=1) as made:
        yield made


@pytest.fixture(scope="module")
def installed(plane: Plane) -> Iterator[dict[str, list[Object]]]:
    """Both installations, by `helm template | kubectl apply`; what was applied."""
    told = {mode: values(mode) for mode in MODES}
    made = {mode: render(told[mode], "--include-crds", namespace=mode) for mode in MODES}
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    for name in (WIDE, NARROW, WATCHED, ELSEWHERE):
        plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": enforced}})
    for objects in made.values():
        plane.apply(*objects)
    yield made
    if os.environ.get("KUBECONFIG"):
        kinds = ("ClusterRole", "ClusterRoleBinding")
        listed = [o for objects in made.values() for o in objects if o["kind"] in kinds]
        plane.kubectl(
            "delete", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": listed})
        )
        plane.kubectl(
            "delete", "namespace", *(WIDE, NARROW, WATCHED, ELSEWHERE, BY_HELM), "--ignore-not-found"
        )


def granted(plane: Plane, account: str, namespace: str) -> rights.Rights:
    """What a ServiceAccount (namespace:name) may do in a namespace, by the API server's own account."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    ask = ["create", "-f", "-", "-o", "json", "--validate=false", f"--as=system:serviceaccount:{account}"]
    told = json.loads(plane.kubectl(*ask, stdin=json.dumps(review)))
    return rights.of_rules(told["status"]["resourceRules"])


def more_than_anybody(plane: Plane, mode: str, namespace: str) -> rights.Rights:
    anybody = granted(plane, f"{ELSEWHERE}:nobody", namespace)
    mine = granted(plane, f"{mode}:{mode}", namespace)
    return {key: verbs for key, verbs in mine.items() if anybody.get(key) != verbs}


def test_applying_it_twice_changes_nothing(plane, installed):
    for objects in installed.values():
        listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        assert plane.kubectl("diff", "-f", "-", stdin=listed) == ""


def both() -> rights.Rights:
    found = dict(rights.WHERE_RUNS_ARE)
    for key, verbs in rights.FOR_ITSELF.items():
        found[key] = found.get(key, frozenset()) | verbs
    return found


@pytest.mark.parametrize(
    ("mode", "namespace", "want"),
    [
        (WIDE, ELSEWHERE, rights.WHERE_RUNS_ARE),
        (WIDE, WIDE, both()),
        (NARROW, WATCHED, rights.WHERE_RUNS_ARE),
        (NARROW, NARROW, both()),
        (NARROW, ELSEWHERE, {}),
        (NARROW, "kube-system", {}),
    ],
)
def test_the_api_server_grants_exactly_the_table(plane, installed, mode, namespace, want):
    assert more_than_anybody(plane, mode, namespace) == want


CAN = """
    list   fusionruns.fusechat.io *
    watch  jobs.batch *
    update fusionruns.fusechat.io runs status
    create jobs.batch runs
    create services runs
    list   pods runs
    patch  events runs
    update leases.coordination.k8s.io/fusechat-operator own
    patch  jobs.batch/fusechat-heartbeat own
"""
CANNOT = """
    get    secrets runs
    list   secrets *
    get    secrets own
    get    configmaps runs
    create pods runs
    create pods runs exec
    get    pods runs log
    delete pods runs
    update fusionruns.fusechat.io runs
    patch  fusionruns.fusechat.io runs
    delete fusionruns.fusechat.io runs
    delete services runs
    update jobs.batch runs
    deletecollection jobs.batch runs
    create serviceaccounts runs token
    update leases.coordination.k8s.io/fusechat-operator runs
    update leases.coordination.k8s.io/another own
    get    nodes -
    list   namespaces -
    create clusterrolebindings -
    get    customresourcedefinitions -
    impersonate users -
"""


def can_i(plane: Plane, user: str, row: str) -> str:
    """kubectl's answer to a row of verb, resource, namespace (* all, - none) and subresource."""
    verb, resource, namespace, *sub = row.split()
    known = {"*": ["--all-namespaces"], "-": [], "own": ["-n", WIDE]}
    where = known.get(namespace, ["-n", ELSEWHERE])
    words = [verb, resource, *where, *[f"--subresource={s}" for s in sub], f"--as={user}"]
    command = ["kubectl", f"--kubeconfig={plane.kubeconfig}", "auth", "can-i", *words]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(("table", "want"), [(CAN, "yes"), (CANNOT, "no")], ids=["can", "cannot"])
def test_kubectl_auth_can_i_says_the_same(plane, installed, table, want):
    user = f"system:serviceaccount:{WIDE}:{WIDE}"
    rows = table.strip().splitlines()
    assert {row: can_i(plane, user, row) for row in rows} == dict.fromkeys(rows, want)


def test_people_with_the_clusters_edit_may_make_runs_and_those_with_view_may_read_them(plane, installed):
    for role in ("view", "edit"):
        words = (role, f"--clusterrole={role}", f"--user={role}", "-n", ELSEWHERE)
        plane.kubectl("create", "rolebinding", *words)
    want = {"view list": "yes", "view create": "no", "edit create": "yes", "edit delete": "yes"}

    def said() -> dict[str, str]:
        return {
            asked: can_i(plane, asked.split()[0], f"{asked.split()[1]} fusionruns runs") for asked in want
        }

    plane.wait("the aggregated roles", lambda: said() == want, 20, said)


# an operator with these rights


def as_installed(plane: Plane, mode: str, objects: list[Object]) -> Operator:
    """A replica as the chart has it, with a token of its ServiceAccount; a process in place of a Pod."""
    told = json.loads(plane.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    told["users"][0]["user"] = {"token": plane.kubectl("create", "token", mode, "-n", mode).strip()}
    path = plane.folder / f"{mode}.kubeconfig"
    path.write_text(json.dumps(told))
    return start_operator(plane, mode, **environment(objects, mode), KUBECONFIG=str(path))


@pytest.fixture
def operator(plane: Plane, installed: dict[str, list[Object]], request: Any) -> Iterator[Operator]:
    made = as_installed(plane, request.param, installed[request.param])
    yield made
    if made.process.poll() is None:
        made.stop()


def pods_of(plane: Plane, namespace: str, step: str) -> list[Object]:
    return plane.listed("pod", namespace, f"{naming.STEP}={step}")


@pytest.mark.parametrize("operator", [WIDE], indirect=True)
def test_an_operator_of_all_namespaces_carries_a_run_to_its_end_through_a_trainjob(plane, operator):
    if not has_trainer(plane):
        missing("the cluster has no Kubeflow Trainer")
    plane.apply(a_run("wide", 1, ELSEWHERE, pinned=False, launcher="TrainJob"))
    status = plane.until("wide", namespace=ELSEWHERE)
    assert {line["state"] for line in status["steps"]} == {"Succeeded"}
    assert len(plane.children("wide", ELSEWHERE, ("trainjob",))) == 1
    (pod,) = pods_of(plane, ELSEWHERE, "fuse-s0")
    spec = pod["spec"]
    assert (spec["restartPolicy"], spec["automountServiceAccountToken"]) == ("Never", False)
    assert [(c["name"], c["command"]) for c in spec["containers"]] == [("node", pods.COMMAND)]
    assert spec["containers"][0]["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    events = plane.kubectl("get", "events", "-n", ELSEWHERE, "--field-selector=involvedObject.kind=FusionRun")
    assert "Succeeded" in events
    assert operator.stop() == 0
    assert "orbidden" not in operator.log.read_text()


@pytest.mark.parametrize("operator", [NARROW], indirect=True)
def test_an_operator_of_one_namespace_sees_no_other_and_misses_no_right(plane, operator):
    plane.apply(*(a_run("narrow", 1, where, launcher="Job") for where in (ELSEWHERE, WATCHED)))
    plane.wait("a child", lambda: plane.children("narrow", WATCHED, ("job",)), 30, operator.log.read_text)
    plane.wait("its status", lambda: plane.status("narrow", WATCHED).get("steps"), 10)
    assert plane.status("narrow", ELSEWHERE) == {"observedGeneration": -1}
    assert operator.stop() == 0
    assert "orbidden" not in operator.log.read_text()


# the rest of it


def test_its_pods_are_admitted_where_restricted_is_enforced(plane, installed):
    def status() -> Object:
        return dict(plane.get("deployment", WIDE, WIDE)["status"])

    def made() -> bool:
        return bool(plane.listed("pod", WIDE))

    plane.wait("Pods of the Deployment", made, 30, status)
    assert [c for c in status()["conditions"] if "Failure" in c["type"]] == []


def test_helm_installs_upgrades_and_uninstalls_it_and_leaves_the_runs(plane, installed):
    def run(*words: str) -> str:
        command = [helm(), f"--kubeconfig={plane.kubeconfig}", f"--namespace={BY_HELM}", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def there() -> list[str]:
        kinds = "deployments,roles,rolebindings,serviceaccounts,services,poddisruptionbudgets"
        found = plane.kubectl("get", kinds, "-n", BY_HELM, "-l", "helm.sh/chart", "-o", "name")
        return found.split()

    told = ("fusechat", str(CHART), "--set=rbac.aggregate=false", f"--set=watchNamespaces={{{BY_HELM}}}")
    assert "kubectl apply -n NAMESPACE -f fusionrun.yaml" in run("install", *told, "--create-namespace")
    assert len(there()) == 8
    plane.apply(a_run("kept", namespace=BY_HELM, suspend=True))
    generation = plane.get("deployment", "fusechat", BY_HELM)["metadata"]["generation"]
    run("upgrade", *told)
    assert plane.get("deployment", "fusechat", BY_HELM)["metadata"]["generation"] == generation
    run("uninstall", "fusechat")
    assert plane.get("fusionrun", "kept", BY_HELM)
    assert there() == []
