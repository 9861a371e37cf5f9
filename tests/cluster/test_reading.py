"""What people read and type: kubectl's tables and waits, `fusechat cluster`, on a real API server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import yaml
from fusechat.plan import plan
from fusechat.spec import load
from fusechat_operator import naming

from tests.cluster.stagehand import Act, a_run
from tests.cluster.test_lifecycle import played, steps_of, wait_for_child
from tests.conftest import CHECKOUT
from tests.unit.operator import paper

EXAMPLES = sorted(path.name for path in (CHECKOUT / "examples").glob("*.yaml"))


def table(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# what an API server takes


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_api_server_takes_the_examples(plane, name):
    path = CHECKOUT / "examples" / name
    told = plane.kubectl("apply", "--dry-run=server", "-f", str(path))
    assert "created (server dry run)" in told
    assert plane.get("fusionrun", yaml.safe_load(path.read_text())["metadata"]["name"]) is None


def test_the_api_server_takes_the_children_of_the_papers_run(plane, namespace):
    """Those of the golden file, but for the TrainJob: its definitions are not on this cluster."""
    taken = set()
    for _, objects in paper.children():
        for made in objects:
            if made["kind"] in ("TrainJob", "TrainingRuntime"):
                continue
            here = {**made, "metadata": {**made["metadata"], "namespace": namespace}}
            told = plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(here))
            assert "created (server dry run)" in told
            taken.add(made["kind"])
    assert taken == {"Job", "PyTorchJob", "Service"}


# kubectl


def test_a_watch_shows_every_stage_and_the_end_and_a_wait_returns(plane, operator, namespace, tmp_path):
    seen = tmp_path / "lines"
    with plane.watching(namespace, seen):
        plane.apply(a_run("seen", namespace=namespace))
        words = ("wait", "--for=condition=Succeeded", "fusionrun/seen", "-n", namespace, "--timeout=90s")
        assert "condition met" in plane.kubectl(*words)
        plane.wait("the watch saw it", lambda: " True " in seen.read_text())
    head, *lines = table(seen.read_text())
    assert head == ["NAME", "READY", "STAGE", "PROGRESS", "CACHED", "SCORE", "AGE"]
    assert {"fetch", "extract", "align", "fuse", "merge", "evaluate"} <= {
        word.rstrip(",") for line in lines for word in line
    }
    assert lines[-1][:5] == ["seen", "True", "16/16", "0/16", "0.500"]


def test_short_name_category_wide_columns_and_field_selectors(plane, operator, namespace):
    plane.hand.script["extract-s0"] = [Act(exit_code=65, error="no supervised token")]
    plane.apply(
        a_run("good", sources=1, namespace=namespace, scheduling={"queueName": "none-yet"}, suspend=True),
        a_run("bad", sources=1, namespace=namespace, profile="Published"),
    )
    plane.until("bad", "Stalled", namespace=namespace)
    plane.until("good", "Suspended", namespace=namespace)
    names = {line[0] for line in table(plane.kubectl("get", "fr", "-n", namespace, "--no-headers"))}
    assert names == {"good", "bad"}
    assert "good" in plane.kubectl("get", "fusion", "-n", namespace)
    wide = plane.kubectl("get", "fr", "-n", namespace, "-o", "wide")
    assert "MESSAGE" in wide.splitlines()[0]
    assert "extract-s0: exit code 65" in wide
    selected = {
        "spec.profile=Published": "bad",
        "spec.suspend=true": "good",
        "spec.scheduling.queueName=none-yet": "good",
    }
    for selector, name in selected.items():
        words = ("-n", namespace, "--field-selector", selector, "-o", "name")
        assert plane.kubectl("get", "fr", *words).split() == [f"fusionrun.fusechat.io/{name}"]


def test_a_training_tells_percent_rate_eta_and_its_last_checkpoint(plane, operator, namespace):
    plane.hand.script["fuse-s0"] = [Act(seconds=300)]
    run = a_run("telling", namespace=namespace)
    step = plan(load(run)).step("fuse-s0")
    now, saved = time.time(), "2026-01-02T03:04:05Z"
    told = {"done": 40, "total": 100, "unit": "steps", "from": 0, "seconds": 20.0, "at": now, "loss": 2.25}
    # There before it trains: what only fades is written once a minute, what begins at once.
    plane.store.put_json(f"{step.address}/progress.json", {**told, "lastCheckpoint": saved})
    plane.apply(run)

    def detail():
        found = plane.status("telling", namespace).get("details", ())
        return next((d for d in found if d["name"] == "fuse-s0" and {"percent", "started"} <= d.keys()), None)

    made = plane.wait("progress in the status", detail, 90, lambda: plane.status("telling", namespace))
    assert (made["percent"], made["rate"], made["lastCheckpoint"]) == (40, "2 steps/s", saved)
    assert 0 < made["etaSeconds"] <= 30
    assert made["metrics"]["loss"] == 2.25
    assert {"started", "child", "artifact"} <= made.keys()


@pytest.mark.parametrize(
    ("gate", "measured"), [("keptShare", "0.9"), ("alignmentCoverage", "0.85"), ("winShare", "0.5")]
)
def test_each_gate_stops_before_the_training_with_what_was_measured(
    plane, operator, namespace, gate, measured
):
    name = f"gate-{gate.lower()}"  # of its own artifacts: another run's would be hits
    plane.apply(a_run(name, sources=1, namespace=namespace, gates={gate: 0.95}))
    plane.until(name, "Stalled", namespace=namespace)
    message = plane.condition(name, "Ready", namespace)["message"]
    assert plane.condition(name, "Stalled", namespace)["reason"] == "GateClosed"
    assert all(word in message for word in (gate, measured, "0.95")), message
    made = {*played(plane, namespace), *steps_of(plane, name, namespace)}
    assert "filter-s0" in made
    assert not [step for step in made if step.startswith("fuse")]


# fusechat cluster


def fusechat(plane, *words: str, code: int = 0) -> str:
    """What `fusechat cluster ...` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "fusechat.cli", "cluster", *words],
        env={**os.environ, "KUBECONFIG": plane.kubeconfig},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_commands_for_a_run_that_failed(plane, operator, namespace):
    there = ("-n", namespace)
    plane.hand.script["extract-s0"] = [Act(exit_code=65, error="no supervised token")]
    plane.apply(a_run("mine", sources=1, namespace=namespace))
    plane.until("mine", "Stalled", namespace=namespace)
    said = fusechat(plane, "status", "mine", *there, code=1)
    assert said.splitlines()[-1] == "mine: StepFailed: extract-s0: exit code 65"
    assert "begins again: extract-s0" in fusechat(plane, "retry", "mine", *there)
    note = plane.get("fusionrun", "mine", namespace)["metadata"]["annotations"][naming.RETRY_AT]
    plane.until("mine", namespace=namespace)
    assert plane.status("mine", namespace)["lastRetry"] == note
    assert "0.500" in fusechat(plane, "status", "mine", *there)
    assert "no FusionRun 'other'" in fusechat(plane, "status", "other", *there, code=64)


def test_the_commands_for_a_run_that_is_at_work(plane, operator, namespace):
    there = ("-n", namespace)
    plane.hand.script["fuse-s0"] = [Act(seconds=300), Act()]
    plane.apply(a_run("busy", sources=1, namespace=namespace))
    child = wait_for_child(plane, "busy", "fuse-s0", namespace)["metadata"]["name"]
    assert "no step 'fuse'" in fusechat(plane, "logs", "busy", "fuse", *there, code=64)
    assert "goes on" in fusechat(plane, "suspend", "busy", *there)
    plane.until("busy", "Suspended", namespace=namespace)
    plane.wait("its child is gone", lambda: plane.get("pytorchjob", child, namespace) is None)
    assert plane.get("fusionrun", "busy", namespace)["spec"]["suspend"] is True
    fusechat(plane, "resume", "busy", *there)
    followed = fusechat(plane, "status", "busy", "--watch", *there)
    assert "busy: Succeeded: " in followed.splitlines()[-1]


def test_logs_of_a_step_whose_pods_are_gone_lie_in_the_store(plane, operator, namespace):
    run = a_run("quiet", sources=1, namespace=namespace)
    plane.apply(run)
    plane.until("quiet", namespace=namespace)
    there = ("quiet", "extract-s0", "-n", namespace)
    plane.kubectl("delete", "jobs,pytorchjobs", "--all", "-n", namespace)
    plane.wait("its Pods are gone", lambda: not plane.children("quiet", namespace, ("pod",)))
    where = f"{plane.store.uri}/{plan(load(run)).step('extract-s0').address}/logs/"
    assert f"no Pod of extract-s0 is left; the logs of all its attempts lie under {where}" in fusechat(
        plane, "logs", *there
    )
