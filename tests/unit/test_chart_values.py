"""The values of the chart: each reaches settings.py, a wrong one is refused in words, the page lists all."""

from __future__ import annotations

import re
from textwrap import dedent

import pytest
import yaml
from fusechat.spec import STAGES
from fusechat_operator import settings as operator_settings
from fusechat_operator.settings import DefaultStore, Settings

from tests.conftest import CHECKOUT
from tests.helm import CHART, NAMESPACE, Refused, environment, operator_pod, render
from tests.unit.chart_values import EVERYTHING, default_values, flat

# what the operator is told


def test_the_operator_reads_what_the_values_say():
    assert operator_settings.read(environment(render(EVERYTHING))) == Settings(
        namespace=NAMESPACE,
        identity="fusechat-1",
        image="registry.example.com/fc/stages:1.2",
        images={"fuse": "registry.example.com/fc/fuse:9"},
        image_pull_secrets=("pull", "other"),
        image_pull_policy="Always",
        pod_annotations={"sidecar.istio.io/inject": "false"},
        namespaces=("team-a", "team-b"),
        cluster="west",
        store=DefaultStore("s3://fuse/west", "https://s3.example.com", "eu-central-1", "store", "stage"),
        scratch_requests=False,
        run_as=1000,
        workers=8,
        store_threads=9,
        api_qps=12.5,
        api_burst=100000,
        poll_seconds=11,
        queue_seconds=12,
        lease_seconds=7,
        health_port=8081,
        metrics_port=9091,
    )


def test_the_charts_defaults_are_the_operators_own():
    told = operator_settings.read(environment(render()))
    assert told == Settings(NAMESPACE, "fusechat-1", "localhost/fusechat-stages:0.1.0")


def test_every_variable_of_settings_is_set_or_has_a_default_that_stands_for_the_empty_value():
    source = (CHECKOUT / "operator/fusechat_operator/settings.py").read_text()
    read = set(re.findall(r'"(FUSECHAT_[A-Z_]+)"', source))
    everything = {name for name in environment(render(EVERYTHING)) if name.startswith("FUSECHAT_")}
    assert everything == read
    assert read - set(environment(render())) == {
        "FUSECHAT_IMAGES",
        "FUSECHAT_IMAGE_PULL_SECRETS",
        "FUSECHAT_POD_ANNOTATIONS",
        "FUSECHAT_STORE",
        "FUSECHAT_STORE_ENDPOINT",
        "FUSECHAT_STORE_REGION",
        "FUSECHAT_STORE_SECRET",
        "FUSECHAT_STORE_SERVICE_ACCOUNT",
        "FUSECHAT_WATCH_NAMESPACES",
    }


def test_the_operators_own_credentials_come_from_a_secret_of_its_namespace():
    variables = operator_pod(render(EVERYTHING))["containers"][0]["env"]
    secrets = [v for v in variables if "secretKeyRef" in v.get("valueFrom", {})]
    assert {v["name"]: v["valueFrom"]["secretKeyRef"] for v in secrets} == {
        "AWS_ACCESS_KEY_ID": {"name": "store-operator", "key": "AWS_ACCESS_KEY_ID"},
        "AWS_SECRET_ACCESS_KEY": {"name": "store-operator", "key": "AWS_SECRET_ACCESS_KEY"},
        "AWS_SESSION_TOKEN": {"name": "store-operator", "key": "AWS_SESSION_TOKEN", "optional": True},
    }
    assert not [v for v in operator_pod(render())["containers"][0]["env"] if v["name"].startswith("AWS_")]


# wrong values

WRONG = [
    ({"replicas": "two"}, "replicas", "integer"),
    ({"replica": 2}, "replica", "not allowed"),
    ({"store": {"url": "s3://fuse"}}, "store", "url", "not allowed"),
    ({"store": {"uri": "https://fuse"}}, "store.uri", "does not match"),
    ({"store": {"endpoint": "s3.example.com"}}, "store.endpoint", "does not match"),
    ({"watchNamespaces": ["Team_A"]}, "watchNamespaces.0", "does not match"),
    ({"watchNamespaces": "team-a"}, "watchNamespaces", "array"),
    ({"image": {"digest": "abc"}}, "image.digest", "does not match"),
    ({"image": {"pullPolicy": "Sometimes"}}, "image.pullPolicy", "IfNotPresent", "Always", "Never"),
    ({"stages": {"images": {"train": "x"}}}, "stages.images", "train", "not allowed"),
    ({"stages": {"runAs": 0}}, "stages.runAs", "1"),
    ({"tuning": {"leaseSeconds": 1}}, "tuning.leaseSeconds", "5"),
    ({"ports": {"health": 80}}, "ports.health", "1024"),
    ({"ports": {"health": 9090}}, "ports.health and ports.metrics are the same"),
    ({"metrics": {"service": False, "serviceMonitor": {"enabled": True}}}, "needs metrics.service"),
    ({"extraEnv": [{"name": "FUSECHAT_STORE", "value": "x"}]}, "FUSECHAT_STORE is the chart's own variable"),
]


@pytest.mark.parametrize(("values", "words"), [(v, w) for v, *w in WRONG], ids=[w[1] for w in WRONG])
def test_a_wrong_value_is_refused_in_words(values, words):
    with pytest.raises(Refused) as refused:
        render(values)
    # helm 4 says "at '/ports/health': minimum: got 80, want 1,024", helm 3 the same in its own words
    said = str(refused.value).replace("/", ".").replace(",", "").lower()
    assert [word for word in words if word.lower() not in said] == []


def test_the_schema_has_every_value_and_the_values_every_field_of_the_schema():
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())

    def fields(node, path=""):
        node = schema["definitions"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        for key, inner in node.get("properties", {}).items():
            found = list(fields(inner, f"{path}{key}."))
            yield from found or [f"{path}{key}"]
        if "properties" in node:
            assert node["additionalProperties"] is False, path

    free = ("stages.images", "resources.requests", "resources.limits")
    said = {next((f for f in free if p.startswith(f"{f}.")), p) for p, _ in flat(default_values())}
    written = {next((f for f in free if p.startswith(f"{f}.")), p) for p in fields(schema)}
    assert written - {"global"} == said


def test_images_by_stage_are_those_of_the_stages_there_are():
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    assert set(schema["properties"]["stages"]["properties"]["images"]["properties"]) == set(STAGES)


def shown(value):
    """A default as the page has it; what is empty is shown as nothing."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "" if value in ("", [], {}) else f"`{text}`"


def test_the_page_about_installing_lists_every_value_with_its_default():
    page = (CHECKOUT / "docs" / "install.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Za-z.]+)` \| (.*?) \|", page, re.M))
    shown = {path: "" if value in ("", [], {}) else f"`{value}`" for path, value in flat(default_values())}
    shown |= {
        path: f"`{str(value).lower()}`" for path, value in flat(default_values()) if isinstance(value, bool)
    }
    assert rows == shown


def test_the_manifests_for_argo_cd_and_flux_have_values_that_the_chart_takes():
    page = (CHECKOUT / "docs" / "install.md").read_text()
    blocks = [b for b in re.findall(r"(?:^    .*\n|^\n)+", page, re.M) if "apiVersion:" in b]
    objects = {o["kind"]: o["spec"] for block in blocks for o in yaml.safe_load_all(dedent(block))}
    told = {
        "Argo CD": objects["Application"]["source"]["helm"]["valuesObject"],
        "Flux": objects["HelmRelease"]["values"],
    }
    for values in told.values():
        read = operator_settings.read(environment(render(values)))
        assert read.image == "registry.example.com/team/fusechat-stages:0.1.0"
        assert read.store == DefaultStore("s3://fusechat/west", secret="fusechat-store")
