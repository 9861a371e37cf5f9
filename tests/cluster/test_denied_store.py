"""The default store does not let the operator in: it is said, nothing is lost, and the run goes on.

As on a real cluster the operator has an identity of its own on the S3 server, and its stages, which are
played, have another: that one keeps its rights.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from fusechat.plan import plan
from fusechat.spec import load
from fusechat.weed import PORTS, find_weed

from tests.cluster.stagehand import Act, a_run
from tests.cluster.test_lifecycle import played, wait_for_child

KEYS = {"AWS_ACCESS_KEY_ID": "operators", "AWS_SECRET_ACCESS_KEY": "operators-secret"}


@pytest.fixture
def may(plane) -> Callable[[bool], None]:
    """Gives the operator's identity all rights in the store, or takes them away."""
    first = int(plane.s3.endpoint.rpartition(":")[2])
    at = {name: first + place for place, name in enumerate(PORTS)}
    flags = [f"-{name}=127.0.0.1:{at[name]}.{at[name + '.grpc']}" for name in ("master", "filer")]
    keys = f"-access_key {KEYS['AWS_ACCESS_KEY_ID']} -secret_key {KEYS['AWS_SECRET_ACCESS_KEY']}"

    def set_rights(given: bool) -> None:
        which = keys if given else "-delete"  # with its keys it would be unknown, and not denied
        told = f"s3.configure -user operator {which} -buckets fuse -actions Read,Write,List -apply"
        done = subprocess.run(
            [str(find_weed()), "shell", *flags],
            input=f"{told}\nexit\n",
            cwd=plane.folder,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert ("Read:fuse" in done.stdout) == given, done.stdout + done.stderr

    set_rights(True)
    return set_rights


def denied(plane, run, namespace) -> str:
    """Ready's sentence, once it says what the store answered."""
    message = lambda: plane.condition(run, "Ready", namespace).get("message", "")  # noqa: E731
    return plane.wait("it says so", lambda: message() if "403" in message() else "", 60, message)


def test_an_operator_without_rights_says_so_and_begins_when_it_has_them(plane, start, namespace, may):
    may(False)
    operator = start(**KEYS)
    plane.apply(a_run("denied", sources=1, namespace=namespace))
    said = denied(plane, "denied", namespace)
    assert "answered 403 AccessDenied while " in said
    assert f"{plane.store.uri}: check the credentials (AWS_ACCESS_KEY_ID, " in said
    assert plane.condition("denied", "Ready", namespace)["reason"] == "StoreUnavailable"
    assert plane.condition("denied", "Reconciling", namespace)["status"] == "True"
    assert plane.condition("denied", "Stalled", namespace) == {}, "it goes on by itself"
    assert not plane.children("denied", namespace)
    may(True)
    plane.until("denied", namespace=namespace)
    assert operator.process.poll() is None


def test_rights_that_are_taken_away_in_the_middle_lose_nothing(plane, start, namespace, may):
    start(**KEYS)
    plane.hand.script["extract-s0"] = [Act(seconds=5)]
    run = a_run("expelled", sources=1, namespace=namespace)
    plane.apply(run)
    child = wait_for_child(plane, "expelled", "extract-s0", namespace)["metadata"]["name"]
    plane.wait("it extracts", lambda: "extract-s0" in played(plane, namespace))
    may(False)
    said = denied(plane, "expelled", namespace)
    where = str(plan(load(run)).step("extract-s0").address)
    assert "the store: " in said
    assert "answered 403 AccessDenied while reading " in said
    plane.wait("its stage publishes", lambda: plane.store.manifest(where))
    assert plane.condition("expelled", "Stalled", namespace) == {}
    assert plane.get("job", child, namespace)
    may(True)
    status = plane.until("expelled", namespace=namespace)
    assert sorted(played(plane, namespace)) == sorted(set(played(plane, namespace))), "each step ran once"
    assert not [line for line in status["steps"] if line.get("tries")]
