"""Trainings as TrainJobs: Kubeflow Trainer, JobSet and Kueue are real, the stages are played.

Run by `make test-trainjob`; without the training operator, so that Auto comes to TrainJob by itself.
"""

from __future__ import annotations

import time
from collections import Counter

import pytest
from fusechat.plan import plan
from fusechat.spec import load
from fusechat_operator import jobs, naming, pods
from fusechat_operator.settings import DefaultStore, Settings

from tests.cluster.plane import BUCKET_PREFIX, running_plane
from tests.cluster.stagehand import Act, a_run
from tests.cluster.test_lifecycle import patch, played
from tests.cluster.test_queue import HALF, KUEUE, a_queue, queued, said, two_by_two

pytestmark = pytest.mark.trainjob
PAIR = {"fuse": {"nodes": 2, "processes": 1}, "resources": {"fuse": HALF}}


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """A cluster with Trainer, JobSet and Kueue."""
    with running_plane(tmp_path_factory.mktemp("trainer"), "kueue,trainer") as made:
        made.apply(
            {"apiVersion": KUEUE, "kind": "ResourceFlavor", "metadata": {"name": "any"}},
            {
                "apiVersion": KUEUE,
                "kind": "WorkloadPriorityClass",
                "metadata": {"name": "soon"},
                "value": 1000,
            },
        )
        yield made


def trainjob(plane, run, step, namespace):
    listed = plane.children(run, namespace, ("trainjob",))
    return next((c for c in listed if c["metadata"]["labels"][naming.STEP] == step), None)


def wait_for_trainjob(plane, run, step, namespace):
    return plane.wait(
        f"a TrainJob for {step}",
        lambda: trainjob(plane, run, step, namespace),
        about=lambda: said(plane, run, namespace),
    )


def pods_of(plane, child, namespace):
    selector = f"{naming.CHILD}={child['metadata']['name']}"
    return plane.listed("pod", namespace, selector)


def test_auto_takes_trainjobs_where_only_trainer_is_installed(plane, operator, namespace):
    run = a_run("auto", namespace=namespace, **PAIR)
    plane.apply(run)
    status = plane.until("auto", namespace=namespace)
    assert status["launcher"] == "TrainJob (Auto: the first that is installed)"
    assert {line["state"] for line in status["steps"]} == {"Succeeded"}
    children = plane.children("auto", namespace, ("trainjob",))
    assert {c["metadata"]["labels"][naming.STEP] for c in children} == {"fuse-s0", "fuse-s1"}
    for child in children:
        assert "Complete" in {c["type"] for c in child["status"]["conditions"] if c["status"] == "True"}
    assert Counter(played(plane, namespace))["fuse-s0"] == 2
    assert plane.store.manifest(str(plan(load(run)).step("fuse-s0").address))


def wanted(plane, namespace):
    """(the run, the Pod spec that a PyTorchJob of its training would have)."""
    placed = {
        "nodeSelector": {"type": "kwok"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "priorityClass": "urgent",
    }
    account = {"serviceAccountName": "trainer"}
    body = {"launcher": "TrainJob", "scheduling": placed, "storage": account, **PAIR}
    run = a_run("whole", 1, namespace, **body)
    store = DefaultStore(BUCKET_PREFIX, plane.s3.endpoint)
    told = Settings("fusechat-system", "op", "localhost/stages:test", store=store, scratch_requests=False)
    made = load(run)
    work = jobs.Work(
        {**run, "metadata": {**run["metadata"], "uid": "1"}},
        made,
        plan(made),
        told,
        pods.place(made, store),
        "PyTorchJob",
    )
    (manifest,) = jobs.build(work, work.plan.step("fuse-s0"))
    return run, manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]


def test_its_pods_are_what_those_of_any_other_launcher_are(plane, operator, namespace):
    plane.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "urgent"},
            "value": 1000,
        },
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "trainer", "namespace": namespace},
        },
    )
    run, template = wanted(plane, namespace)
    plane.hand.script["fuse-s0"] = [Act(seconds=8), Act(seconds=8)]
    plane.apply(run)
    child = wait_for_trainjob(plane, "whole", "fuse-s0", namespace)
    plane.wait("both run", lambda: played(plane, namespace).count("fuse-s0") == 2)
    found = pods_of(plane, child, namespace)
    assert len(found) == 2
    for pod in found:
        meta, spec = pod["metadata"], pod["spec"]
        labels = {**template["metadata"]["labels"], naming.UID: meta["labels"][naming.UID]}
        assert labels.items() <= meta["labels"].items()
        assert template["metadata"]["annotations"].items() <= meta["annotations"].items() | {
            ("kubectl.kubernetes.io/default-container", "pytorch")
        }
        same = set(template["spec"]) - {"containers", "tolerations", "volumes"}
        assert {key: spec.get(key) for key in same} == {key: template["spec"][key] for key in same}
        assert spec["tolerations"][0] == template["spec"]["tolerations"][0]
        assert [v for v in spec["volumes"] if v["name"] in ("scratch", "shm")] == template["spec"]["volumes"]
        (want,), (have,) = template["spec"]["containers"], spec["containers"]
        same = set(want) - {"name", "env"}
        assert {key: have.get(key) for key in same} == {key: want[key] for key in same}
        env = {e["name"]: e for e in have["env"]}
        assert {e["name"]: e for e in want["env"]}.items() <= env.items()
        assert env["PET_NNODES"]["value"] == "2"
        assert env["PET_MASTER_ADDR"]["value"].startswith(f"{child['metadata']['name']}-node-0-0.")
        assert {"PET_NODE_RANK", "PET_MASTER_PORT"} <= set(env)
    plane.until("whole", namespace=namespace)


def test_trouble_outside_is_tried_again_and_a_bug_is_not(plane, operator, namespace):
    plane.hand.script["fuse-s0"] = [Act(exit_code=75, error="the store is away"), Act()]
    plane.hand.script["fuse-s1"] = [Act(exit_code=65, error="NaN"), Act()]
    plane.apply(a_run("mixed", namespace=namespace, launcher="TrainJob"))
    plane.until("mixed", "Stalled", namespace=namespace)
    fine, failed = (plane.step("mixed", name, namespace) for name in ("fuse-s0", "fuse-s1"))
    assert (fine["state"], fine["tries"]["infrastructure"]) == ("Succeeded", 1)
    assert (failed["state"], failed["tries"]["bug"]) == ("Failed", 1)
    assert Counter(played(plane, namespace))["fuse-s0"] == 2
    assert Counter(played(plane, namespace))["fuse-s1"] == 1, "no launcher tries by itself"
    assert plane.condition("mixed", "Stalled", namespace)["message"].startswith("fuse-s1: ")
    assert trainjob(plane, "mixed", "fuse-s1", namespace), "a failed child stays for a person to look at"


def test_a_pod_that_is_taken_away_is_a_disruption_and_free(plane, operator, namespace):
    plane.hand.script["fuse-s0"] = [Act(seconds=300), Act()]
    plane.apply(a_run("taken", 1, namespace, launcher="TrainJob"))
    child = wait_for_trainjob(plane, "taken", "fuse-s0", namespace)
    plane.wait("it runs", lambda: "fuse-s0" in played(plane, namespace))
    (pod,) = pods_of(plane, child, namespace)
    plane.kubectl("delete", "pod", pod["metadata"]["name"], "-n", namespace)
    status = plane.until("taken", namespace=namespace)
    (line,) = [line for line in status["steps"] if line["name"] == "fuse-s0"]
    # kwok takes the finalizer along by which a Job counts a Pod that goes: here the Job makes another itself.
    assert line.get("tries", {}).get("infrastructure", 0) == line.get("tries", {}).get("bug", 0) == 0
    assert Counter(played(plane, namespace))["fuse-s0"] == 2


def test_a_suspended_run_deletes_its_trainjob_and_resumes(plane, operator, namespace):
    plane.hand.script["fuse-s0"] = [Act(seconds=300), Act()]
    plane.apply(a_run("paused", 1, namespace, launcher="TrainJob"))
    wait_for_trainjob(plane, "paused", "fuse-s0", namespace)
    plane.wait("it runs", lambda: "fuse-s0" in played(plane, namespace))
    patch(plane, "paused", namespace, {"suspend": True})
    plane.until("paused", "Suspended", namespace=namespace)

    def left():
        return plane.kubectl(
            "get", "trainjobs,jobsets,pods", "-n", namespace, "-l", f"{naming.STEP}=fuse-s0", "-o", "name"
        )

    plane.wait("nothing of it is left", lambda: not left().strip(), about=left)
    patch(plane, "paused", namespace, {"suspend": False})
    status = plane.until("paused", namespace=namespace)
    assert Counter(played(plane, namespace))["fuse-s0"] == 2
    assert not [line for line in status["steps"] if line.get("tries")]


def test_finished_trainjobs_go_after_their_time_also_while_the_run_goes_on(plane, operator, namespace):
    plane.hand.script["fuse-s1"] = [Act(seconds=90)]
    plane.apply(a_run("tidy", namespace=namespace, ttl="1m", launcher="TrainJob"))
    first = wait_for_trainjob(plane, "tidy", "fuse-s0", namespace)
    plane.wait("it succeeds", lambda: plane.step("tidy", "fuse-s0", namespace).get("state") == "Succeeded")
    assert trainjob(plane, "tidy", "fuse-s0", namespace), "not before its time"
    name = first["metadata"]["name"]
    plane.wait("it is gone", lambda: plane.get("trainjob", name, namespace) is None, 80)
    assert plane.step("tidy", "fuse-s1", namespace)["state"] == "Running"
    status = plane.until("tidy", namespace=namespace)
    assert not [line for line in status["steps"] if line.get("tries")]
    plane.wait("all are gone", lambda: not plane.children("tidy", namespace, ("trainjob", "job")), 100)
    time.sleep(3)
    assert plane.condition("tidy", "Succeeded", namespace)["status"] == "True"


def test_a_trainjob_waits_for_quota_is_preempted_and_goes_on(plane, operator, namespace):
    a_queue(plane, namespace)
    plane.hand.script["fuse-s0"] = [Act(seconds=300)] * 2
    plane.apply(two_by_two("low", namespace, launcher="TrainJob"))
    child = wait_for_trainjob(plane, "low", "fuse-s0", namespace)
    plane.wait("both its Pods run", lambda: played(plane, namespace).count("fuse-s0") == 2, 120)
    urgent = two_by_two("high", namespace, launcher="TrainJob")
    urgent["metadata"]["labels"] = {naming.QUEUE_PRIORITY: "soon"}
    plane.apply(urgent)
    plane.wait(
        "the run says that it was preempted",
        lambda: "fuse-s0: was preempted by a workload of higher priority" in said(plane, "low", namespace),
        about=lambda: said(plane, "low", namespace),
    )
    held = plane.get("trainjob", child["metadata"]["name"], namespace)
    assert held["metadata"]["uid"] == child["metadata"]["uid"], "suspended, not replaced"
    assert held["spec"]["suspend"] is True
    (workload,) = [w for w in queued(plane, namespace) if w["metadata"]["name"].startswith("trainjob-fuse")]
    assert [p["count"] for p in workload["spec"]["podSets"]] == [2], "its two Pods count against the quota"
    plane.until("high", namespace=namespace, seconds=240)
    status = plane.until("low", namespace=namespace, seconds=240)
    assert not [line for line in status["steps"] if line.get("tries")]
