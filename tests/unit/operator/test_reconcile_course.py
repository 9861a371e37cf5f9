"""A run's course by reconcile alone, in a world of dicts: in order, cached, edited, ended."""

from __future__ import annotations

import json

import pytest
from fusechat_operator.decision import Decision
from fusechat_operator.facts import Ask

from tests.unit.operator.acts import fails, finish, step_of, told
from tests.unit.operator.runs import STORE, a_run
from tests.unit.operator.world import Crash, World, begun


def test_every_step_is_created_once_and_after_its_inputs():
    world = World(a_run())
    status = world.drive()
    steps = world.plan().steps
    assert world.created[-1] == "report"
    assert sorted(world.created[:-1]) == sorted(step.name for step in steps)
    for step in steps:
        later = world.created.index(step.name)
        assert all(world.created.index(name) < later for name in step.inputs.values())
    assert {line["name"]: line["address"] for line in status["steps"]} == {
        step.name: str(step.address).rpartition("/")[2][:10] for step in steps
    }
    assert (status["progress"], status["cached"]) == ("16/16", "0/16")
    assert status["model"].endswith(str(world.plan().step("merge").address))
    assert status["score"] == "0.500"
    assert not world.deleted


def test_the_steps_of_a_run_are_as_many_while_its_report_is_made():
    world = World(a_run())
    seen = set()

    def report_runs():
        seen.add(world.status().get("progress"))
        return "report" in world.created

    world.drive(until=report_runs)
    assert world.line("report")["state"] == "Running"
    assert (world.status()["progress"], world.status()["cached"]) == ("16/16", "0/16")
    assert {each.rpartition("/")[2] for each in seen if each} == {"16"}


def test_what_may_start_together_is_started_in_one_look():
    world = World(a_run())
    first = world.decide()
    assert {step_of(m) for m in first.create} == {
        "fetch-pivot", "fetch-s0", "fetch-s1", "fetch-dataset", "fetch-exactmatch"
    }  # fmt: skip
    world.carry_out("run", first)
    for found in world.active():
        finish(world, found)
    assert [step_of(m) for m in world.decide().create] == ["extract-pivot", "extract-s0", "extract-s1"]


def test_a_cached_run_probes_only_its_sinks_and_starts_only_its_report():
    world = World(a_run("first", data="x"))
    world.drive("first")
    world.asked.clear()
    world.at_once = False
    world.add(a_run("again", data="x"))
    world.drive("again")
    sinks = {str(step.address) for step in world.plan("again").sinks()}
    report = told(world.child_of("report", "again")).address
    assert {ask.key for ask in world.asked if ask.what in ("artifact", "hit", "sink")} == sinks | {report}
    assert {ask.key for ask in world.asked if ask.what == "child"} == {
        f"Job/{world.child_of('report', 'again')['metadata']['name']}"
    }
    assert world.created[17:] == ["report"]
    assert world.states("again") == {"Cached"}
    assert world.condition("Ready", "again")["message"].startswith("everything was cached")


def test_a_report_that_was_created_just_before_a_crash_is_not_made_again():
    world = World(a_run("first", data="x"))
    world.drive("first")
    world.add(a_run("again", data="x"))
    with pytest.raises(Crash):
        world.turn("again", most=3)  # its references, its record, its report; not its status
    assert world.created[17:] == ["report"]
    world.drive("again")
    assert world.created[17:] == ["report"]


def test_hits_are_probed_from_the_sinks_backwards():
    world = World(a_run("first", data="x"))
    world.drive("first")
    address = str(world.plan("first").step("merge").address)
    evaluated = str(world.plan("first").step("evaluate-fused").address)
    del world.artifacts[address], world.artifacts[evaluated]
    world.add(a_run("again", data="x"))
    world.asked.clear()
    world.at_once = False
    world.decide("again")
    probed = {ask.key.partition("/")[0] for ask in world.asked if ask.what in ("artifact", "hit", "sink")}
    assert probed == {"evaluate", "merge", "fuse", "fetch"}, "fuse is a hit: what it was made of is not asked"
    world.drive("again")
    assert world.created[17:] == ["merge", "evaluate-fused", "report"]


def test_the_references_are_written_before_anything_is_created():
    world = World(a_run())
    names = []
    decision = world.decide()
    for effect in world.effects("run", decision):
        before = (set(world.documents), len(world.created))
        effect()
        names.append((set(world.documents) - before[0], len(world.created) - before[1]))
    assert names[0] == ({f"refs/cluster/{world.runs['run']['metadata']['uid']}.json"}, 0)
    (refs,) = world.documents.values()
    named = {str(step.address) for step in world.plan().steps}
    assert named < set(refs["addresses"])
    assert {address.partition("/")[0] for address in set(refs["addresses"]) - named} == {"report"}


@pytest.mark.parametrize("then", [lambda world: None, World.retry, lambda world: world.edit(ttl="20m")])
def test_the_references_name_the_page_that_the_status_links_to_and_what_pinned_the_inputs(then):
    world = World(a_run(pinned=False))
    world.drive()
    (refs,) = [d for name, d in world.documents.items() if name.startswith("refs/")]
    assert len([a for a in refs["addresses"] if a.startswith("resolve/")]) == 1
    then(world)
    world.drive()
    (refs,) = [d for name, d in world.documents.items() if name.startswith("refs/")]
    assert world.status()["report"].removeprefix(f"{STORE}/") in refs["addresses"]


def test_a_failed_run_has_a_record_too():
    world = World(a_run())
    world.script = {"fuse-s0": [fails(65, "row 7 is no row")]}
    times = ("2027-01-15T08:00:00.000Z", "2027-01-15T08:00:30.500Z")
    for step, code in (("fetch-s0", 0), ("fuse-s0", 65)):
        attempt = {"exitCode": code, "started": times[0], "ended": times[1]}
        world.attempts_of[world.address(step)] = [attempt]
    world.drive()
    assert world.condition("Stalled")["reason"] == "StepFailed"
    steps = recorded(world)
    assert (steps["fetch-s0"]["state"], steps["fetch-s0"]["seconds"]) == ("Succeeded", 30.5)
    assert (steps["fuse-s0"]["state"], steps["fuse-s0"]["attempts"]) == ("Failed", 1)
    assert "row 7 is no row" in steps["fuse-s0"]["error"]
    assert steps["filter-s0"]["metrics"]["keptShare"] == 0.9
    assert steps["merge"]["state"] == "Pending"


def test_a_run_past_its_deadline_has_a_record_of_what_it_did():
    world = begun("fuse-s0", deadline="10m")
    world.now += 700
    world.settle()
    assert world.condition("Stalled")["reason"] == "DeadlineExceeded"
    steps = recorded(world)
    assert (steps["filter-s0"]["state"], steps["filter-s0"]["metrics"]["keptShare"]) == ("Succeeded", 0.9)
    assert (steps["fuse-s0"]["state"], steps["merge"]["state"]) == ("Pending", "Pending")


def test_a_store_that_is_away_does_not_keep_a_run_from_its_deadline():
    world = begun("fuse-s0", deadline="10m")
    world.now += 700
    world.away = lambda ask: ask.what in ("artifact", "hit", "sink", "metrics", "progress", "attempts")
    world.settle()
    assert world.condition("Stalled")["reason"] == "DeadlineExceeded"
    assert world.deleted == ["fuse-s0"]
    assert recorded(world)["filter-s0"]["metrics"] == {}


def recorded(world):
    """The steps of the run's record by name."""
    (record,) = [d for name, d in world.documents.items() if name.startswith("runs/")]
    return {step["name"]: step for step in record["steps"]}


def test_the_record_is_written_before_the_report_that_is_made_of_it():
    world = World(a_run())
    world.drive()
    record = world.documents[f"runs/{world.runs['run']['metadata']['uid']}.json"]
    assert [step["name"] for step in record["steps"]] == [step.name for step in world.plan().steps]
    assert {step["state"] for step in record["steps"]} == {"Succeeded"}
    evaluated = next(step for step in record["steps"] if step["name"] == "evaluate-fused")
    assert evaluated["metrics"]["score"] == 0.5


def test_the_record_has_the_time_and_the_number_of_all_attempts():
    world = World(a_run())
    address = str(world.plan().step("merge").address)
    times = [("2027-01-15T08:00:00.000Z", "2027-01-15T08:00:30.500Z")] * 2
    world.attempts_of[address] = [{"exitCode": 0, "started": a, "ended": b} for a, b in times]
    world.drive()
    (record,) = [d for name, d in world.documents.items() if name.startswith("runs/")]
    merged = next(step for step in record["steps"] if step["name"] == "merge")
    assert (merged["seconds"], merged["attempts"]) == (61.0, 2)


def test_a_new_generation_keeps_what_is_done():
    world = World(a_run())
    world.drive()
    before = len(world.created)
    world.edit(merge={"method": "linear"})
    status = world.drive()
    assert world.created[before:] == ["merge", "evaluate-fused", "report"]
    assert {line["name"] for line in status["steps"] if line["state"] == "Succeeded"} == {
        "merge", "evaluate-fused"
    }  # fmt: skip
    assert (status["observedGeneration"], status["plan"]["generation"]) == (2, 2)


def test_an_edit_in_the_middle_deletes_what_nobody_needs_and_keeps_what_runs_on():
    world = begun("fuse-s0", "fuse-s1")
    kept = world.child_of("fuse-s1")["metadata"]["uid"]
    sources = world.runs["run"]["spec"]["sources"]
    world.script.clear()
    world.edit(sources=sources[1:])
    decision = world.decide()
    obsolete = {child.name for child in decision.stop if child.phase == "Active"}
    assert obsolete == {world.child_of("fuse-s0")["metadata"]["name"]}
    world.carry_out("run", decision)
    assert world.child_of("fuse-s1")["metadata"]["uid"] == kept
    assert "fuse-s0" in world.deleted
    world.drive()
    assert world.created.count("fuse-s1") == 1


def test_an_edit_that_changes_no_address_recomputes_nothing():
    world = World(a_run())
    world.drive()
    before = len(world.created)
    world.edit(retries={"disruption": 3}, ttl="1h")
    world.drive()
    assert world.created[before:] == ["report"]


def test_a_succeeded_run_does_nothing_whatever_the_world_does():
    world = World(a_run())
    status = json.loads(json.dumps(world.drive()))
    world.artifacts.clear()
    world.children.clear()
    world.now += 1e7
    world.asked.clear()
    world.at_once = False
    assert world.decide() == Decision()
    assert not world.asked, "not even a question"
    assert world.status() == status


def test_a_run_that_is_being_deleted_is_left_alone():
    world = begun("merge")
    world.runs["run"]["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    assert world.decide() == Decision()


def test_the_store_is_asked_about_nothing_twice_in_a_look():
    world = World(a_run())
    world.drive(until=lambda: "merge" in world.created)
    world.asked.clear()
    world.at_once = False
    world.decide()
    assert set(world.asked.values()) == {1}
    assert not [ask for ask in world.asked if ask.what == "own"], "the whole list is for new generations"
    assert Ask("launchers") not in world.asked


def test_results_of_an_earlier_generation_are_not_those_of_a_later_one():
    world = World(a_run(data="x"))
    assert world.drive()["scores"]
    questions = world.runs["run"]["spec"]["dataset"]
    world.edit(evaluate={"perplexity": questions, "subjects": ["Fused"]})
    world.metrics["perplexity-fused"] = {"score": None, "bitsPerByte": None}
    status = world.drive()
    assert not [s for s in status.get("scores", ()) if s["benchmark"] == "exactMatch"]
