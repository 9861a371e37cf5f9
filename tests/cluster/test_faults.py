"""What clusters do to a run: nothing is lost, nothing runs twice, nothing is left over. Stages are played.

`recorded` judges it, by a watch from beginning to end, of every run whose fault is over in its block.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter

import pytest
from fusechat.errors import FusechatError
from fusechat.plan import plan
from fusechat.spec import load
from fusechat_operator import naming

from tests.cluster.recorded import recorded
from tests.cluster.stagehand import Act, a_run
from tests.cluster.test_lifecycle import annotate_retry, patch, played, steps_of, wait_for_child

KILLS = 20
AWAY_SECONDS = 30.0
FREE = {"disruption": 1, "infrastructure": 0, "bug": 0}
BUG = {"disruption": 0, "infrastructure": 0, "bug": 1}


def pod_at_work(plane, step, namespace):
    """The name of the newest Pod of a step, once it runs."""

    def found():
        pods = plane.listed("pod", namespace, f"{naming.STEP}={step}")
        return [pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running"]

    return plane.wait(f"{step} runs", found)[0]


def kill_for_memory(plane, pod, namespace):
    """What a kubelet writes when the kernel has ended a container that was over its limit."""
    found = plane.get("pod", pod, namespace)["status"]["containerStatuses"][0]
    state = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    told = {"phase": "Failed", "containerStatuses": [{**found, "ready": False, "state": state}]}
    words = ("--subresource=status", "--type=merge", "-p", json.dumps({"status": told}))
    plane.kubectl("patch", "pod", pod, "-n", namespace, *words)


def test_an_operator_killed_twenty_times_makes_every_child_once(plane, start, namespace):
    """SIGKILL at random moments of one run, half while it starts: each step has one child and one Pod."""
    run = a_run("hardy", sources=4, namespace=namespace, controls=["SFT"])
    chance, early, seen = random.Random(7), 0, set()
    plane.hand.pace = 4.0
    with recorded(plane, run) as record:
        for turn in range(KILLS):
            # The same name: the Lease is its own, as that of a container which is started again.
            operator = start("op-0", FUSECHAT_LEASE_SECONDS="3")
            log = operator.log
            if turn % 2:
                plane.wait("it leads", lambda log=log: "leading as" in log.read_text(), 60)
                time.sleep(chance.uniform(0.0, 1.2))
            else:
                time.sleep(chance.uniform(0.0, 1.0))
            operator.kill()
            early += "leading as" not in log.read_text()
            seen.add(record.made().total())
        start("op-0", FUSECHAT_LEASE_SECONDS="3")
        assert plane.condition("hardy", "Succeeded", namespace).get("status") != "True", "all were of one run"
        assert early >= KILLS // 4, "some fall before it leads"
        assert len(seen) >= 3, "the run goes on between them"
        status = plane.until("hardy", namespace=namespace, seconds=120)
        assert {line["name"] for line in status["steps"]} == {step.name for step in plan(load(run)).steps}
        assert not [line for line in status["steps"] if line.get("tries")]


@pytest.mark.parametrize("step", ["fuse-s0", "extract-s0"])
def test_an_evicted_pod_is_a_disruption_and_free(plane, operator, namespace, step):
    """A Job makes its Pod anew; of a training its controller does where it has not seen the old one end."""
    plane.hand.script[step] = [Act(seconds=300), Act()]
    name, children = f"evicted-{step}", {step: 1}  # each a recipe of its own
    with recorded(plane, a_run(name, namespace=namespace), children, {step: 2}) as record:
        pod = pod_at_work(plane, step, namespace)
        api, meta = "policy/v1", {"name": pod, "namespace": namespace}
        eviction = json.dumps({"apiVersion": api, "kind": "Eviction", "metadata": meta})
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        plane.kubectl("create", "--raw", path, "-f", "-", stdin=eviction)
        plane.until(name, namespace=namespace)
        if step == "fuse-s0" and record.made()[step] == 2:
            children[step] = 2
        told = plane.step(name, step, namespace).get("tries")
        assert told == FREE or (told is None and children[step] == 1), "never a bug, and never unseen by us"


@pytest.mark.parametrize("step", ["fuse-s0", "extract-s0"])
def test_a_pod_over_its_memory_is_not_tried_again_before_it_has_more(plane, operator, namespace, step):
    name = f"thick-{step}"
    plane.hand.script[step] = [Act(seconds=300), Act()]
    with recorded(plane, a_run(name, namespace=namespace), {step: 2}, {step: 2}) as record:
        kill_for_memory(plane, pod_at_work(plane, step, namespace), namespace)
        plane.until(name, "Stalled", namespace=namespace)
        assert "OOMKilled" in plane.condition(name, "Ready", namespace)["message"]
        line = plane.step(name, step, namespace)
        assert (line["state"], line["tries"]) == ("Failed", BUG)
        assert record.ran()[step] == 1
        patch(plane, name, namespace, {"resources": {step.partition("-")[0]: {"memory": "64Gi"}}})
        plane.until(name, namespace=namespace)


def test_trouble_outside_is_tried_again_and_a_bug_is_not(plane, operator, namespace):
    plane.hand.script["fuse-s0"] = [Act(exit_code=75), Act()]
    plane.hand.script["fuse-s1"] = [Act(exit_code=65), Act()]
    run, again = a_run("mixed", namespace=namespace), {"fuse-s0": 2}
    with recorded(plane, run, again, again, fails=["fuse-s1"]):
        plane.until("mixed", "Stalled", namespace=namespace)
        fine, failed = (plane.step("mixed", name, namespace) for name in ("fuse-s0", "fuse-s1"))
        assert (fine["state"], fine["tries"]["infrastructure"]) == ("Succeeded", 1)
        assert (failed["state"], failed["tries"]) == ("Failed", BUG)


def test_a_job_with_bad_data_is_not_tried_again(plane, operator, namespace):
    plane.hand.script["extract-s0"] = [Act(exit_code=65), Act()]
    with recorded(plane, a_run("bad", namespace=namespace), fails=["extract-s0"]):
        plane.until("bad", "Stalled", namespace=namespace)
        assert plane.step("bad", "extract-s0", namespace)["tries"] == BUG
        assert plane.step("bad", "fuse-s1", namespace)["state"] == "Succeeded", "the rest goes on"


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


@pytest.mark.parametrize("step", ["align-s0", "fuse-s0"])
def test_a_child_deleted_by_hand_is_made_again(plane, operator, namespace, step):
    name = f"handless-{step}"
    plane.hand.script[step] = [Act(seconds=300), Act()]
    with recorded(plane, a_run(name, namespace=namespace), {step: 2}, {step: 2}):
        child = wait_for_child(plane, name, step, namespace)
        pod_at_work(plane, step, namespace)
        plane.kubectl("delete", child["kind"].lower(), child["metadata"]["name"], "-n", namespace)
        plane.until(name, namespace=namespace)
        assert plane.step(name, step, namespace)["tries"] == FREE


def test_an_artifact_deleted_by_hand_is_made_again_when_a_stage_misses_it(plane, operator, namespace):
    run, again = a_run("missing", namespace=namespace), {"filter-s0": 2, "align-s0": 2}
    lacks = Act(seconds=4, exit_code=66, error="its input is not in the store")
    plane.hand.script["filter-s0"] = [lacks, Act()]
    with recorded(plane, run, again, again):
        wait_for_child(plane, "missing", "filter-s0", namespace)
        aligned = str(plan(load(run)).step("align-s0").address)
        plane.store.delete([f"{aligned}/manifest.json"])
        status = plane.until("missing", namespace=namespace)
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


def test_a_store_that_is_away_for_half_a_minute_stops_nothing_and_repeats_nothing(plane, operator, namespace):
    for step in ("fuse-s0", "fuse-s1"):
        plane.hand.script[step] = [Act(seconds=3, holds=True)]
    late = a_run("late", namespace=plane.namespace())
    said = lambda: plane.condition("late", "Ready", late["metadata"]["namespace"])  # noqa: E731
    with recorded(plane, a_run("outage", namespace=namespace)):
        for step in ("fuse-s0", "fuse-s1"):
            pod_at_work(plane, step, namespace)
        with plane.store_away():
            gone = time.monotonic()
            plane.apply(late)
            plane.wait(
                "a run that needs it says so", lambda: said().get("reason") == "StoreUnavailable", 40, said
            )
            assert "cannot be reached" in said()["message"]
            while time.monotonic() - gone < AWAY_SECONDS:
                with pytest.raises(FusechatError):
                    plane.store.get_json("anything.json")
                time.sleep(1)
            assert all(
                plane.step("outage", s, namespace)["state"] == "Running" for s in ("fuse-s0", "fuse-s1")
            )
            assert plane.condition("outage", "Stalled", namespace) == {}
        plane.until("outage", namespace=namespace, seconds=120)
        plane.until("late", namespace=late["metadata"]["namespace"], seconds=120)


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
