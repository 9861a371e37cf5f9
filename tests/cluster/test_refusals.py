"""Bad manifests on a real API server: refused at apply, or Stalled with a sentence; nothing is made."""

from __future__ import annotations

import re
import time

import pytest
from fusechat_operator import naming

from tests.cluster.stagehand import Act, a_run
from tests.cluster.test_lifecycle import annotate_retry, patch, played, wait_for_child
from tests.cluster.test_queue import Pods, said
from tests.unit.spec_cases import BAD, broken

REFUSED = [case for case in BAD if not case.python_only]
SERVERS_OWN = {
    "no pivot": 'unknown field "spec.pivto"',
    "duplicate source": "two sources have the same name: give each its own",
    "long name": "spec.sources[0].name: Too long",
    "another kind": 'no matches for kind "Fusion"',
    "another version": 'no matches for kind "FusionRun" in version "fusechat.io/v1"',
}
"""What the API server says where Python names another field, or none."""

WORDS = re.compile(
    r"unknown field|expected |Required value|in body (should|must) |supported values|must have at most|"
    r"lowercase RFC 1123"
)
"""What is wrong with the field, in words that say what it should be."""


def field_of(says: str) -> str:
    found = re.search(r"(?:spec|metadata)\.[\w.\[\]]*\w\]?", says)
    return found[0] if found else ""


@pytest.mark.parametrize("case", REFUSED, ids=[case.what for case in REFUSED])
def test_the_api_server_refuses_it_in_words_that_name_the_field(plane, case):
    told = plane.kubectl("create", "-f", "-", stdin=broken(case), check=False)
    assert "created" not in told
    if case.rule:
        assert case.says in told, "a rule of ours, word for word"
    elif case.what in SERVERS_OWN:
        assert SERVERS_OWN[case.what] in told
    else:
        assert field_of(case.says) in told
        assert WORDS.search(told), told
    assert plane.get("fusionrun", "tiny") is None


def test_at_least_twenty_manifests_are_refused():
    assert len(REFUSED) + len(STALLED) > 20


# what only a cluster can tell


def nowhere(run):
    run["spec"]["sources"][0] = {"name": "s0", "uri": "file:///models/s0"}


def another_store(run):
    run["spec"]["storage"] = {"uri": "s3://elsewhere/x", "endpoint": "https://s3.elsewhere.example"}


def no_trainer(run):
    run["spec"]["launcher"] = "TrainJob"


def no_kueue(run):
    run["spec"]["scheduling"] = {"queueName": "team"}


STALLED = {
    "files of a laptop": (nowhere, {}, "InvalidSpec", ["s0", "file:// of your machine", "copy it to s3://"]),
    "no store": (lambda run: None, {"FUSECHAT_STORE": ""}, "InvalidSpec", ["no default store", "chart"]),
    "another store": (another_store, {}, "InvalidSpec", ["s3://elsewhere/x", "set spec.storage.secretRef"]),
    "a launcher that is not there": (
        no_trainer,
        {},
        "LauncherMissing",
        ["TrainJob is not installed", "there is PyTorchJob, Job", "spec.launcher to Auto"],
    ),
    "a queue without Kueue": (
        no_kueue,
        {},
        "QueueDidNotAdmit",
        ["queue team", "Kueue is not installed", "remove scheduling.queueName"],
    ),
}


@pytest.mark.parametrize("what", STALLED)
def test_a_run_that_this_cluster_cannot_run_is_stalled_and_nothing_runs(plane, start, namespace, what):
    spoil, environment, reason, words = STALLED[what]
    if what == "a launcher that is not there" and plane.kubectl(
        "api-resources", "--api-group=trainer.kubeflow.org", "-o", "name"
    ):
        pytest.skip("this cluster has Kubeflow Trainer")
    # A recipe of its own: the operator of the next test may be able to run it, and publishes what it makes.
    name = what.replace(" ", "-").lower()
    start(**environment)
    pods, run = Pods(plane, namespace), a_run(name, namespace=namespace)
    spoil(run)
    plane.apply(run)
    plane.until(name, "Stalled", namespace=namespace)
    stalled = plane.condition(name, "Stalled", namespace)
    assert stalled["reason"] == reason
    assert [word for word in words if word not in stalled["message"]] == []
    assert stalled["message"] == said(plane, name, namespace)
    assert plane.condition(name, "Succeeded", namespace)["status"] == "False"
    kinds = ("job", "pytorchjob", "service")
    plane.wait("no child is left", lambda: not plane.children(name, namespace, kinds))
    assert not pods.end().seen
    uid = plane.get("fusionrun", name, namespace)["metadata"]["uid"]
    record = plane.store.get_json(f"runs/{uid}.json") or {"steps": []}
    assert not [step for step in record["steps"] if step["attempts"] or step["state"] == "Succeeded"]


def test_without_kueue_a_child_that_somebody_lets_run_is_stopped(plane, operator, namespace):
    """A queue is asked for and nobody keeps it: the children are suspended; one is let go by hand."""
    plane.apply(a_run("escaped", 1, namespace, scheduling={"queueName": "team"}))
    child = wait_for_child(plane, "escaped", "fetch-s0", namespace)
    assert child["spec"]["suspend"] is True, "from the beginning"
    name = child["metadata"]["name"]
    plane.hand.script["fetch-s0"] = [Act(seconds=300)]
    plane.kubectl("patch", "job", name, "-n", namespace, "--type=merge", "-p", '{"spec": {"suspend": false}}')
    plane.until("escaped", "Stalled", namespace=namespace)
    plane.wait("no child is left", lambda: not plane.children("escaped", namespace))


def test_a_launcher_that_is_installed_after_all_needs_no_word(plane, operator, namespace):
    """Stalled by what the cluster lacks, mended by the spec: the same run goes on."""
    plane.apply(a_run("mended", 1, namespace, launcher="TrainJob"))
    plane.until("mended", "Stalled", namespace=namespace)
    patch(plane, "mended", namespace, {"launcher": "Auto"})
    status = plane.until("mended", namespace=namespace)
    assert status["launcher"].startswith("PyTorchJob")


# Pods that nobody makes


MISSING = {
    "a priority class": ({"scheduling": {"priorityClass": "ghost"}}, "no PriorityClass with name ghost"),
    "a service account": ({"storage": {"serviceAccountName": "ghost"}}, 'serviceaccount "ghost" not found'),
}


@pytest.mark.parametrize("what", MISSING)
def test_a_name_that_does_not_exist_is_said_while_it_is_waited_for(plane, operator, namespace, what):
    spec, words = MISSING[what]
    plane.apply(a_run("nameless", namespace=namespace, **spec))
    plane.wait(
        "it says what is missing",
        lambda: words in said(plane, "nameless", namespace),
        about=lambda: said(plane, "nameless", namespace),
    )
    assert "its Pods cannot be made: " in said(plane, "nameless", namespace)
    assert plane.condition("nameless", "Stalled", namespace) == {}, "it may be made yet"
    assert not played(plane, namespace)


# a bad edit


def test_an_edit_that_the_api_server_refuses_changes_nothing(plane, operator, namespace):
    plane.hand.script["fuse-s0"] = [Act(seconds=6)]
    plane.apply(a_run("steady", namespace=namespace))
    wait_for_child(plane, "steady", "fuse-s0", namespace)
    told = plane.kubectl(
        "patch", "fusionrun", "steady", "-n", namespace, "--type=merge",
        "-p", '{"spec": {"merge": {"selectTopK": 7}}}', check=False,
    )  # fmt: skip
    assert "spec.merge.selectTopK in body should be less than or equal to 1" in told
    status = plane.until("steady", namespace=namespace)
    assert status["observedGeneration"] == 1
    assert sorted(played(plane, namespace)) == sorted(set(played(plane, namespace)))


@pytest.mark.parametrize("while_it", ["runs", "ends"])
def test_a_bad_edit_stalls_and_putting_it_back_goes_on_without_loss(plane, operator, namespace, while_it):
    name = f"wavering-{while_it}"
    plane.hand.script["fuse-s0"] = [Act(seconds=20 if while_it == "runs" else 4)]
    run = a_run(name, namespace=namespace)
    plane.apply(run)
    child = wait_for_child(plane, name, "fuse-s0", namespace)
    plane.wait("it runs", lambda: "fuse-s0" in played(plane, namespace))
    good = run["spec"]["sources"]
    patch(plane, name, namespace, {"sources": [{"name": "s0", "uri": "file:///tmp/s0"}, *good[1:]]})
    plane.until(name, "Stalled", namespace=namespace)
    assert plane.step(name, "fetch-pivot", namespace)["state"] == "Succeeded", "what was done is remembered"
    if while_it == "ends":
        time.sleep(6)
    held = plane.get("pytorchjob", child["metadata"]["name"], namespace)
    assert held["metadata"]["uid"] == child["metadata"]["uid"], "its work is not thrown away"
    patch(plane, name, namespace, {"sources": good})
    status = plane.until(name, namespace=namespace)
    assert status["observedGeneration"] == 3
    steps = [step for step in played(plane, namespace) if step != "report"]
    assert sorted(steps) == sorted(set(steps)), "each step ran once"
    assert not [line for line in status["steps"] if line.get("tries")]


def test_a_run_that_was_stalled_by_its_queue_goes_on_when_asked_to(plane, operator, namespace):
    plane.apply(a_run("again", 1, namespace, scheduling={"queueName": "team"}))
    plane.until("again", "Stalled", namespace=namespace)
    annotate_retry(plane, "again", namespace)
    stalled = lambda: plane.status("again", namespace).get("lastRetry")  # noqa: E731
    plane.wait("it tries", stalled)
    plane.until("again", "Stalled", namespace=namespace)
    patch(plane, "again", namespace, {"scheduling": {"queueName": None}})
    status = plane.until("again", namespace=namespace)
    assert not [line for line in status["steps"] if line.get("tries")]
    for child in plane.children("again", namespace):
        assert naming.QUEUE not in child["metadata"]["labels"]
