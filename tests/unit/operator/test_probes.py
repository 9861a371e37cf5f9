"""A run's own store: what counts as one, the Job that asks it, and what fits an answer."""

from __future__ import annotations

import json

import pytest
from fusechat import inquiry
from fusechat.address import digest
from fusechat.errors import BadData
from fusechat.inquiry import Question
from fusechat.spec import load
from fusechat_operator import jobs, naming, probes
from fusechat_operator.children import pod
from fusechat_operator.places import place
from fusechat_operator.settings import DefaultStore

from tests.unit.operator.runs import SETTINGS, a_run

DEFAULT = DefaultStore("s3://fuse/all", "http://minio:9000", "eu-1", "fusechat-store")
KEYS = {"secretRef": {"name": "team-keys"}}
OTHER = {"uri": "s3://team/x", "endpoint": "https://s3.example"}


def where(storage, default=DEFAULT):
    return place(load(a_run(storage=storage)), default)


# which store


@pytest.mark.parametrize(
    "storage", [{}, KEYS, {"uri": "s3://fuse/all/"}, {"uri": "s3://fuse/all", "endpoint": DEFAULT.endpoint}]
)
def test_the_default_store_by_another_name_is_the_default_store(storage):
    found = where(storage)
    assert not found.own
    assert (found.uri, found.endpoint, found.region) == ("s3://fuse/all", "http://minio:9000", "eu-1")
    assert found.secret == ("team-keys" if storage is KEYS else "fusechat-store")


def test_another_bucket_of_the_same_service_is_reached_with_the_namespaces_secret():
    found = where({"uri": "s3://team/x"})
    assert (found.own, found.endpoint, found.secret) == (True, "http://minio:9000", "fusechat-store")


def test_another_service_gets_nothing_of_the_default_ones():
    found = where({**OTHER, **KEYS})
    assert (found.own, found.secret, found.service_account, found.region) == (True, "team-keys", None, None)
    found = where({**OTHER, "serviceAccountName": "trainer"})
    assert (found.secret, found.service_account) == (None, "trainer")


@pytest.mark.parametrize(
    ("storage", "default", "says"),
    [
        (OTHER, DEFAULT, "set spec.storage.secretRef or serviceAccountName"),
        ({"endpoint": "https://s3.example", **KEYS}, DEFAULT, "set spec.storage.uri too"),
        ({}, None, "no default store"),
        ({"uri": "s3://team/x"}, None, "name your own in spec.storage"),
    ],
)
def test_what_names_no_store_is_refused_with_what_to_do(storage, default, says):
    with pytest.raises(ValueError, match=says):
        where(storage, default)


def test_a_cluster_needs_no_default_store_where_runs_have_their_own():
    assert where({**OTHER, **KEYS}, None).own


def test_the_same_address_at_two_services_is_made_by_two_children():
    step = probes_plan().steps[0]
    same = {"uri": "s3://fuse/all", "endpoint": "https://s3.example", **KEYS}
    assert jobs.name_of(step, where({})) != jobs.name_of(step, where(same))


def probes_plan():
    from fusechat.plan import plan

    return plan(load(a_run()))


# the Job


def a_probe(count=1, **spec):
    found = a_run(storage={**OTHER, **KEYS}, **spec)
    found["metadata"] |= {"uid": "u-1", "generation": 1}
    run = load(found)
    asked = [Question("artifact", f"fetch/{digest(n)}") for n in range(count)]
    return probes.build(found, run, place(run, DEFAULT), SETTINGS, asked, "now")


def test_a_probe_belongs_to_its_run_and_has_its_way_in_and_no_more():
    made = a_probe().manifest
    pod_spec = made["spec"]["template"]["spec"]
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    assert made["metadata"]["labels"][naming.RUN] == "run"
    assert pod_spec["automountServiceAccountToken"] is False
    assert pod_spec["securityContext"]["runAsNonRoot"] is True
    (container,) = pod_spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    named = {e["valueFrom"]["secretKeyRef"]["name"] for e in container["env"] if "valueFrom" in e}
    assert named == {"team-keys"}
    assert {"name": "AWS_ENDPOINT_URL_S3", "value": "https://s3.example"} in container["env"]


def test_the_same_questions_have_the_same_name_and_many_have_many_pods():
    assert a_probe(3).name == a_probe(3).name != a_probe(4).name
    assert "completions" not in a_probe(24).manifest["spec"]
    assert a_probe(25).manifest["spec"]["completions"] == 2
    assert a_probe(9999).manifest["spec"]["completions"] == probes.MOST_PODS


def test_a_probe_of_a_run_with_a_queue_waits_for_its_queue():
    made = a_probe(scheduling={"queueName": "team"}).manifest
    assert made["spec"]["suspend"] is True
    assert made["metadata"]["labels"][naming.QUEUE] == "team"
    assert naming.QUEUE not in made["spec"]["template"]["metadata"]["labels"]


def test_a_long_question_comes_in_pieces_that_linux_takes():
    document = {str(n): digest(n) for n in range(6000)}
    run = load(a_run(storage={**OTHER, **KEYS}))
    found = {**a_run(), "metadata": {"uid": "u", "name": "run", "namespace": "team"}}
    asked = [Question("put", "runs/u.json", document)]
    made = probes.build(found, run, place(run, DEFAULT), SETTINGS, asked, "")
    arguments = made.manifest["spec"]["template"]["spec"]["containers"][0]["args"]
    assert all(len(argument) < 131072 for argument in arguments)
    packed = "".join(a.removeprefix("--ask=") for a in arguments if a.startswith("--ask="))
    assert len(packed) > 131072
    assert inquiry.asked(packed)[0].value == document


# answers


def said(message):
    ended = {"terminated": {"exitCode": 0, "message": message}}
    status = {"phase": "Succeeded", "containerStatuses": [{"name": "stage", "state": ended}]}
    return pod({"metadata": {"name": "p"}, "status": status})


def test_answers_of_all_pods_are_put_together_and_nonsense_is_silence():
    one = said(json.dumps({"exitCode": 0, "answer": inquiry.pack({"0": None})}))
    two = said(json.dumps({"exitCode": 0, "answer": inquiry.pack({"1": ["d", {}, {}]})}))
    other = said(json.dumps({"exitCode": 0, "answer": "?"}))
    assert probes.answers([one, two, other, said("no JSON")]) == {0: None, 1: ["d", {}, {}]}


class Progress:
    """A store whose every document is of one size, of noise that no zip makes small."""

    def __init__(self, size: int) -> None:
        self.size = size

    def get_json(self, key):
        return {digest([key, n]): 1 for n in range(self.size // 64)}


def test_what_does_not_fit_is_left_to_be_asked_again_and_something_is_always_answered():
    asked = [Question("progress", f"fuse/{digest(n)}") for n in range(40)]
    told = inquiry.answered(Progress(1000), asked, (0, 1))
    assert len(told) <= inquiry.ANSWER_BYTES
    assert 1 <= len(inquiry.unpack(told)) < 40
    with pytest.raises(BadData, match="does not fit"):
        inquiry.answered(Progress(9000), asked, (0, 1))


def test_the_questions_of_a_plan_are_shared_out_among_the_pods():
    asked = [Question("progress", f"fuse/{digest(n)}") for n in range(7)]
    parts = [inquiry.unpack(inquiry.answered(Progress(64), asked, (index, 3))) for index in range(3)]
    assert sorted(int(number) for part in parts for number in part) == list(range(7))
