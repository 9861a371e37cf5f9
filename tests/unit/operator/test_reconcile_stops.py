"""What stops a run or lets it go on, by reconcile alone: suspend, deadline, gates, retry, time to live."""

from __future__ import annotations

from fusechat_operator import naming
from fusechat_operator.decision import Decision

from tests.unit.operator.acts import fails, finish, nothing
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import World, begun, matching


def test_nothing_is_created_while_suspended_and_active_children_go_with_grace():
    world = begun("fuse-s0")
    world.lingers = True
    active = world.child_of("fuse-s0")
    before = len(world.created)
    world.edit(suspend=True)
    decision = world.turn()
    assert [child.name for child in decision.stop] == [active["metadata"]["name"]]
    assert decision.again is not None
    assert "saving and stopping" in world.condition("Suspended")["message"]
    world.gone(f"PyTorchJob/{active['metadata']['name']}")
    world.settle()
    world.now += 1e6
    decision = world.settle()
    assert (decision.again, len(world.created)) == (None, before)
    assert {world.condition(kind)["status"] for kind in ("Suspended", "Reconciling")} == {"True"}
    assert world.condition("Succeeded")["status"] == "Unknown"


def test_a_resumed_run_goes_on_where_it_was_and_counts_no_attempt():
    world = begun("fuse-s0")
    world.edit(suspend=True)
    world.settle()
    world.edit(suspend=False)
    world.script.clear()
    status = world.drive()
    assert world.created.count("fuse-s0") == 2
    assert {step for step in world.created if world.created.count(step) > 1} == {"fuse-s0"}
    assert not [line for line in status["steps"] if "tries" in line]
    assert world.condition("Suspended")["status"] == "False"


def test_the_time_that_a_run_is_suspended_does_not_count_to_its_deadline():
    world = begun("fuse-s0", deadline="10m")
    world.now += 500
    world.edit(suspend=True)
    world.settle()
    world.now += 1e5
    world.edit(suspend=False)
    again = world.settle().again
    assert world.condition("Stalled") == {}
    assert again is not None
    assert again <= 10 * 60 + 1
    world.now += 599
    world.settle()
    assert world.condition("Stalled") == {}
    world.now += 2
    world.settle()
    assert world.condition("Stalled")["reason"] == "DeadlineExceeded"


def test_a_run_that_is_created_suspended_begins_when_it_is_not():
    world = World(a_run(suspend=True))
    world.settle()
    assert not world.created
    world.edit(suspend=False)
    world.drive()


def test_a_deadline_ends_the_run_and_stops_what_runs():
    world = begun("fuse-s0", deadline="10m")
    left = world.settle().again
    assert left is not None
    world.now += 700
    world.settle()
    stalled = world.condition("Stalled")
    assert stalled["reason"] == "DeadlineExceeded"
    assert "deadline of 10m" in stalled["message"]
    assert world.deleted == ["fuse-s0"]
    assert not world.active()
    created = len(world.created)
    world.now += 1e5
    assert world.settle() == Decision()
    assert len(world.created) == created


def test_a_run_is_looked_at_when_its_deadline_comes():
    world = begun("fuse-s0", deadline="10m")
    until = world.settle().again
    assert until is not None
    assert until <= 10 * 60 + 1


def test_an_edit_long_after_the_end_has_the_whole_deadline_again():
    world = World(a_run(deadline="10m"))
    world.drive()
    world.now += 24 * 3600
    world.edit(merge={"method": "linear"})
    world.drive()
    assert world.condition("Stalled") == {}


def test_a_retry_after_the_deadline_has_the_whole_deadline_again_and_counts_no_attempt():
    world = begun("fuse-s0", deadline="10m")
    world.now += 700
    world.settle()
    world.script.clear()
    world.retry()
    status = world.drive()
    assert world.created.count("fuse-s0") == 2
    assert not [line for line in status["steps"] if "tries" in line]


def test_a_retry_of_a_succeeded_run_makes_at_most_its_report_anew():
    world = World(a_run())
    world.drive()
    count = len(world.created)
    world.retry()
    status = world.drive()
    assert world.created[count:] in ([], ["report"])
    assert status["lastRetry"] == world.runs["run"]["metadata"]["annotations"][naming.RETRY_AT]


def test_finished_trainjobs_go_after_the_ttl_for_they_have_none_of_their_own():
    world = World(a_run(launcher="TrainJob", ttl="10m"))
    world.drive()
    decision = world.settle()
    assert (len(decision.delete), decision.again is not None) == (0, True)
    world.now += decision.again + 1
    world.settle()
    assert sorted(world.deleted) == ["fuse-s0", "fuse-s1"]
    assert world.settle() == Decision()


def test_a_gate_stops_before_the_training_and_a_lower_one_goes_on():
    world = World(a_run(gates={"keptShare": 0.95}))
    world.drive()
    stalled = world.condition("Stalled")
    assert (stalled["reason"], "keptShare" in stalled["message"]) == ("GateClosed", True)
    assert not matching(world.created, "fuse.*")
    world.edit(gates={"keptShare": 0.5})
    world.drive()
    assert world.condition("Ready")["status"] == "True"


def test_a_gate_whose_measure_cannot_be_read_is_not_open():
    world = World(a_run(gates={"keptShare": 0.95}))
    world.script["filter-s0"] = [nothing]
    world.drive(until=lambda: world.line("filter-s1").get("state") == "Succeeded")
    world.away = lambda ask: ask.what == "metrics"
    finish(world, world.child_of("filter-s0"))
    world.settle()
    world.settle()
    assert not matching(world.created, "fuse.*")
    assert world.condition("Ready")["reason"] == "StoreUnavailable"
    world.away = lambda ask: False
    world.drive()
    assert world.condition("Stalled")["reason"] == "GateClosed"


def test_a_retry_begins_the_failed_steps_again_with_full_budgets():
    world = World(a_run(retries={"infrastructure": 0}))
    world.script = {"fuse-s0": [fails(75)], "extract-s1": [fails(65)]}
    world.drive()
    failed = {line["name"] for line in world.status()["steps"] if line["state"] == "Failed"}
    assert failed == {"fuse-s0", "extract-s1"}
    world.retry()
    world.drive()
    assert {step for step in world.created if world.attempts(step) > 1} == failed
    assert world.condition("Ready")["status"] == "True"
    assert "tries" not in world.line("fuse-s0")


def test_a_retry_creates_when_the_old_child_is_gone_and_not_before():
    world = World(a_run())
    world.script["merge"] = [fails(65)]
    world.drive()
    old = world.child_of("merge")
    world.lingers = True
    world.retry()
    world.settle()
    assert world.deleted == ["merge"]
    assert world.attempts("merge") == 1
    world.lingers = False
    world.gone(f"Job/{old['metadata']['name']}")
    world.drive()
    assert world.attempts("merge") == 2


def test_the_same_retry_is_obeyed_once():
    world = World(a_run())
    world.script["merge"] = [fails(65), fails(65, "again")]
    world.drive()
    world.retry()
    world.drive()
    assert world.condition("Stalled")["message"] == "merge: again"
    world.now += 1e5
    world.settle()
    assert world.attempts("merge") == 2


def test_a_failed_step_stays_failed_while_the_rest_goes_on_whoever_removes_its_child():
    world = World(a_run())
    world.script = {"extract-s1": [fails(65)], "fuse-s0": [nothing] * 1000}
    world.drive(until=lambda: world.line("fuse-s0").get("state") == "Running")
    found = world.child_of("extract-s1")
    found["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    world.settle()
    world.gone(f"Job/{found['metadata']['name']}")
    world.settle()
    assert world.line("extract-s1")["state"] == "Failed"
    assert world.attempts("extract-s1") == 1
