"""How often a step is tried again, by reconcile alone: causes, pauses, what is kept, what is counted."""

from __future__ import annotations

from itertools import pairwise

import pytest
from fusechat_operator.conditions import timestamp

from tests.unit.operator.acts import evicted, fails, finish, nothing, publish
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import World, begun, matching


@pytest.mark.parametrize(
    ("act", "kind", "budget"),
    [
        (evicted, "disruption", {"disruption": 3}),
        (fails(75, "the hub is away"), "infrastructure", {"infrastructure": 3}),
        (fails(69, "the store is away"), "infrastructure", {"infrastructure": 3}),
        (fails(143, "stopped"), "disruption", {"disruption": 3}),
    ],
)
def test_a_training_is_tried_again_as_often_as_the_cause_allows(act, kind, budget):
    world = World(a_run(retries=budget))
    world.script["fuse-s0"] = [act] * 10
    world.drive()
    assert world.attempts("fuse-s0") == 4
    line = world.line("fuse-s0")
    assert (line["state"], line["tries"][kind]) == ("Failed", 4)
    assert sum(line["tries"].values()) == 4
    assert f"{kind} 4 times, and 3 are allowed" in world.condition("Stalled")["message"]
    assert world.condition("Stalled")["reason"] == "StepFailed"
    assert world.attempts("fuse-s1") == 1, "what does not need it goes on"


@pytest.mark.parametrize("code", [64, 65, 70, 1, 2])
def test_a_bug_is_never_tried_again_and_says_what_the_stage_said(code):
    world = World(a_run())
    world.script["extract-s1"] = [fails(code, "the dataset has no supervised token")]
    world.drive()
    assert world.attempts("extract-s1") == 1
    message = world.condition("Stalled")["message"]
    assert message == "extract-s1: the dataset has no supervised token"
    assert world.line("extract-s1")["tries"]["bug"] == 1
    assert world.line("fuse-s0")["state"] == "Succeeded", "what does not need it goes on"
    assert not matching(world.created, "align-s1|merge|report")


def test_a_cause_within_its_budget_ends_well():
    world = World(a_run())
    world.script["fuse-s0"] = [evicted, fails(75), evicted]
    status = world.drive()
    assert world.line("fuse-s0")["tries"] == {"disruption": 2, "infrastructure": 1, "bug": 0}
    assert status["progress"] == "16/16"


def test_trouble_outside_is_tried_again_after_a_pause_that_doubles():
    world = World(a_run())
    world.script["fuse-s0"] = [fails(75)] * 5
    begun_at: list[float] = []
    seen = 0
    for _ in range(4000):
        world.settle()
        if world.attempts("fuse-s0") > seen:
            seen += 1
            begun_at.append(world.now)
        if seen == 5:
            break
        for found in world.active():
            world.play(found)
        world.now += 1.0
    pauses = [b - a for a, b in pairwise(begun_at)]
    assert [round(pause, -1) for pause in pauses] == [10, 20, 40, 80]


def test_nobody_looks_in_vain_while_a_pause_lasts():
    world = begun("fuse-s0")
    fails(75)(world, world.child_of("fuse-s0"))
    decision = world.settle()
    assert decision.again is not None
    assert 5 < decision.again < 11
    assert world.line("fuse-s0")["state"] == "Waiting"
    assert "it is tried again" in world.condition("Ready")["message"]


@pytest.mark.parametrize("act", [fails(65), fails(70)])
def test_a_failed_child_is_kept_for_a_person_to_look_at(act):
    world = World(a_run())
    world.script["fuse-s0"] = [act]
    world.drive()
    assert world.kept == ["fuse-s0"]
    assert "ttlSecondsAfterFinished" not in world.child_of("fuse-s0")["spec"]["runPolicy"]


def test_the_last_child_of_a_spent_budget_is_kept_too():
    world = World(a_run(retries={"infrastructure": 1}))
    world.script["fuse-s0"] = [fails(75)] * 3
    world.drive()
    assert world.kept == ["fuse-s0"]


def test_a_job_that_has_spent_its_own_tries_is_not_replaced():
    world = World(a_run())
    world.script["extract-s0"] = [fails(75, "the store is away", "BackoffLimitExceeded")]
    world.drive()
    assert world.attempts("extract-s0") == 1
    assert world.condition("Stalled")["message"] == "extract-s0: the store is away"


def test_a_child_that_ended_well_without_an_artifact_is_trouble_outside():
    world = World(a_run())
    world.script["merge"] = [lambda w, found: w.end(found, "Complete")]
    world.drive()
    assert world.line("merge")["tries"]["infrastructure"] == 1
    assert world.attempts("merge") == 2


def test_a_failed_child_whose_artifact_is_there_has_succeeded():
    def published_then_killed(world, found):
        publish(world, found)
        evicted(world, found)

    world = World(a_run())
    world.script["fuse-s0"] = [published_then_killed]
    world.drive()
    assert world.attempts("fuse-s0") == 1
    assert "tries" not in world.line("fuse-s0")


def test_a_child_removed_by_hand_is_made_again_and_counts_as_a_disruption():
    world = begun("align-s0")
    world.gone(f"Job/{world.child_of('align-s0')['metadata']['name']}")
    world.script.clear()
    world.drive()
    assert world.attempts("align-s0") == 2
    assert world.line("align-s0")["tries"]["disruption"] == 1


def message(world, step):
    return next(told["message"] for told in world.status()["details"] if told["name"] == step)


def test_the_pods_of_a_vanished_child_end_before_it_is_made_again():
    world = begun("align-s0")
    found = world.child_of("align-s0")
    name = found["metadata"]["name"]
    del world.children[f"Job/{name}"]
    world.add_pod(found, {"phase": "Running"})
    decision = world.settle()
    assert world.attempts("align-s0") == 1
    assert decision.again is not None
    assert message(world, "align-s0") == "its last Pods are ending"
    world.pods.clear()
    world.settle()
    assert world.attempts("align-s0") == 2
    assert world.line("align-s0")["tries"]["disruption"] == 1, "the wait for Pods forgot it"


def test_a_child_that_is_being_removed_is_waited_for():
    world = begun("align-s0")
    found = world.child_of("align-s0")
    found["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    world.settle()
    assert (world.attempts("align-s0"), message(world, "align-s0")) == (1, "its child is being removed")
    world.gone(f"Job/{found['metadata']['name']}")
    world.settle()
    assert world.attempts("align-s0") == 2
    assert world.line("align-s0")["tries"]["disruption"] == 1


def test_gpu_seconds_are_counted_once_and_of_failed_attempts_too():
    world = World(a_run(resources={"fuse": {"gpus": 8}}))

    def after(seconds, act):
        def later(world, found):
            world.now += seconds
            act(world, found)

        return later

    world.script["fuse-s0"] = [after(100.0, evicted), after(50.0, finish)]
    world.script["fuse-s1"] = [nothing] * 2
    world.script |= {name: [after(10.0, finish)] for name in ("extract-pivot",)}
    world.drive()
    spent = world.status()["gpuSeconds"]
    for _ in range(3):
        world.settle()
    assert world.status()["gpuSeconds"] == spent
    assert spent >= 8 * 150 + 10


def goes_unseen(world, step, code, error="bad data"):
    """Its stage ends, and the child is cleared away before anybody looks."""
    found = world.child_of(step)
    began, ended = timestamp(world.now + 1), timestamp(world.now + 5)
    record = {"exitCode": code, "error": error, "started": began, "ended": ended}
    world.attempts_of[world.address(step)] = [record]
    world.gone(f"{found['kind']}/{found['metadata']['name']}")
    world.now += 700


@pytest.mark.parametrize("step", ["extract-s0", "fuse-s0"])
def test_a_bug_that_nobody_saw_is_a_bug_all_the_same(step):
    world = begun(step)
    goes_unseen(world, step, 65)
    world.script.clear()
    world.drive()
    assert (world.attempts(step), world.line(step)["tries"]["bug"]) == (1, 1)
    assert "bad data" in world.condition("Stalled")["message"]


def test_trouble_that_nobody_saw_is_counted_as_such():
    world = begun("extract-s0")
    goes_unseen(world, "extract-s0", 75)
    world.script.clear()
    world.drive()
    assert world.attempts("extract-s0") == 2
    assert world.line("extract-s0")["tries"] == {"disruption": 0, "infrastructure": 1, "bug": 0}


def test_the_bug_of_an_attempt_before_a_retry_is_not_this_ones():
    world = World(a_run())
    world.script = {"extract-s0": [fails(65), *[nothing] * 9]}
    world.attempts_of[world.address("extract-s0")] = [
        {"exitCode": 65, "error": "bad data", "ended": timestamp(world.now)}
    ]
    world.drive()
    world.now += 60
    world.retry()
    world.drive(until=lambda: world.line("extract-s0").get("state") == "Running")
    found = world.child_of("extract-s0")
    world.gone(f"Job/{found['metadata']['name']}")
    world.script.clear()
    world.drive()
    assert world.line("extract-s0")["tries"]["disruption"] == 1


def test_of_ranks_that_nobody_saw_the_one_with_the_bug_counts_and_not_its_echo():
    world = begun("fuse-s0", launcher="Job", fuse={"nodes": 2, "processes": 1})
    goes_unseen(world, "fuse-s0", 65)
    echo = {"exitCode": 1, "error": "connection reset by peer"}
    echo |= {key: timestamp(world.now - 690) for key in ("started", "ended")}  # later than the bug
    world.attempts_of[world.address("fuse-s0")].append(echo)
    world.script.clear()
    world.drive()
    assert (world.attempts("fuse-s0"), world.line("fuse-s0")["tries"]["bug"]) == (1, 1)
    assert "bad data" in world.condition("Stalled")["message"]


def test_the_record_of_an_earlier_attempt_is_not_that_of_one_that_left_none():
    world = World(a_run())
    world.script["fuse-s0"] = [fails(75, "the hub is away"), *[nothing] * 1000]
    world.drive(until=lambda: world.attempts("fuse-s0") == 2)
    ended = timestamp(world.now - 1)
    world.attempts_of[world.address("fuse-s0")] = [{"exitCode": 75, "error": "away", "ended": ended}]
    found = world.child_of("fuse-s0")
    world.gone(f"{found['kind']}/{found['metadata']['name']}")
    world.script.clear()
    world.drive()
    assert world.line("fuse-s0")["tries"] == {"disruption": 1, "infrastructure": 1, "bug": 0}


def test_a_failed_child_that_is_on_its_way_out_before_its_end_was_seen_says_why():
    world = begun("extract-s0")
    world.script.clear()
    found = world.child_of("extract-s0")
    fails(65, "bad data")(world, found)
    found["metadata"]["deletionTimestamp"] = timestamp(world.now)
    world.drive(until=lambda: bool(world.condition("Stalled")))
    assert world.line("extract-s0")["tries"]["bug"] == 1
    assert "bad data" in world.condition("Stalled")["message"]


@pytest.mark.parametrize("change", [{"suspend": True}, {"deadline": "1m"}, {"fuse": {"epochs": 9}}])
def test_the_gpu_seconds_of_a_training_that_is_stopped_are_counted_once(change):
    gpus = {"fuse": {"gpus": 2}}
    world = begun("fuse-s0", resources=gpus)
    found = world.child_of("fuse-s0")
    found["status"] = {**found.get("status", {}), "startTime": timestamp(world.now)}
    world.lingers = True
    before = world.status().get("gpuSeconds", 0.0)
    world.now += 100
    world.edit(**change)
    world.settle()
    world.now += 50
    world.settle()
    assert world.status()["gpuSeconds"] == before + 200


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("GET https://s3/x?X-Amz-Signature=abc123&b=1 failed", "X-Amz-Signature=***&b=1"),
        ("aws_secret_access_key = 'abc/def' is wrong", "aws_secret_access_key = '***'"),
        ("user AKIAABCDEFGHIJKLMNOP may not", "user *** may not"),
        ("no supervised token: 3 of key 'text'", "no supervised token: 3 of key 'text'"),
    ],
)
def test_a_credential_in_an_error_is_not_told(said, kept):
    world = World(a_run())
    world.script = {"extract-s0": [fails(65, said)]}
    world.drive()
    told = world.condition("Stalled")["message"]
    assert kept in told
    assert "abc" not in told
