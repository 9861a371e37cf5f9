"""A run with a store of its own, on another S3 with other keys: all lies there, nothing in the default one.

Stages are played on fake nodes; probes run their real code with the Pod's environment.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fusechat.plan import plan
from fusechat.s3server import LocalS3
from fusechat.spec import load
from fusechat.store import Store
from fusechat_operator import naming

from tests.cluster.plane import Plane
from tests.cluster.probing import store_of
from tests.cluster.stagehand import a_run


@dataclass
class Team:
    """A team's own store."""

    plane: Plane
    s3: LocalS3
    store: Store

    def storage(self, secret: str = "team-keys") -> dict:
        return {"uri": self.store.uri, "endpoint": self.s3.endpoint, "secretRef": {"name": secret}}

    def secret(self, namespace: str, **keys: str) -> None:
        """The team's way in, in a namespace of its own."""
        told = self.s3.environment()
        data = {name: told[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")} | keys
        meta = {"name": "team-keys", "namespace": namespace}
        self.plane.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data})


@pytest.fixture(scope="module")
def team(plane, tmp_path_factory) -> Iterator[Team]:
    with LocalS3(tmp_path_factory.mktemp("team-s3")) as s3:
        told = s3.environment()
        yield Team(plane, s3, store_of("s3://fuse/team", told))


def addresses(run: dict) -> list[str]:
    return [str(step.address) for step in plan(load(run)).steps]


def there(store: Store, run: dict) -> int:
    return sum(store.manifest(address) is not None for address in addresses(run))


def steps(plane: Plane, namespace: str) -> Counter[str]:
    return Counter(each.step for each in plane.hand.played if each.namespace == namespace)


def test_a_run_in_its_own_store_leaves_nothing_in_the_default_one(plane, operator, namespace, team):
    team.secret(namespace)
    run = a_run("own", sources=1, namespace=namespace, storage=team.storage())
    plane.apply(run)
    status = plane.until("own", namespace=namespace, seconds=150)
    assert {line["state"] for line in status["steps"]} == {"Succeeded"}
    assert set(steps(plane, namespace).values()) == {1}
    assert there(team.store, run) == len(addresses(run))
    assert there(plane.store, run) == 0
    assert status["model"].startswith("s3://fuse/team/merge/")
    uid = plane.get("fusionrun", "own", namespace)["metadata"]["uid"]
    assert team.store.get_json(f"runs/{uid}.json")["run"] == "own"
    assert team.store.get_json(f"refs/plane/{uid}.json")["addresses"]
    assert plane.store.get_json(f"runs/{uid}.json") is None
    assert [
        c for c in plane.children("own", namespace) if c["metadata"]["labels"][naming.STEP] == "probe"
    ] == []

    other = plane.namespace()
    team.secret(other)
    plane.apply(a_run("own", sources=1, namespace=other, storage=team.storage()))
    status = plane.until("own", namespace=other, seconds=90)
    assert {line["state"] for line in status["steps"]} == {"Cached"}
    assert set(steps(plane, other)) == {"report"}


def test_wrong_keys_are_said_and_it_goes_on_when_they_are_mended(plane, operator, namespace, team):
    team.secret(namespace, AWS_SECRET_ACCESS_KEY="not-this-one")
    plane.apply(a_run("wrong", sources=1, namespace=namespace, storage=team.storage()))

    def said() -> str:
        return plane.condition("wrong", "Ready", namespace).get("message", "")

    plane.wait("the sentence", lambda: "Secret team-keys" in said(), 60, said)
    assert "403" in said()
    assert steps(plane, namespace) == {}
    team.secret(namespace)
    plane.wait("the first step", lambda: steps(plane, namespace), 60, said)


def test_an_operator_that_is_killed_over_and_over_makes_one_child_a_step(plane, start, namespace, team):
    team.secret(namespace)
    plane.apply(a_run("killed", sources=1, namespace=namespace, storage=team.storage()))
    for round_ in range(3):
        operator = start(f"op-{round_}")
        before = len(plane.hand.probed)
        plane.wait(
            "a probe",
            lambda before=before: (
                len(plane.hand.probed) > before
                or plane.condition("killed", "Succeeded", namespace).get("status") == "True"
            ),
            60,
        )
        operator.kill()
    start("op-last")
    status = plane.until("killed", namespace=namespace, seconds=180)
    assert {line["state"] for line in status["steps"]} == {"Succeeded"}
    assert set(steps(plane, namespace).values()) == {1}, json.dumps(steps(plane, namespace))


def test_a_run_with_a_store_that_does_not_answer_holds_up_nobody_else(plane, operator, namespace):
    away = {"uri": "s3://fuse/x", "endpoint": "http://127.0.0.1:9", "secretRef": {"name": "none"}}
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    meta = {"name": "none", "namespace": namespace}
    plane.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": keys})
    plane.apply(a_run("away", namespace=namespace, storage=away), a_run("fine", namespace=namespace))
    plane.until("fine", namespace=namespace)
    plane.wait(
        "the sentence",
        lambda: "cannot be reached" in plane.condition("away", "Ready", namespace).get("message", ""),
        60,
        lambda: plane.status("away", namespace),
    )
    assert os.environ["AWS_ENDPOINT_URL_S3"] == plane.s3.endpoint, "the default store is as it was"
