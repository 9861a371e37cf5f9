"""What the Helm chart renders: valid objects, a restricted Pod, the rights that the code needs and no more.

Needs helm (tests/helm.py), no cluster.
"""

from __future__ import annotations

import re
import subprocess

import kubernetes_validate
import pytest
import yaml
from fusechat import crd
from fusechat_operator import lease
from fusechat_operator.health import Heartbeat

from tests import rights
from tests.conftest import CHECKOUT
from tests.helm import CHART, NAMESPACE, helm, of_kind, operator_pod, render
from tests.unit.chart_values import EVERYTHING, LITTLE, SETS

OLDEST, NEWEST = "1.31", "1.37"
"""Kubernetes: the chart's kubeVersion, and the newest whose schemas kubernetes-validate has."""

DIGEST = f"sha256:{'b' * 64}"


# what it renders


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", SETS)
def test_every_object_is_valid(name, version):
    objects = render(SETS[name], "--include-crds")
    checked = [o for o in objects if o["kind"] != "ServiceMonitor"]
    assert len(checked) >= 5
    for each in checked:
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("name", SETS)
def test_names_are_unique_and_every_namespaced_object_says_where_it_lies(name):
    objects = render(SETS[name])
    keys = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(set(keys)) == len(keys)
    everywhere = {"ClusterRole", "ClusterRoleBinding"}
    assert all((kind in everywhere) == (namespace is None) for kind, namespace, _ in keys)


def test_lint_finds_nothing():
    done = subprocess.run([helm(), "lint", "--strict", str(CHART)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_little_leaves_out_what_it_switches_off():
    kinds = {o["kind"] for o in render(LITTLE)}
    assert kinds == {"Deployment", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}


def test_the_pod_is_restricted_and_writes_nowhere_but_in_tmp():
    pod = operator_pod(render())
    container = pod["containers"][0]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    assert container["command"] == ["python", "-m", "fusechat_operator"]


def test_probes_and_metrics_go_to_the_ports_that_the_operator_is_told():
    objects = render(EVERYTHING)
    container = operator_pod(objects)["containers"][0]
    assert {p["name"]: p["containerPort"] for p in container["ports"]} == {"health": 8081, "metrics": 9091}
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: get["path"] for kind, get in probes.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {get["port"] for get in probes.values()} == {"health"}
    (service,), (monitor,) = of_kind(objects, "Service"), of_kind(objects, "ServiceMonitor")
    assert service["spec"]["ports"][0]["targetPort"] == "metrics"
    assert monitor["spec"]["endpoints"] == [{"port": "metrics", "interval": "30s"}]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


@pytest.mark.parametrize("count", [1, 2])
def test_replicas_share_a_lease_under_names_of_their_own(count):
    objects = render({"replicas": count})
    (deployment,), (budget,) = of_kind(objects, "Deployment"), of_kind(objects, "PodDisruptionBudget")
    assert deployment["spec"]["replicas"] == count
    told = {e["name"]: e.get("valueFrom") for e in operator_pod(objects)["containers"][0]["env"]}
    assert told["FUSECHAT_IDENTITY"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert told["FUSECHAT_NAMESPACE"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}
    rules = [rule for role in of_kind(objects, "Role") for rule in role["rules"]]
    verbs = {verb for rule in rules if "leases" in rule["resources"] for verb in rule["verbs"]}
    assert verbs == {"create", "get", "update"}
    assert budget["spec"]["maxUnavailable"] == 1, "a drain takes one after the other, the only one too"


def test_all_that_selects_pods_selects_the_operators():
    objects = render(EVERYTHING)
    (deployment,) = of_kind(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"][0]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        of_kind(objects, "PodDisruptionBudget")[0]["spec"]["selector"]["matchLabels"],
        of_kind(objects, "Service")[0]["spec"]["selector"],
        spread["labelSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    assert labels["team"] == "fusion"


@pytest.mark.parametrize(
    ("image", "want"),
    [
        ({}, "localhost/fusechat-operator:0.1.0"),
        ({"repository": "r.example.com/op", "tag": "7"}, "r.example.com/op:7"),
        (
            {"repository": "r:5000/op", "tag": "7", "digest": f"sha256:{'b' * 64}"},
            f"r:5000/op@sha256:{'b' * 64}",
        ),
    ],
)
def test_an_image_is_the_project_version_unless_a_tag_or_digest_says_more(image, want):
    assert operator_pod(render({"image": image}))["containers"][0]["image"] == want


def test_the_chart_and_the_images_have_the_projects_version():
    project = re.search(r'^version = "(.+)"$', (CHECKOUT / "pyproject.toml").read_text(), re.M)[1]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (project, project)


def test_the_crd_of_the_chart_is_the_generated_one():
    kept = (CHECKOUT / "crds" / crd.FILE_NAME).read_text()
    assert (CHART / "crds" / crd.FILE_NAME).read_text() == kept == crd.crd_yaml(), "run `make generate`"


# what the operator may do


def test_the_table_of_rights_is_what_the_code_asks_for():
    assert set(rights.CALLS) == rights.questions(), "a question of Cluster is new or gone: tests/rights.py"
    assert rights.asked_for_runs() == rights.WHERE_RUNS_ARE
    assert rights.asked_for_itself() == rights.FOR_ITSELF


def test_a_watch_of_all_namespaces_has_one_cluster_role_and_a_role_for_itself():
    objects = render()
    (role,), (binding,) = of_kind(objects, "ClusterRole", "fusechat"), of_kind(objects, "ClusterRoleBinding")
    assert rights.of_rules(role["rules"]) == rights.WHERE_RUNS_ARE
    assert binding["roleRef"]["name"] == "fusechat"
    (own,) = of_kind(objects, "Role")
    assert (own["metadata"]["namespace"], rights.of_rules(own["rules"])) == (NAMESPACE, rights.FOR_ITSELF)


@pytest.mark.parametrize("watched", [["team-a", "team-b"], ["team-a", NAMESPACE]])
def test_watched_namespaces_have_a_role_each_and_nothing_is_granted_cluster_wide(watched):
    objects = render({"watchNamespaces": watched, "rbac": {"aggregate": False}})
    assert not of_kind(objects, "ClusterRole") + of_kind(objects, "ClusterRoleBinding")
    roles = {o["metadata"]["namespace"]: o for o in of_kind(objects, "Role", "fusechat")}
    assert set(roles) == {*watched, NAMESPACE}
    assert all(rights.of_rules(role["rules"]) == rights.WHERE_RUNS_ARE for role in roles.values())
    assert len(of_kind(objects, "Role")) == len(roles) + 1


@pytest.mark.parametrize("name", SETS)
def test_every_binding_binds_a_role_that_is_there_to_the_operators_account(name):
    objects = render(SETS[name])
    account = {
        "kind": "ServiceAccount",
        "name": operator_pod(objects)["serviceAccountName"],
        "namespace": NAMESPACE,
    }
    there = {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects}
    bindings = of_kind(objects, "RoleBinding") + of_kind(objects, "ClusterRoleBinding")
    assert len(bindings) >= 2
    for binding in bindings:
        role = binding["roleRef"]
        assert (role["kind"], binding["metadata"].get("namespace"), role["name"]) in there
        assert binding["subjects"] == [account]


def test_names_in_rules_are_those_of_the_code():
    named = {what.partition(":")[2] for _, what in rights.FOR_ITSELF} - {""}
    assert named == {lease.NAME, Heartbeat(None, rights.SETTINGS).name}


def test_people_get_fusion_runs_with_the_clusters_own_roles():
    objects = render()
    roles = {name: of_kind(objects, "ClusterRole", f"fusechat-{name}")[0] for name in ("view", "edit")}
    for name, role in roles.items():
        aggregated = [k for k in role["metadata"]["labels"] if k.startswith("rbac.authorization")]
        assert aggregated == [f"rbac.authorization.k8s.io/aggregate-to-{name}"]
        assert role["rules"][0]["apiGroups"] == ["fusechat.io"]
    assert roles["view"]["rules"][0]["verbs"] == ["get", "list", "watch"]
    assert {"create", "delete", "patch"} <= set(roles["edit"]["rules"][0]["verbs"])
    assert roles["edit"]["rules"][0]["resources"] == ["fusionruns"]  # its status is the operator's
