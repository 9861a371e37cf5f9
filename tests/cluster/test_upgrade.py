"""Today's CRD over one of before, on a real API server: runs stay, with their status, and can be changed.

Under a group of its own, so that no operator and no other test sees it. The CRD of before is made of today's:
without its rules and bounds, and without some of its fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fusechat import crd

from tests.cluster.plane import Plane
from tests.cluster.sizes import LONGEST_NAME, the_status
from tests.cluster.stagehand import a_run

Object = dict[str, Any]
GROUP = "upgrade.fusechat.io"
RUNS = f"fusionruns.{GROUP}"
LOOSE = ("x-kubernetes-validations", "maxLength", "maxItems", "maxProperties", "pattern", "minLength")
UNKNOWN_THEN = {"spec": ("gates", "profile"), "status": ("packed",)}


def today() -> Object:
    made = crd.crd()
    made["metadata"]["name"] = RUNS
    made["spec"]["group"] = GROUP
    del made["spec"]["names"]["shortNames"]
    return made


def before() -> Object:
    made = json.loads(json.dumps(today()))
    (version,) = made["spec"]["versions"]
    for field in ("selectableFields", "additionalPrinterColumns"):
        del version[field]
    schema = version["schema"]["openAPIV3Schema"] = loosened(version["schema"]["openAPIV3Schema"])
    for part, fields in UNKNOWN_THEN.items():
        for field in fields:
            schema["properties"][part]["properties"].pop(field, None)
    schema["properties"]["status"].pop("default")
    return made


def loosened(node: Any) -> Any:
    if isinstance(node, list):
        return [loosened(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {key: loosened(value) for key, value in node.items() if key not in LOOSE}


def run(name: str, namespace: str, **spec: Any) -> Object:
    return {**a_run(name, namespace=namespace, **spec), "apiVersion": f"{GROUP}/{crd.VERSION}"}


@pytest.fixture
def apply(plane: Plane) -> Iterator[Callable[..., None]]:
    """Applies a CRD of that group with these flags; it is gone at the end."""

    def one(made: Object, *flags: str) -> None:
        plane.kubectl("apply", *flags, "-f", "-", stdin=json.dumps(made))
        plane.established(RUNS)

    yield one
    plane.kubectl("delete", "crd", RUNS, "--ignore-not-found")


def tell(plane: Plane, name: str, namespace: str, status: Object) -> None:
    words = ("patch", RUNS, name, "-n", namespace, "--subresource=status", "--type=merge", "-p")
    plane.kubectl(*words, json.dumps({"status": status}))


WAYS = {
    "kubectl apply": ([], []),
    "server-side, after kubectl apply": ([], ["--server-side", "--force-conflicts"]),
    "server-side, after helm": (
        ["--server-side", "--field-manager=helm"],
        ["--server-side", "--force-conflicts"],
    ),
    "kubectl apply, after helm": (["--server-side", "--field-manager=helm"], []),
}


@pytest.fixture(scope="module")
def packed() -> Object:
    return the_status(50, done=False, name=LONGEST_NAME)


@pytest.mark.parametrize("way", WAYS)
def test_runs_of_before_stay_and_can_be_changed(plane, apply, namespace, packed, way):
    first, then = WAYS[way]
    apply(before(), *first)
    runs = [run(name, namespace) for name in ("fresh", "ended", "long")]
    runs[2]["spec"]["sources"][0]["name"] = "n" * (LONGEST_NAME + 1)
    plane.apply(*runs)
    told = the_status(2, done=True)
    tell(plane, "ended", namespace, told)
    old = plane.get(RUNS, "ended", namespace)
    assert old["status"] == told

    apply(today(), *then)
    plane.wait("today's rules", lambda: plane.get(RUNS, "ended", namespace)["spec"].get("profile"), 20)

    new = plane.get(RUNS, "ended", namespace)
    assert new["status"] == told, "what it had computed is known"
    assert new["metadata"]["generation"] == old["metadata"]["generation"], "no operator thinks it was edited"
    for each in runs:
        each["spec"]["suspend"] = True
    plane.apply(*runs)
    plane.kubectl("annotate", RUNS, "--all", "-n", namespace, "fusechat.io/retry-at=now")
    tell(plane, "long", namespace, packed)
    assert plane.get(RUNS, "long", namespace)["status"] == packed
    longer = {**runs[2], "metadata": {"name": "longer", "namespace": namespace}}
    refused = plane.kubectl("apply", "-f", "-", stdin=json.dumps(longer), check=False)
    assert "spec.sources[0].name: Too long" in refused, "what is new is held to today's rules"
