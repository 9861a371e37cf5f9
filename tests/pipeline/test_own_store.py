"""A run with a store of its own: the engine asks it through probes, whose real code meets a real store."""

from __future__ import annotations

import pytest
from fusechat import inquiry
from fusechat.errors import Unavailable
from fusechat.store import Store
from fusechat_operator import own_store
from fusechat_operator.children import child
from fusechat_operator.cluster import ApiRefusal
from fusechat_operator.workloads import NO_KUEUE, Queued
from fusechat_stages import probe

from tests.pipeline.asking import Asking, an_engine, drive, look
from tests.unit.operator.acts import fails, nothing
from tests.unit.operator.runs import a_run
from tests.unit.operator.world import World

STORAGE = {"secretRef": {"name": "team-keys"}}


@pytest.fixture
def make(store, tmp_path, monkeypatch):
    """(engine, edges) of one run in the store, or of what else the spec says."""

    def one(storage=None, first=1, **told):
        told["storage"] = storage or {
            **STORAGE,
            "uri": store.uri.rstrip("/"),
            "endpoint": store.place.endpoint,
        }
        world = World()
        world.count = first * 1000  # another run has another uid
        world.add(a_run(**told))
        edges = Asking(world, store, tmp_path, monkeypatch)
        return an_engine(edges, monkeypatch), edges

    return one


def test_a_run_in_its_own_store_goes_to_its_end_and_makes_each_step_once(make, store):
    engine, edges = make()
    status = drive(engine, edges)
    world = edges.world
    assert world.condition("Succeeded")["status"] == "True"
    assert sorted(world.created) == sorted(set(world.created))
    assert edges.done("document", "forget") == [], "the operator itself writes nothing"
    assert status["scores"][0]["score"] == 0.5
    assert status["model"].startswith(store.uri.rstrip("/"))
    uid = world.runs["run"]["metadata"]["uid"]
    assert store.get_json(f"refs/cluster/{uid}.json")["run"] == "run"
    assert edges.jobs == {}, "a probe that was read is deleted"
    assert not engine._own, "nothing of a run that is over is remembered"


def test_the_record_has_all_metrics_though_the_operator_knows_a_few(make, store):
    engine, edges = make()
    drive(engine, edges)
    record = store.get_json(f"runs/{edges.world.runs['run']['metadata']['uid']}.json")
    assert {step["metrics"]["rows"] for step in record["steps"]} == {7}


def test_what_is_not_pinned_is_resolved_first(make):
    engine, edges = make(pinned=False)
    status = drive(engine, edges)
    assert edges.world.created[0].startswith("resolve")
    assert len(status["plan"]["pins"]) == 5


def test_a_second_run_of_the_same_recipe_is_cached_and_asks_a_few_times(make):
    drive(*make(data="x"))
    engine, edges = make(data="x", first=2)
    status = drive(engine, edges)
    assert {line["state"] for line in status["steps"]} == {"Cached"}
    assert edges.world.created == ["report"]
    whole_plan = len(status["steps"])
    assert len(edges.asked[0]) == whole_plan, "one Job asks the whole plan"
    assert len(edges.asked) <= 5


def test_an_ended_child_is_not_judged_by_an_answer_from_before_its_end(make):
    engine, edges = make()
    world = edges.world
    world.script = {"fetch-s0": [nothing] * 99}
    for _ in range(8):
        look(engine)
        world.now += 1
    found = world.child_of("fetch-s0")
    address = child(found).address
    store_of_run = engine._own["team", "run"]
    store_of_run._answers["artifact", address] = ("", None)  # asked before the child had ended
    world.script = {}
    world.play(found)
    edges.publish()
    for _ in range(6):
        look(engine)
        world.now += 1
    assert world.line("fetch-s0")["state"] == "Succeeded"
    assert "tries" not in world.line("fetch-s0")


def test_a_failed_child_is_explained_by_its_attempts_in_one_probe(make):
    engine, edges = make()
    edges.world.script = {"filter-s0": [fails(65, "no rows")]}
    status = drive(engine, edges)
    assert "no rows" in edges.world.condition("Stalled")["message"]
    assert {"name": "filter-s0", "state": "Failed"}.items() <= next(
        line for line in status["steps"] if line["name"] == "filter-s0"
    ).items()


def test_an_operator_that_dies_finds_its_probe_again(make, monkeypatch):
    engine, edges = make()
    edges.slow = True
    look(engine)
    (name,) = edges.jobs
    again = an_engine(edges, monkeypatch)
    look(again)
    assert list(edges.jobs) == [name]
    edges.play(edges.jobs[name])
    edges.slow = False
    drive(again, edges)
    assert sorted(edges.world.created) == sorted(set(edges.world.created))


def test_a_probe_is_not_taken_for_an_obsolete_child(make):
    engine, edges = make()
    for _ in range(4):
        look(engine)
        edges.world.now += 1
    edges.slow = True
    edges.world.now += own_store.PROGRESS_SECONDS
    look(engine)
    (progress,) = edges.jobs
    edges.slow = False
    edges.done()
    edges.world.edit(suspend=True)
    for _ in range(4):
        look(engine)
    assert edges.world.active() == []
    assert progress in edges.jobs
    assert (
        edges.world.condition("Suspended")["message"] == "suspended by spec.suspend; set it to false to go on"
    )


def test_a_store_that_refuses_is_said_and_asked_again_less_and_less_often(make, store):
    none = {**STORAGE, "uri": "s3://no-such-bucket/x", "endpoint": store.place.endpoint}
    engine, edges = make(storage=none)
    for _ in range(300):
        look(engine)
        edges.world.now += 1
    ready = edges.world.condition("Ready")
    assert ready["reason"] == "StoreUnavailable"
    assert "'no-such-bucket' does not exist" in ready["message"]
    assert "Secret team-keys" in ready["message"]
    assert 4 <= len(edges.asked) <= 6
    assert edges.world.created == []


def test_it_goes_on_when_its_credentials_are_mended(make, store, monkeypatch):
    engine, edges = make()
    with monkeypatch.context() as wrong:
        wrong.setenv("AWS_SECRET_ACCESS_KEY", "not-this-one")
        for _ in range(4):
            look(engine)
            edges.world.now += 1
        assert "403" in edges.world.condition("Ready")["message"]
    edges.world.now += 20
    drive(engine, edges)
    assert edges.world.condition("Succeeded")["status"] == "True"


def test_a_probe_that_cannot_start_is_said(make):
    engine, edges = make()
    edges.slow = True
    look(engine)
    assert "asking the run's own store" in edges.world.condition("Ready")["message"]
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "team-keys" not found'}
    status = {"phase": "Pending", "containerStatuses": [{"name": "stage", "state": {"waiting": waiting}}]}
    (job,) = edges.jobs.values()
    job["pods"] = [{"metadata": {"name": "p"}, "status": status}]
    edges.world.now += 9
    look(engine)
    assert 'secret "team-keys" not found' in edges.world.condition("Ready")["message"]


def test_a_probe_that_its_queue_does_not_take_is_said(make):
    engine, edges = make(scheduling={"queueName": "team"})
    edges.slow = True
    look(engine)
    edges.world.workloads = {job["metadata"]["uid"]: NO_KUEUE for job in edges.jobs.values()}
    edges.world.now += 30
    look(engine)
    said = edges.world.condition("Ready")["message"]
    assert "it asks for queue team, and Kueue is not installed on this cluster" in said


def test_a_probe_that_the_api_server_does_not_take_is_said_and_sent_again(make):
    engine, edges = make()
    edges.raises["probe"] = [ApiRefusal(403, "Forbidden", "exceeded quota: few")]
    look(engine)
    assert "exceeded quota: few" in edges.world.condition("Ready")["message"]
    assert edges.asked == []
    edges.world.now += 16
    drive(engine, edges)
    assert edges.world.condition("Succeeded")["status"] == "True"


def test_progress_is_asked_every_few_minutes_and_never_waited_for(make, store):
    engine, edges = make()
    world = edges.world
    world.script = {"fetch-s0": [nothing] * 999}
    for _ in range(40):
        look(engine)
        for found in world.active():
            world.play(found)
        edges.publish()
        world.now += 1
    address = child(world.child_of("fetch-s0")).address
    store.put_json(f"{address}/progress.json", {"done": 3, "total": 12, "unit": "files", "seconds": 2.0})
    edges.asked.clear()
    for _ in range(1200):
        look(engine)
        world.now += 1
    assert 3 <= len(edges.asked) <= 4
    assert next(d for d in world.status()["details"] if d["name"] == "fetch-s0")["percent"] == 25.0


def test_a_stale_artifact_is_forgotten_only_if_it_still_is_that_one(store, tmp_path, monkeypatch):
    from fusechat import inquiry

    from tests.s3 import ADDRESS, an_artifact

    monkeypatch.setenv("FUSECHAT_SUMMARY_FILE", str(tmp_path / "said"))
    store.publish(an_artifact())

    def forget(digest):
        asked = inquiry.pack([inquiry.Question("forget", ADDRESS, digest)])
        return probe.main([f"--store={store.uri}", "--part=0/1", f"--ask={asked}"])

    assert forget("0" * 16) == 0
    assert store.manifest(ADDRESS)
    assert forget(store.manifest(ADDRESS).digest[:16]) == 0
    assert store.manifest(ADDRESS) is None


def test_a_late_write_does_not_go_over_a_later_one(store):
    from fusechat import inquiry

    other = Store(store.uri)
    inquiry.put(other, "refs/c/u.json", {"at": 20.0, "addresses": ["new"]})
    inquiry.put(other, "refs/c/u.json", {"at": 10.0, "addresses": ["old"]})
    assert store.get_json("refs/c/u.json")["addresses"] == ["new"]


def test_a_failed_run_whose_record_its_store_will_not_take_ends_and_tries_no_bug_again(make, monkeypatch):
    engine, edges = make()
    world, put = edges.world, inquiry.put
    world.script = {"merge": [fails(65, "no rows")] * 9}

    def refused(store, key, document):
        if key.startswith("runs/"):
            raise Unavailable("403: AccessDenied when calling PutObject")
        return put(store, key, document)

    monkeypatch.setattr(inquiry, "put", refused)
    for _ in range(150):
        look(engine)
        if world.over():
            break
        for found in world.active():
            world.play(found)
        edges.publish()
        world.now += 5.0
    assert world.condition("Stalled")["message"] == "merge: no rows"
    assert world.kept == ["merge"], "it stays for whoever asks why"
    assert world.attempts("merge") == 1


def test_children_that_a_queue_gave_up_are_not_made_again_for_the_record(make):
    engine, edges = make(scheduling={"queueName": "team"})
    world = edges.world

    async def workload(namespace, uid):
        return Queued() if uid.startswith("probe") else NO_KUEUE

    edges.workload = workload
    for _ in range(100):
        look(engine)
        if world.over():
            break
        world.now += 1.0
    assert world.condition("Stalled")["reason"] == "QueueDidNotAdmit"
    assert sorted(world.created) == sorted(set(world.created))
