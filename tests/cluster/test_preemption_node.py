"""A training that Kueue preempts on the real node: it saves, waits, goes on, and does no saved step again.

test_queue.py has quotas, priorities and queues with stages that are played; here kubelet, Kueue, the training
operator, S3 and the training are real. What a watch saw and what lies in the store is all that is judged.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from fusechat.plan import Step, plan
from fusechat.spec import STAGES, load
from fusechat.store import Store
from fusechat_operator import memory, naming
from kubernetes import client, config

from tests.cluster import bench, installed
from tests.cluster.node import Node
from tests.cluster.plane import missing
from tests.cluster.test_queue import KUEUE, a_queue
from tests.cluster.watched import Object, Seen, Watch, has_quota, is_at_work, together

EACH = {"cpu": "600m", "memory": "2Gi", "gpus": 0}
"""What every step asks for: of a quota of one CPU there is room for one step."""
TRAINING_SECONDS = 90.0
"""Of the training that is preempted: its first checkpoint comes after a minute, the least there is."""
LEAST_EPOCHS = 700
"""The same on two cores of 2026: a machine that is busy when it is measured may have time later."""
SECONDS = 600.0
UNDISTURBED = "s3://fuse/undisturbed"
pytestmark = pytest.mark.timeout(1500)
PREEMPTED = "fuse-a: was preempted by a workload of higher priority"


@dataclass(frozen=True)
class Attempt:
    """One attempt at a training, as its record and its log in the store tell it. `saved` None: it did not."""

    code: int
    started: str
    ended: str
    resumed: int
    saved: int | None


@dataclass(frozen=True)
class Story:
    """What was seen of two runs: `high` preempts `low`, whose newest checkpoint is of step `checkpoint`."""

    node: Node
    namespace: str
    low: Step
    high: Step
    checkpoint: int
    workloads: list[Seen]
    pods: list[Seen]
    runs: list[Seen]

    def statuses(self, run: str) -> list[Object]:
        found = (seen for kind, seen in self.runs if kind != "DELETED" and seen["metadata"]["name"] == run)
        return [seen.get("status", {}) for seen in found]

    def attempts(self, step: Step) -> list[Attempt]:
        """In the order in which they began."""
        store = self.node.store
        keys = [found.key for found in store.keys(f"{step.address}/attempts/")]
        return sorted((_attempt(store, key) for key in keys), key=lambda attempt: attempt.started)


def _attempt(store: Store, key: str) -> Attempt:
    told = store.get_json(key)
    log = store.get_bytes(key.replace("/attempts/", "/logs/").replace(".json", ".log")).decode()
    resumed = re.search(r"resumed at step (\d+)", log)
    saved = re.search(r"saved at step (\d+)", told.get("error", ""))
    step = int(saved[1]) if saved else None
    return Attempt(told["exitCode"], told["started"], told["ended"], int(resumed[1]) if resumed else 0, step)


def a_spec(base: dict[str, Any], epochs: int, seed: int) -> dict[str, Any]:
    """One source and no evaluation: what is cached is cached, and fuse, merge and report are left."""
    fuse = {**base["fuse"], "epochs": epochs, "seed": seed, "globalBatch": 1, "microBatch": 1}
    fuse["checkpointMinutes"] = 1
    kept = {name: value for name, value in base.items() if name != "evaluate"}
    resources = dict.fromkeys(STAGES, EACH)
    return {**kept, "sources": base["sources"][:1], "controls": [], "fuse": fuse, "resources": resources}


def a_run(name: str, namespace: str, priority: str, spec: dict[str, Any]) -> dict[str, Any]:
    labels = {naming.QUEUE_PRIORITY: priority}
    meta = {"name": name, "namespace": namespace, "labels": labels}
    spec = {**spec, "scheduling": {"queueName": "team"}}
    return {"apiVersion": "fusechat.io/v1alpha1", "kind": "FusionRun", "metadata": meta, "spec": spec}


def on_this_machine(spec: dict[str, Any], store: str, folder: Path) -> subprocess.Popen[str]:
    """`fusechat run` of a spec; what it says is the process's output."""
    folder.mkdir()
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(a_run("local", "default", "later", spec)))
    command = [sys.executable, "-m", "fusechat.cli", "run", str(path), "--store", store, "--threads", "1"]
    command += ["--home", str(folder / "home")]
    told = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended_well(process: subprocess.Popen[str], seconds: float) -> str:
    said, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, said
    return said


def steps_a_second(said: str) -> float:
    """Of the training in what `fusechat run` printed."""
    found = re.search(r"fuse-a +([\d.]+) s +.*?steps ([\d,]+)", said)
    assert found, said
    return int(found[2].replace(",", "")) / float(found[1])


@pytest.fixture(scope="module")
def kueue(node: Node) -> Node:
    """The node with the operator on it, and two priorities."""
    if not node.kubectl("get", "crd", "clusterqueues.kueue.x-k8s.io", "--ignore-not-found").strip():
        missing("this cluster has no Kueue")
    installed.install(node)
    node.apply({"apiVersion": KUEUE, "kind": "ResourceFlavor", "metadata": {"name": "any"}})
    for name, value in {"later": 10, "soon": 1000}.items():
        meta = {"name": name}
        node.apply({"apiVersion": KUEUE, "kind": "WorkloadPriorityClass", "metadata": meta, "value": value})
    return node


@pytest.fixture(scope="module")
def lasting(kueue: Node, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The spec of a training that lasts about TRAINING_SECONDS here; all before it is in the store then."""
    folder = tmp_path_factory.mktemp("tiny")
    base = bench.put_tiny(kueue, folder)
    said = ended_well(on_this_machine(a_spec(base, 25, 1), kueue.store.uri, folder / "warm"), 240)
    epochs = round(steps_a_second(said) * TRAINING_SECONDS / 24)  # steps of an epoch
    print(f"{steps_a_second(said):.0f} steps/s here, {epochs} epochs")
    return a_spec(base, min(1000, max(LEAST_EPOCHS, epochs)), 2)


@pytest.fixture(scope="module")
def undisturbed(lasting: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    """The same run on this machine at the same time, in a store of its own; call it to await its end."""
    process = on_this_machine(lasting, UNDISTURBED, tmp_path_factory.mktemp("undisturbed") / "run")
    yield lambda: ended_well(process, SECONDS)
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def story(kueue: Node, lasting: dict[str, Any], undisturbed: Callable[[], str]) -> Story:
    """Two runs from their `kubectl apply` to their end."""
    namespace = kueue.namespace()
    a_queue(kueue, namespace)
    api = config.new_client_from_config(kueue.kubeconfig)
    custom = client.CustomObjectsApi(api).list_namespaced_custom_object
    kinds = [
        (custom, *KUEUE.split("/"), namespace, "workloads"),
        (client.CoreV1Api(api).list_namespaced_pod, namespace),
        (custom, "fusechat.io", "v1alpha1", namespace, "fusionruns"),
    ]
    with ExitStack() as stack:
        watches = [stack.enter_context(Watch(*words)) for words in kinds]
        steps = told(kueue, namespace, lasting)
    found = Story(kueue, namespace, *steps, *(each.seen for each in watches))
    print("\n".join(dict.fromkeys(map(_ready, found.statuses("low")))))
    print(*found.attempts(steps[0]), sep="\n")
    return found


def told(node: Node, namespace: str, lasting: dict[str, Any]) -> tuple[Step, Step, int]:
    """(the preempted training, the urgent one, the step of the first's checkpoint when the second came)."""
    began = time.monotonic()
    node.apply(a_run("low", namespace, "later", lasting))
    low = planned(node, "low", namespace)
    node.wait(
        "a checkpoint or the end",
        lambda: saved_at(node, low) or is_over(node, "low", namespace),
        SECONDS,
        lambda: about(node, "low", namespace),
    )
    checkpoint = saved_at(node, low)
    assert checkpoint, "the training ended before its first checkpoint: this machine needs more epochs"
    print(f"{time.monotonic() - began:.0f} s: a checkpoint at step {checkpoint}")
    short = {**lasting, "fuse": {**lasting["fuse"], "seed": 3, "epochs": 20}}
    node.apply(a_run("high", namespace, "soon", short))
    high = planned(node, "high", namespace)
    for run in ("high", "low"):
        ended = partial(is_over, node, run, namespace)
        node.wait(f"the end of {run}", ended, SECONDS, partial(about, node, run, namespace))
        print(f"{time.monotonic() - began:.0f} s: {run} is over")
    return low, high, checkpoint


def planned(node: Node, run: str, namespace: str) -> Step:
    """The training of a run, once its pins are known."""

    def look() -> Step | None:
        found = node.get("fusionrun", run, namespace) or {}
        pins = memory.read(found.get("status", {})).pins
        made = plan(load(found), pins) if pins else None
        return next((s for s in made.steps if s.stage == "fuse" and s.address), None) if made else None

    return node.wait(f"the plan of {run}", look, 120, lambda: about(node, run, namespace))


def saved_at(node: Node, step: Step) -> int:
    return int((node.store.get_json(f"{step.address}/progress.json") or {}).get("checkpointStep", 0))


def is_over(node: Node, run: str, namespace: str) -> bool:
    return node.condition(run, "Succeeded", namespace).get("status") in ("True", "False")


def about(node: Node, run: str, namespace: str) -> str:
    ready = node.condition(run, "Ready", namespace)
    return f"{ready}\n{node.kubectl('get', 'pods,workloads', '-n', namespace, check=False)}"


def test_both_runs_come_to_their_end(story: Story):
    for run in ("low", "high"):
        last = story.statuses(run)[-1]
        assert {line["state"] for line in last["steps"]} <= {"Cached", "Succeeded"}, last
        assert {c["type"]: c["status"] for c in last["conditions"]}["Succeeded"] == "True"


def test_the_preempted_training_saved_within_its_grace_and_ended_as_143(story: Story):
    first, *others = story.attempts(story.low)
    assert others, "it was never stopped"
    assert first.code == 143
    assert first.saved is not None
    assert first.saved >= story.checkpoint


def test_every_attempt_goes_on_where_the_one_before_it_had_saved(story: Story):
    """One whose turn was too short for a step resumes nothing and loses nothing."""
    *stopped, last = story.attempts(story.low)
    at_work = [attempt for attempt in stopped if attempt.saved is not None]
    assert {attempt.code for attempt in stopped} == {143}
    for before, after in pairwise([*at_work, last]):
        assert after.resumed == before.saved
    assert last.code == 0
    assert last.resumed >= story.checkpoint > 0


def test_the_run_said_that_it_was_preempted_and_waits(story: Story):
    waiting = [s for s in story.statuses("low") if PREEMPTED in _ready(s)]
    assert waiting
    assert {line["state"] for s in waiting for line in s["steps"] if line["name"] == "fuse-a"} == {"Waiting"}
    assert any("waits for quota" in _ready(s) or "waits for its queue" in _ready(s) for s in waiting)
    kinds = {c["type"] for s in story.statuses("low") for c in s.get("conditions", ())}
    assert "Stalled" not in kinds, "to wait is no failure"


def _ready(status: Object) -> str:
    found = (c["message"] for c in status.get("conditions", ()) if c["type"] == "Ready")
    return next(found, "")


def test_the_urgent_training_ran_while_the_other_waited(story: Story):
    (urgent,), (first, *_, last) = story.attempts(story.high), story.attempts(story.low)
    assert first.started < urgent.started
    assert urgent.code == 0
    assert urgent.ended < last.ended


def test_a_quota_for_one_step_was_never_given_to_two(story: Story):
    assert max(map(len, together(story.workloads, has_quota))) == 1
    assert max(map(len, together(story.pods, is_at_work))) == 1


def test_no_attempt_counts_as_anybodys_fault(story: Story):
    tries = [line.get("tries", {}) for line in story.statuses("low")[-1]["steps"]]
    assert not any(told.get("bug") or told.get("infrastructure") for told in tries)


def test_the_target_has_the_bytes_of_an_undisturbed_training(story: Story, undisturbed: Callable[[], str]):
    undisturbed()
    ours = story.node.store.manifest(str(story.low.address))
    theirs = Store(UNDISTURBED).manifest(str(story.low.address))
    assert ours.deterministic
    assert {f.name: f.sha256 for f in ours.files} == {f.name: f.sha256 for f in theirs.files}
