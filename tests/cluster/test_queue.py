"""FusionRuns in a real Kueue: quota, priority, preemption, queues that take nobody. Stages are played."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections import Counter

import pytest
import yaml
from fusechat_operator import naming
from kubernetes import client, config, watch

from tests.cluster.plane import running_plane
from tests.cluster.stagehand import Act, a_run
from tests.cluster.test_lifecycle import annotate_retry, patch, played, wait_for_child
from tests.conftest import CHECKOUT

KUEUE = "kueue.x-k8s.io/v1beta2"
ONE_CPU = {"cpu": "1", "memory": "1Gi", "gpus": 0}
HALF = {"cpu": "500m", "memory": "1Gi", "gpus": 0}
TAKES_ALL = {
    **dict.fromkeys(("fetch", "merge", "evaluate", "report"), ONE_CPU),
    **dict.fromkeys(("extract", "align", "filter", "fuse"), HALF),  # two shards, or two nodes
}
"""Resources with which every step of `two_by_two` asks for the whole of one CPU."""


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """A cluster with Kueue and the training operator."""
    with running_plane(tmp_path_factory.mktemp("queues"), "training-operator,kueue") as made:
        priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1000}
        made.apply(
            {"apiVersion": KUEUE, "kind": "ResourceFlavor", "metadata": {"name": "any"}},
            {**priority, "metadata": {"name": "urgent"}},
            {
                "apiVersion": KUEUE,
                "kind": "WorkloadPriorityClass",
                "metadata": {"name": "soon"},
                "value": 1000,
            },
        )
        yield made


def a_queue(plane, namespace, name="team", cpu="1", **local):
    """A ClusterQueue with so many CPUs, and a LocalQueue of the namespace that leads to it."""
    quotas = [{"name": "cpu", "nominalQuota": cpu}, {"name": "memory", "nominalQuota": "100Gi"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": "any", "resources": quotas}]}
    whole = f"{namespace}-{name}"
    cluster = {
        "namespaceSelector": {},
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [group],
    }
    meta = {"name": name, "namespace": namespace}
    plane.apply(
        {"apiVersion": KUEUE, "kind": "ClusterQueue", "metadata": {"name": whole}, "spec": cluster},
        {
            "apiVersion": KUEUE,
            "kind": "LocalQueue",
            "metadata": meta,
            "spec": {"clusterQueue": whole, **local},
        },
    )


def two_by_two(name, namespace, queue="team", **spec):
    """A run whose every step asks for the whole of one CPU, those of shards and nodes by two Pods."""
    told = {"scheduling": {"queueName": queue}, "resources": TAKES_ALL, **spec}
    made = a_run(name, 1, namespace, fuse={"nodes": 2, "processes": 1}, **told)
    made["spec"]["dataset"]["shards"] = 2
    return made


class Pods(threading.Thread):
    """A watch of a namespace's Pods: the steps that had Pods at the same time, and whether any Pod came."""

    def __init__(self, plane, namespace):
        super().__init__(daemon=True)
        self.api = client.CoreV1Api(config.new_client_from_config(plane.kubeconfig))
        self.namespace, self.live, self.together = namespace, {}, set()
        self.seen = Counter()
        self._ended = threading.Event()
        self.start()

    def run(self):
        version = "0"
        while not self._ended.is_set():
            stream = watch.Watch().stream(
                self.api.list_namespaced_pod, self.namespace, timeout_seconds=2, resource_version=version
            )
            try:
                for event in stream:
                    version = event["raw_object"]["metadata"]["resourceVersion"]
                    self._look(event["type"], event["raw_object"])
            except client.ApiException:
                version = "0"

    def _look(self, what, pod):
        uid, step = pod["metadata"]["uid"], pod["metadata"]["labels"][naming.STEP]
        ended = what == "DELETED" or pod["status"].get("phase") in ("Succeeded", "Failed")
        if ended or "deletionTimestamp" in pod["metadata"]:
            self.live.pop(uid, None)
            return
        self.seen[step] += uid not in self.live
        self.live[uid] = step
        self.together.add(frozenset(self.live.values()))

    def end(self):
        self._ended.set()
        self.join()
        return self


def said(plane, run, namespace):
    return plane.condition(run, "Ready", namespace).get("message", "")


def queued(plane, namespace):
    """Workloads that wait or run."""
    listed = json.loads(plane.kubectl("get", "workloads", "-n", namespace, "-o", "json"))["items"]
    return [
        w for w in listed if "Finished" not in {c["type"] for c in w.get("status", {}).get("conditions", ())}
    ]


def events(plane, namespace, reason):
    listed = plane.kubectl(
        "get", "events", "-n", namespace, "--field-selector", f"reason={reason}", "-o", "json"
    )
    return [item["message"] for item in json.loads(listed)["items"]]


# quota


def test_a_quota_for_one_step_has_one_step_run_at_a_time(plane, operator, namespace):
    pods = Pods(plane, namespace)
    a_queue(plane, namespace)
    plane.apply(two_by_two("narrow", namespace))
    plane.wait(
        "it says for what it waits",
        lambda: re.search(
            r"(fetch|extract)-\S+: waits for quota: insufficient unused", said(plane, "narrow", namespace)
        ),
        about=lambda: said(plane, "narrow", namespace),
    )
    assert plane.condition("narrow", "Stalled", namespace) == {}
    status = plane.until("narrow", namespace=namespace, seconds=240)
    pods.end()
    assert max(len(steps) for steps in pods.together) == 1, pods.together
    assert pods.seen["fuse-s0"] == 2, "a training's Pods come together"
    assert {line["state"] for line in status["steps"]} == {"Succeeded"}
    assert not [line for line in status["steps"] if line.get("tries")]
    kinds = {c["kind"] for c in plane.children("narrow", namespace)}
    assert kinds == {"Job", "PyTorchJob"}


def test_a_step_that_waits_is_waiting_and_one_that_runs_is_running(plane, operator, namespace):
    a_queue(plane, namespace)
    plane.hand.script["fetch-pivot"] = [Act(seconds=300)]
    plane.hand.script["fetch-s0"] = [Act(seconds=300)]
    plane.apply(
        a_run("split", namespace=namespace, scheduling={"queueName": "team"}, resources={"fetch": ONE_CPU})
    )

    def states():
        return Counter(line["state"] for line in plane.status("split", namespace).get("steps", ()))

    plane.wait("one runs", lambda: states()["Running"] == 1 and states()["Waiting"] > 1, about=states)
    assert "; at work: fetch-" in said(plane, "split", namespace)
    assert plane.status("split", namespace)["stage"] == "fetch"


def test_a_step_larger_than_the_whole_quota_says_so(plane, operator, namespace):
    a_queue(plane, namespace, cpu="200m")
    plane.apply(two_by_two("large", namespace))
    plane.wait(
        "it says what is too little",
        lambda: "waits for quota: insufficient quota for cpu" in said(plane, "large", namespace),
        about=lambda: said(plane, "large", namespace),
    )
    assert "maximum capacity (200m)" in said(plane, "large", namespace)


def test_a_suspended_run_gives_its_place_in_the_queue_back(plane, operator, namespace):
    a_queue(plane, namespace)
    plane.hand.script["fetch-s0"] = [Act(seconds=300), Act()]
    plane.apply(two_by_two("paused", namespace))
    plane.wait("it runs", lambda: "fetch-s0" in played(plane, namespace))
    patch(plane, "paused", namespace, {"suspend": True})
    plane.until("paused", "Suspended", namespace=namespace)
    plane.wait("nothing is queued", lambda: not queued(plane, namespace))
    patch(plane, "paused", namespace, {"suspend": False})
    plane.until("paused", namespace=namespace, seconds=240)


# priority


@pytest.mark.parametrize(
    ("launcher", "priority"), [("PyTorchJob", "PriorityClass"), ("Job", "WorkloadPriorityClass")]
)
def test_a_run_of_higher_priority_stops_a_training_which_then_goes_on(
    plane, operator, namespace, launcher, priority
):
    a_queue(plane, namespace)
    plane.hand.script["fuse-s0"] = [Act(seconds=300)] * 2  # its two Pods, at the first attempt
    low, high = f"low-{launcher.lower()}", f"high-{launcher.lower()}"
    plane.apply(two_by_two(low, namespace, launcher=launcher))
    child = wait_for_child(plane, low, "fuse-s0", namespace)
    plane.wait("both its Pods run", lambda: played(plane, namespace).count("fuse-s0") == 2, 120)
    urgent = two_by_two(high, namespace, launcher=launcher)
    if priority == "PriorityClass":
        urgent["spec"]["scheduling"]["priorityClass"] = "urgent"
    else:
        urgent["metadata"]["labels"] = {naming.QUEUE_PRIORITY: "soon"}
    plane.apply(urgent)
    plane.wait(
        "the run says that it was preempted",
        lambda: "fuse-s0: was preempted by a workload of higher priority" in said(plane, low, namespace),
        about=lambda: said(plane, low, namespace),
    )
    assert plane.step(low, "fuse-s0", namespace)["state"] == "Waiting"
    held = plane.get(launcher.lower(), child["metadata"]["name"], namespace)
    assert held["metadata"]["uid"] == child["metadata"]["uid"], "suspended, not replaced"
    assert (held["spec"].get("runPolicy") or held["spec"])["suspend"] is True
    assert "Failed" not in {c["type"] for c in held["status"]["conditions"] if c["status"] == "True"}
    assert plane.condition(low, "Stalled", namespace) == {}
    plane.until(high, namespace=namespace, seconds=240)
    status = plane.until(low, namespace=namespace, seconds=240)
    assert not [line for line in status["steps"] if line.get("tries")], "a preemption costs no try"
    steps = [p.step for p in plane.hand.played if p.namespace == namespace and p.run == low]
    assert steps.count("fuse-s0") >= 4, "both Pods, at least twice"
    assert steps.count("extract-s0") == 2, "two shards, once"
    told = events(plane, namespace, "StepStoppedByQueue")
    assert any("fuse-s0 was preempted" in message for message in told), told


# queues that take nobody


def test_a_local_queue_that_does_not_exist_stalls_the_run_and_a_retry_goes_on(plane, operator, namespace):
    pods = Pods(plane, namespace)
    plane.apply(two_by_two("astray", namespace, queue="tema"))
    plane.until("astray", "Stalled", namespace=namespace)
    stalled = plane.condition("astray", "Stalled", namespace)
    assert stalled["reason"] == "QueueDidNotAdmit"
    assert "there is no LocalQueue tema in its namespace; create it and retry" in stalled["message"]
    assert stalled["message"].count("LocalQueue tema") == 1, "one sentence for all steps"
    plane.wait("no child is left", lambda: not plane.children("astray", namespace))
    assert not pods.seen
    a_queue(plane, namespace, "tema")
    annotate_retry(plane, "astray", namespace)
    status = plane.until("astray", namespace=namespace, seconds=240)
    assert not [line for line in status["steps"] if line.get("tries")]
    pods.end()


def test_a_queue_name_that_is_mended_in_the_spec_goes_on_by_itself(plane, operator, namespace):
    a_queue(plane, namespace)
    plane.apply(two_by_two("mended", namespace, queue="tema"))
    plane.until("mended", "Stalled", namespace=namespace)
    patch(plane, "mended", namespace, {"scheduling": {"queueName": "team"}})
    plane.until("mended", namespace=namespace, seconds=240)


def test_a_queue_that_is_held_is_waited_for(plane, operator, namespace):
    a_queue(plane, namespace, stopPolicy="Hold")
    plane.apply(two_by_two("patient", namespace))
    plane.wait(
        "it says what holds it",
        lambda: "waits for its queue: LocalQueue team is inactive" in said(plane, "patient", namespace),
        about=lambda: said(plane, "patient", namespace),
    )
    time.sleep(5)  # longer than FUSECHAT_QUEUE_SECONDS
    assert plane.condition("patient", "Stalled", namespace) == {}
    plane.kubectl(
        "patch",
        "localqueue",
        "team",
        "-n",
        namespace,
        "--type=merge",
        "-p",
        '{"spec": {"stopPolicy": "None"}}',
    )
    plane.until("patient", namespace=namespace, seconds=240)


def test_a_step_that_waits_moves_when_the_run_names_another_queue(plane, operator, namespace):
    a_queue(plane, namespace, "full", cpu="0")
    a_queue(plane, namespace, "free", cpu="4")
    plane.apply(two_by_two("mover", namespace, queue="full"))
    plane.wait("it waits", lambda: "waits for quota" in said(plane, "mover", namespace))
    patch(plane, "mover", namespace, {"scheduling": {"queueName": "free"}})
    status = plane.until("mover", namespace=namespace, seconds=240)
    assert not [line for line in status["steps"] if line.get("tries")]


def test_a_child_that_kueue_never_takes_stalls_the_run_and_runs_nothing(plane, start, namespace):
    """Kueue makes no Workload for a priority class that does not exist."""
    start(FUSECHAT_QUEUE_SECONDS="1")
    pods = Pods(plane, namespace)
    a_queue(plane, namespace)
    run = two_by_two("unseen", namespace)
    run["metadata"]["labels"] = {naming.QUEUE_PRIORITY: "ghost"}
    plane.apply(run)
    plane.wait("it says so soon", lambda: "Kueue made no Workload" in said(plane, "unseen", namespace))
    assert plane.condition("unseen", "Stalled", namespace) == {}, "a Kueue that starts again may yet take it"
    plane.until("unseen", "Stalled", namespace=namespace)
    stalled = plane.condition("unseen", "Stalled", namespace)
    assert stalled["reason"] == "QueueDidNotAdmit"
    assert "has the priority class that is asked for" in stalled["message"]
    plane.wait("no child is left", lambda: not plane.children("unseen", namespace))
    assert not pods.end().seen


def test_a_kueue_that_is_away_stops_nothing_for_good(plane, operator, namespace):
    state = plane.folder / "kube" / "state.json"
    if not state.exists():
        pytest.skip("the cluster is yours: its Kueue is not stopped")
    a_queue(plane, namespace, cpu="4")
    kueue = json.loads(state.read_text())["pids"]["kueue"]
    plane.hand.script["fetch-s0"] = [Act(seconds=3)]
    os.kill(kueue, signal.SIGSTOP)
    try:
        plane.apply(two_by_two("outage", namespace))
        plane.wait(
            "the run says who does not answer",
            lambda: "failed calling webhook" in said(plane, "outage", namespace),
            60,
            lambda: said(plane, "outage", namespace),
        )
        assert plane.condition("outage", "Stalled", namespace) == {}
    finally:
        os.kill(kueue, signal.SIGCONT)
    plane.until("outage", namespace=namespace, seconds=240)


# docs/queues.md


def blocks():
    """The YAML of docs/queues.md, in its order, as lists of objects."""
    text = (CHECKOUT / "docs" / "queues.md").read_text(encoding="utf-8")
    return [list(yaml.safe_load_all(block)) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def test_the_quota_of_the_page_for_users_works_as_the_page_says(plane, start, namespace):
    """With 8 GPUs: one training with 8 at a time; extracts, which take one each, run side by side."""
    start(FUSECHAT_SCRATCH_REQUESTS="true")
    disk = json.dumps(
        {"status": {field: {"ephemeral-storage": "100Ti"} for field in ("capacity", "allocatable")}}
    )
    nodes = plane.kubectl("get", "nodes", "-o", "name").split()
    for node in nodes:
        plane.kubectl("patch", node, "--subresource=status", "--type=merge", "-p", disk)
    objects, run = blocks()[0], blocks()[1][0]
    for each in objects:
        if "namespace" in each["metadata"]:
            each["metadata"]["namespace"] = namespace
    plane.apply(*objects)
    asked = {key: run["spec"][key] for key in ("resources", "scheduling")}
    pods = Pods(plane, namespace)
    plane.hand.pace = 1.0
    plane.apply(a_run("paper", sources=4, namespace=namespace, **asked))
    plane.until("paper", namespace=namespace, seconds=240)
    together = pods.end().together
    assert max(sum(step.startswith("fuse") for step in steps) for steps in together) == 1
    assert max(sum(step.startswith("extract") for step in steps) for steps in together) > 1
