"""How a child ends, for the tests beside it: an act publishes or fails as stage and controller would."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fusechat import launch
from fusechat.address import digest
from fusechat.store import InputRef
from fusechat_operator import naming
from fusechat_operator.facts import Artifact

Object = dict[str, Any]
Act = Callable[[Any, Object], object]
"""(the world, the child)."""

CONTAINERS = {"Job": "stage", "PyTorchJob": "pytorch", "TrainJob": "node"}
METRICS: Mapping[str, Mapping[str, Any]] = {
    "align": {"coverage": 0.85},
    "filter": {"keptShare": 0.9, "winShare": 0.5},
    "evaluate": {"score": 0.5, "n": 100, "ci95": [0.4, 0.6]},
}


def step_of(found: Mapping[str, Any]) -> str:
    """The step of a child or of a manifest."""
    return str(found["metadata"]["labels"][naming.STEP])


def told(found: Mapping[str, Any]) -> launch.Launch:
    """What a child's Pods are told; of a TrainJob its TrainingRuntime says it."""
    spec = found["spec"]
    if found["kind"] == "TrainingRuntime":
        spec = spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    replicas = spec.get("pytorchReplicaSpecs")
    template = replicas["Master"]["template"] if replicas else spec["template"]
    args = template["spec"]["containers"][0]["args"]
    plain = [a.replace("$(JOB_COMPLETION_INDEX)", "0").replace("$$", "$") for a in args]
    return launch.parse(plain)


def running(found: Object) -> None:
    """A training's one Pod is there and at work."""
    found["status"] = {**found.get("status", {}), "replicaStatuses": {"Master": {"active": 1}}}


def finish(world: Any, found: Object) -> None:
    """It publishes and ends well."""
    publish(world, found)
    world.end(found, "Succeeded" if found["kind"] == "PyTorchJob" else "Complete")


def publish(world: Any, found: Object, content: str = "") -> None:
    """Its artifact, unless there is one; other `content` is other bytes."""
    asked = world.told(found)
    there = {role: at for role, at in asked.inputs.items() if at in world.artifacts}
    inputs = {role: InputRef(at, world.artifacts[at].digest) for role, at in there.items()}
    metrics = dict(METRICS.get(asked.stage, {})) | world.metrics.get(step_of(found), {})
    if asked.stage == "resolve":
        metrics["pins"] = {name: f"sha256:{digest(o)}" for name, o in asked.params["origins"].items()}
    made = Artifact(asked.address, digest([asked.address, content]), metrics, inputs)
    world.artifacts.setdefault(asked.address, made)


def fails(exit_code: int, error: str = "as scripted", reason: str = "PodFailurePolicy") -> Act:
    """The stage ends with an exit code and says why; what the child might have tried itself is spent."""

    def act(world: Any, found: Object) -> None:
        summary = json.dumps({"exitCode": exit_code, "error": error})
        state = {"terminated": {"exitCode": exit_code, "message": summary, "reason": "Error"}}
        listed = [{"name": CONTAINERS[found["kind"]], "state": state}]
        world.add_pod(found, {"phase": "Failed", "containerStatuses": listed})
        world.end(found, "Failed", reason, "the child failed")

    return act


def evicted(world: Any, found: Object) -> None:
    """The node's Pod is taken away, and the child with it."""
    target = {"type": "DisruptionTarget", "status": "True"}
    world.add_pod(found, {"phase": "Failed", "conditions": [target]})
    world.end(found, "Failed", "JobFailed", "a Pod failed")


def nothing(world: Any, found: Object) -> None:
    """It goes on."""
