"""Replicas of the operator as processes with a real Lease: one acts, another goes on; their metrics."""

from __future__ import annotations

import re
import signal
import time
import urllib.request
from collections import Counter

import pytest
from fusechat.plan import plan
from fusechat.spec import load
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.recorded import recorded
from tests.cluster.stagehand import Act, a_run
from tests.cluster.test_lifecycle import wait_for_child
from tests.conftest import CHECKOUT

LEASE_SECONDS = 3
BUSY_SECONDS = 20
"""What a busy machine may add to it."""


def leads(plane, operator, seconds=60):
    return plane.wait(
        "a replica leads",
        lambda: "leading as" in operator.log.read_text(),
        seconds,
        lambda: operator.log.read_text()[-2000:],
    )


def replica(start, number):
    return start(f"replica-{number}", FUSECHAT_LEASE_SECONDS=str(LEASE_SECONDS))


def ask(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
        return answer.read().decode()


def samples(operator):
    """What Prometheus would keep: the value of each series, by its name and labels."""
    families = text_string_to_metric_families(ask(operator.metrics, "metrics"))
    return {(s.name, *s.labels.values()): s.value for each in families for s in each.samples}


def test_one_of_two_replicas_acts_and_when_it_is_killed_the_other_goes_on(plane, start, namespace):
    first = replica(start, 1)
    leads(plane, first)
    second = replica(start, 2)
    plane.hand.script["fuse-s0"] = [Act(seconds=8)]
    with recorded(plane, a_run("handed", namespace=namespace)):
        wait_for_child(plane, "handed", "fuse-s0", namespace)
        assert ask(first.health, "healthz") == "ok (leader)\n"
        assert ask(second.health, "healthz") == "ok (standby)\n"
        one, other = samples(first), samples(second)
        assert (one["fusechat_leader",], other["fusechat_leader",]) == (1, 0)
        assert one["fusechat_children_created_total", "Job"] >= 4
        assert {key[1:] for key in other if key[0] == "fusechat_api_requests_total"} <= {
            ("GET", "leases"),
            ("POST", "leases"),
        }, "who waits looks at the Lease and at nothing else"
        first.kill()
        leads(plane, second, LEASE_SECONDS + BUSY_SECONDS)
        plane.until("handed", namespace=namespace)


def test_a_leader_that_was_frozen_for_longer_than_its_lease_ends_and_has_done_nothing_twice(
    plane, start, namespace
):
    """As a node that hangs, or a machine that is moved: it wakes in the belief that it leads."""
    first = replica(start, 1)
    leads(plane, first)
    second = replica(start, 2)
    for step in ("extract-s0", "extract-s1"):
        plane.hand.script[step] = [Act(seconds=2)]
    for step in ("fuse-s0", "fuse-s1"):
        plane.hand.script[step] = [Act(seconds=10)]
    with recorded(plane, a_run("frozen", namespace=namespace)):
        wait_for_child(plane, "frozen", "extract-s1", namespace)
        first.process.send_signal(signal.SIGSTOP)
        leads(plane, second, LEASE_SECONDS + BUSY_SECONDS)
        wait_for_child(plane, "frozen", "fuse-s0", namespace)
        first.process.send_signal(signal.SIGCONT)
        assert first.process.wait(timeout=BUSY_SECONDS) == 1
        assert "the Lease was lost" in first.log.read_text()
        assert plane.condition("frozen", "Succeeded", namespace).get("status") == "Unknown"
        plane.until("frozen", namespace=namespace)
    assert second.process.poll() is None


def test_a_leader_that_is_stopped_hands_over_at_once(plane, start, namespace):
    first = start("replica-1", FUSECHAT_LEASE_SECONDS="70")
    leads(plane, first, 30)
    second = start("replica-2", FUSECHAT_LEASE_SECONDS="70")
    time.sleep(3)
    assert first.stop() == 0
    leads(plane, second, 40)


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


def test_its_metrics_are_those_of_the_docs_and_tell_what_a_run_was(plane, start, namespace):
    operator = start(FUSECHAT_WATCH_NAMESPACES=namespace)  # the runs of other tests would count
    leads(plane, operator)
    run = a_run("counted", namespace=namespace)
    plane.hand.script["fuse-s0"] = [Act(exit_code=75, seconds=3), Act(seconds=3)]
    plane.apply(run)
    plane.wait("it is at work", lambda: samples(operator)["fusechat_active_runs", "Running"] == 1)
    status = plane.until("counted", namespace=namespace)
    ended = ("fusechat_runs_ended_total", "Succeeded")
    plane.wait("it is counted", lambda: samples(operator).get(ended))
    said, stages = samples(operator), Counter(step.stage for step in plan(load(run)).steps)

    def labelled(name):
        return {key[1:]: value for key, value in said.items() if key[0] == name}

    assert labelled("fusechat_steps_total") == {(s, "Succeeded"): n for s, n in stages.items()}
    assert labelled("fusechat_step_seconds_count") == {(s,): n for s, n in stages.items()}
    jobs = stages.total() - stages["fuse"] + 1  # a report
    assert labelled("fusechat_children_created_total") == {("Job",): jobs, ("PyTorchJob",): 3}
    assert labelled("fusechat_runs_ended_total") == {("Succeeded",): 1}
    assert labelled("fusechat_active_runs") == {("Running",): 0, ("Waiting",): 0, ("Suspended",): 0}
    assert labelled("fusechat_events_total")["StepRetried",] == 1
    assert said["fusechat_gpu_seconds_total",] == pytest.approx(status["gpuSeconds"])
    assert said["fusechat_gpu_seconds_total",] > 0
    assert said["fusechat_api_requests_total", "POST", "pytorchjobs"] == 3
    assert said["fusechat_reconcile_seconds_count",] > stages.total()
    assert said["fusechat_faults_total",] == 0
    kinds = re.findall(r"^# TYPE (\w+) (\w+)", ask(operator.metrics, "metrics"), re.MULTILINE)
    names = {name for name, kind in kinds if (kind, name[-8:]) != ("gauge", "_created")}
    documented = re.findall(r"^\| (fusechat_\w+)", (CHECKOUT / "docs/operator.md").read_text(), re.MULTILINE)
    assert names == {*documented}
