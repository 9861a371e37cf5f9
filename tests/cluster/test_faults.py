"""What clusters do to a run: nothing is lost, nothing runs twice, nothing is left over. Stages are played."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter

from fusechat.plan import plan
from fusechat.spec import load
from kubernetes import client, config, watch
from urllib3.exceptions import HTTPError

from tests.cluster.stagehand import Act, a_run
from tests.cluster.test_lifecycle import annotate_retry, played, steps_of, wait_for_child

KILLS = 20


class Recorder:
    """A watch of a namespace's Jobs and PyTorchJobs from beginning to end: what was created, by step."""

    def __init__(self, plane, namespace):
        self.created, self.uids = Counter(), {}
        self._ended = threading.Event()
        api = config.new_client_from_config(plane.kubeconfig)
        jobs, custom = client.BatchV1Api(api), client.CustomObjectsApi(api)
        arguments = ("kubeflow.org", "v1", namespace, "pytorchjobs")
        self._threads = [
            threading.Thread(target=self._watch, args=args, daemon=True)
            for args in (
                (jobs.list_namespaced_job, namespace),
                (custom.list_namespaced_custom_object, *arguments),
            )
        ]
        for thread in self._threads:
            thread.start()

    def _watch(self, listed, *arguments):
        version = "0"
        while not self._ended.is_set():
            try:
                for event in watch.Watch().stream(
                    listed, *arguments, timeout_seconds=2, resource_version=version
                ):
                    found = event["raw_object"]
                    version = found["metadata"]["resourceVersion"]
                    uid, labels = found["metadata"]["uid"], found["metadata"].get("labels", {})
                    if uid not in self.uids and "fusechat.io/step" in labels:
                        self.uids[uid] = labels["fusechat.io/step"]
                        self.created[labels["fusechat.io/step"]] += 1
            except (client.ApiException, HTTPError):
                version = "0"
                time.sleep(0.2)

    def end(self):
        self._ended.set()
        for thread in self._threads:
            thread.join()
        return self.created


def test_an_operator_killed_twenty_times_makes_every_child_once(plane, start, namespace):
    """SIGKILL at random moments of one run: each step has one child, each Pod ran once, the run succeeds."""
    recorder = Recorder(plane, namespace)
    run = a_run("hardy", sources=4, namespace=namespace, controls=["SFT"])
    names = {step.name for step in plan(load(run)).steps}
    chance = random.Random(7)
    operator = start("op-0", FUSECHAT_LEASE_SECONDS="3")
    plane.apply(run)
    plane.hand.pace = 4.0
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.1, 1.2))
        operator.kill()
        # The same name: the Lease is its own, as that of a container which is started again.
        operator = start("op-0", FUSECHAT_LEASE_SECONDS="3")
        log = operator.log
        plane.wait("it leads again", lambda log=log: "leading as" in log.read_text(), 60)
    assert plane.condition("hardy", "Succeeded", namespace).get("status") != "True", (
        "all kills were of one run"
    )
    status = plane.until("hardy", namespace=namespace, seconds=120)
    created = recorder.end()
    assert {line["name"] for line in status["steps"]} == names
    assert created == dict.fromkeys([*names, "report"], 1)
    assert Counter(played(plane, namespace)) == dict.fromkeys([*names, "report"], 1)
    assert not [line for line in status["steps"] if line.get("tries")]


def test_two_replicas_have_one_leader_and_the_other_takes_over(plane, start, namespace):
    first = start("replica-1")
    plane.wait("the first leads", lambda: "leading as" in first.log.read_text(), 30)
    second = start("replica-2")
    plane.hand.script["fuse-s0"] = [Act(seconds=8)]
    plane.apply(a_run("handed", namespace=namespace))
    wait_for_child(plane, "handed", "fuse-s0", namespace)
    assert "leading as" not in second.log.read_text()
    first.kill()
    plane.until("handed", namespace=namespace)
    assert "leading as" in second.log.read_text()
    assert not [s for s, n in Counter(played(plane, namespace)).items() if n > 1]


def test_a_leader_that_is_stopped_hands_over_at_once(plane, start, namespace):
    first = start("replica-1", FUSECHAT_LEASE_SECONDS="70")
    plane.wait("the first leads", lambda: "leading as" in first.log.read_text(), 30)
    second = start("replica-2", FUSECHAT_LEASE_SECONDS="70")
    time.sleep(3)
    assert first.stop() == 0
    plane.wait("the second leads", lambda: "leading as" in second.log.read_text(), 40)


def test_an_operator_that_is_stopped_while_it_begins_to_lead_ends(plane, start, namespace):
    """kopf takes the signals when it starts, and cancelled there it asks a closed connection for a minute."""
    for turn in range(4):
        early = start(f"early-{turn}")
        for _ in range(12_000):
            if "leading as" in early.log.read_text():
                break
            time.sleep(0.005)
        time.sleep(0.05 * turn)
        assert early.stop() == 0


def test_an_evicted_pod_is_a_disruption_and_free(plane, operator, namespace):
    plane.hand.script["fuse-s0"] = [Act(seconds=300), Act()]
    plane.apply(a_run("evicted", namespace=namespace))
    wait_for_child(plane, "evicted", "fuse-s0", namespace)
    plane.wait("it runs", lambda: "fuse-s0" in played(plane, namespace))
    pod = plane.kubectl(
        "get", "pods", "-n", namespace, "-l", "fusechat.io/step=fuse-s0", "-o", "name"
    ).strip()
    name = pod.removeprefix("pod/")
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace},
    }
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
    plane.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    plane.until("evicted", namespace=namespace)
    assert played(plane, namespace).count("fuse-s0") == 2
    assert Counter(played(plane, namespace))["extract-s0"] == 1


def test_trouble_outside_is_tried_again_and_a_bug_is_not(plane, operator, namespace):
    plane.hand.script["fuse-s0"] = [Act(exit_code=75), Act()]
    plane.hand.script["fuse-s1"] = [Act(exit_code=65), Act()]
    plane.apply(a_run("mixed", namespace=namespace))
    plane.until("mixed", "Stalled", namespace=namespace)
    fine, failed = (plane.step("mixed", name, namespace) for name in ("fuse-s0", "fuse-s1"))
    assert fine["state"] == "Succeeded"
    assert (failed["state"], failed["tries"]["bug"]) == ("Failed", 1)
    assert Counter(played(plane, namespace))["fuse-s0"] == 2
    assert Counter(played(plane, namespace))["fuse-s1"] == 1


def test_a_job_tries_again_by_itself_after_trouble_outside(plane, operator, namespace):
    plane.hand.script["extract-s0"] = [Act(exit_code=75, seconds=10, error="the hub is away"), Act(seconds=3)]
    plane.apply(a_run("own-retry", namespace=namespace))

    def told():
        return plane.condition("own-retry", "Ready", namespace).get("message", "")

    plane.wait("it says why", lambda: "exit code 75; it is tried again" in told(), 60)
    status = plane.until("own-retry", namespace=namespace)
    assert Counter(played(plane, namespace))["extract-s0"] == 2
    assert steps_of(plane, "own-retry", namespace).count("extract-s0") == 1, "one Job, two Pods"
    line = next(line for line in status["steps"] if line["name"] == "extract-s0")
    assert line["tries"]["infrastructure"] == 1


def test_a_job_whose_pods_are_taken_away_again_and_again_ends(plane, operator, namespace):
    plane.hand.script["extract-s0"] = [Act(exit_code=143)] * 9
    plane.apply(a_run("hunted", namespace=namespace, retries={"disruption": 1}))
    plane.until("hunted", "Stalled", namespace=namespace)
    assert "taken away more than 1 times" in plane.condition("hunted", "Ready", namespace)["message"]
    assert 2 <= Counter(played(plane, namespace))["extract-s0"] <= 4, "the next one may have begun"
    assert plane.step("hunted", "extract-s0", namespace)["state"] == "Failed"


def test_the_budget_of_trouble_outside_ends(plane, operator, namespace):
    plane.hand.script["fuse-s0"] = [Act(exit_code=75, error="the hub is away")] * 5
    plane.apply(a_run("spent", namespace=namespace, retries={"infrastructure": 1}))
    plane.until("spent", "Stalled", namespace=namespace)
    assert Counter(played(plane, namespace))["fuse-s0"] == 2
    assert "1 are allowed" in plane.condition("spent", "Ready", namespace)["message"]


def test_a_child_deleted_by_hand_is_made_again(plane, operator, namespace):
    plane.hand.script["align-s0"] = [Act(seconds=300), Act()]
    plane.apply(a_run("handless", namespace=namespace))
    child = wait_for_child(plane, "handless", "align-s0", namespace)
    plane.wait("it runs", lambda: "align-s0" in played(plane, namespace))
    plane.kubectl("delete", "job", child["metadata"]["name"], "-n", namespace)
    status = plane.until("handless", namespace=namespace)
    line = next(line for line in status["steps"] if line["name"] == "align-s0")
    assert line["tries"]["disruption"] == 1
    assert Counter(played(plane, namespace))["align-s0"] == 2


def test_an_artifact_deleted_by_hand_is_made_again_when_a_stage_misses_it(plane, operator, namespace):
    run = a_run("missing", namespace=namespace)
    lacks = Act(seconds=4, exit_code=66, error="its input is not in the store")
    plane.hand.script["filter-s0"] = [lacks, Act()]
    plane.apply(run)
    wait_for_child(plane, "missing", "filter-s0", namespace)
    aligned = str(plan(load(run)).step("align-s0").address)
    plane.store.delete([f"{aligned}/manifest.json"])
    status = plane.until("missing", namespace=namespace)
    counts = Counter(played(plane, namespace))
    assert counts["filter-s0"] == 2
    assert counts["align-s0"] == 2, "what the stage missed was made again"
    assert {line["state"] for line in status["steps"]} == {"Succeeded"}


def test_an_address_published_elsewhere_meanwhile_is_a_hit(plane, operator, namespace):
    """Another cluster publishes what a step here would make while the steps before it still run."""
    elsewhere = plane.namespace()
    run = a_run("meanwhile", namespace=namespace)
    plane.hand.script["extract-s0"] = [Act(seconds=300), Act()]
    plane.apply(run)
    child = wait_for_child(plane, "meanwhile", "extract-s0", namespace)
    twin = json.loads(json.dumps(run))
    twin["metadata"]["namespace"] = elsewhere
    plane.apply(twin)
    plane.until("meanwhile", namespace=elsewhere)
    plane.kubectl("delete", "job", child["metadata"]["name"], "-n", namespace)
    plane.until("meanwhile", namespace=namespace)
    assert Counter(played(plane, namespace))["extract-s0"] == 1
    assert not {"align-s0", "fuse-s0", "merge"} & set(played(plane, namespace))


def test_a_store_that_is_away_for_half_a_minute_stops_nothing_for_good(plane, operator, namespace):
    plane.hand.script["fuse-s0"] = [Act(seconds=3)]
    plane.apply(a_run("outage", namespace=namespace))
    wait_for_child(plane, "outage", "fuse-s0", namespace)
    with plane.store_away():
        message = lambda: plane.condition("outage", "Ready", namespace).get("message", "")  # noqa: E731
        plane.wait("the run says so", lambda: "store" in message().lower(), 40, message)
        assert plane.condition("outage", "Stalled", namespace) == {}
        time.sleep(20)
    plane.until("outage", namespace=namespace, seconds=120)
    again = [step for step, count in Counter(played(plane, namespace)).items() if count > 1]
    assert not [step for step in again if not step.startswith("fuse")]


def test_a_pod_without_room_says_why(plane, operator, namespace):
    plane.apply(a_run("huge", namespace=namespace, resources={"fuse": {"gpus": 1024}}))
    said = lambda: plane.condition("huge", "Ready", namespace).get("message", "")  # noqa: E731
    plane.wait("the run says what is missing", lambda: "Insufficient nvidia.com/gpu" in said(), 60, said)
    assert plane.condition("huge", "Stalled", namespace) == {}, "room may come"


def test_a_child_that_the_api_server_refuses_says_so(plane, operator, namespace):
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few", "namespace": namespace},
        "spec": {"hard": {"count/jobs.batch": "3"}},
    }
    plane.apply(quota)
    plane.apply(a_run("crowded", namespace=namespace))
    said = lambda: plane.condition("crowded", "Ready", namespace).get("message", "")  # noqa: E731
    plane.wait("the run says who refuses", lambda: "exceeded quota" in said(), 60, said)
    plane.kubectl("delete", "resourcequota", "few", "-n", namespace)
    plane.until("crowded", namespace=namespace)


def test_retry_of_nothing_changes_nothing(plane, operator, namespace):
    plane.apply(a_run("calm", namespace=namespace))
    plane.until("calm", namespace=namespace)
    before = len(played(plane, namespace))
    annotate_retry(plane, "calm", namespace)
    plane.wait("it is noted", lambda: plane.status("calm", namespace).get("lastRetry"))
    plane.until("calm", namespace=namespace)
    assert played(plane, namespace)[before:] in ([], ["report"])
