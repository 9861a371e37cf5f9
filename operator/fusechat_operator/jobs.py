"""A step -> the objects that run it: Job, Indexed Job, PyTorchJob, TrainJob, a Service for the ranks. Pure.

Called by reconcile. A child is created once and never applied again. Every launcher runs the same argv.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusechat import launch
from fusechat.address import digest
from fusechat.plan import Plan, Step
from fusechat.spec import FusionRun, seconds

from fusechat_operator import naming, pods
from fusechat_operator.settings import Settings

PORT = 23456
"""Where rank 0 listens for the other ranks."""

LAUNCHERS = ("PyTorchJob", "TrainJob", "Job")
"""In the order that Auto takes them."""

NEVER_AGAIN = [64, 65, 66, 70]
KILLED = 137
STOPPED = 143
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """All that a child is made of. `object` is the FusionRun as the API server has it."""

    object: Mapping[str, Any]
    run: FusionRun
    plan: Plan
    settings: Settings
    place: pods.Place
    launcher: str = "Job"


def kind_of(step: Step, launcher: str) -> str:
    """The kind of a step's child: the launcher for fuse, else Job."""
    return launcher if step.stage == "fuse" else "Job"


def name_of(step: Step, place: pods.Place) -> str:
    """The name of a step's child."""
    return naming.child_name(step.stage, str(step.address), place.identity)


def build(work: Work, step: Step) -> list[Manifest]:
    """The child, and before it the Service or the TrainingRuntime that it needs, if any."""
    kind = kind_of(step, work.launcher)
    if step.stage != "fuse":
        made = [_job(work, step)]
    elif kind == "PyTorchJob":
        made = [_pytorchjob(work, step)]
    elif kind == "TrainJob":
        made = _trainjob(work, step)
    else:
        nodes = int(step.runtime.get("nodes", 1))
        job = _fuse_job(work, step, nodes)
        made = [_service(work, step), job] if nodes > 1 else [job]
    made[-1]["metadata"]["annotations"][naming.TEMPLATE] = _digest(made[-1]["spec"])
    return made


def _digest(spec: Manifest) -> str:
    """Of all that its Pods are made of: when it is cleared away at its end is none of that."""
    ttl = "ttlSecondsAfterFinished"
    kept = {name: value for name, value in spec.items() if name != ttl}
    if "runPolicy" in kept:
        kept["runPolicy"] = {name: value for name, value in kept["runPolicy"].items() if name != ttl}
    return digest(kept)[:16]


def template_of(work: Work, step: Step) -> str:
    """A digest of the spec that the step's child would have now; a child's annotation has that of its own."""
    return str(build(work, step)[-1]["metadata"]["annotations"][naming.TEMPLATE])


def arguments(work: Work, step: Step) -> list[str]:
    """The stage's argv. The kubelet fills the index in; a $ of ours is doubled so that it leaves it alone."""
    told = launch.Launch(
        step.stage,
        step.version,
        str(step.address),
        work.place.uri,
        step.params,
        work.plan.input_addresses(step),
        work.plan.profile,
        (0, step.shards),
        step.runtime,
    )
    made = [argument.replace("$", "$$") for argument in launch.argv(told)]
    index = made.index(f"--shard=0/{step.shards}")
    if step.shards > 1:
        made[index] = f"--shard=$(JOB_COMPLETION_INDEX)/{step.shards}"
    return made


def _template(work: Work, step: Step, container: str) -> Manifest:
    child = name_of(step, work.place)
    return pods.template(work.run, step, work.place, work.settings, arguments(work, step), child, container)


def pods_of(step: Step) -> int:
    """How many Pods work at a step together."""
    return int(step.runtime.get("nodes", 1)) if step.stage == "fuse" else step.shards


def _metadata(work: Work, step: Step) -> Manifest:
    run = work.run
    labels = {
        **naming.run_labels(run.metadata.name, str(work.object["metadata"]["uid"])),
        naming.STEP: step.name,
        naming.STAGE: step.stage,
        naming.ADDRESS: naming.short_hash(str(step.address)),
        naming.CHILD: name_of(step, work.place),
    }
    if run.spec.scheduling.queue_name:
        labels[naming.QUEUE] = run.spec.scheduling.queue_name
        if priority := run.metadata.labels.get(naming.QUEUE_PRIORITY):
            labels[naming.QUEUE_PRIORITY] = priority
    return {
        "name": name_of(step, work.place),
        "namespace": run.metadata.namespace,
        "labels": labels,
        "annotations": {
            naming.ADDRESS: str(step.address),
            naming.GPUS: str(pods.gpus(run, step) * pods_of(step)),
        },
        "ownerReferences": [naming.owner(dict(work.object))],
    }


def _job(work: Work, step: Step) -> Manifest:
    tries = work.run.spec.retries.infrastructure
    spec: Manifest = {
        "template": _template(work, step, "stage"),
        "ttlSecondsAfterFinished": _ttl(work),
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules()},
        # One Pod has an index too: only by index does a Job say on its Pods how often it has tried, and why.
        "completionMode": "Indexed",
        "completions": step.shards,
        "parallelism": step.shards,
        "backoffLimitPerIndex": tries,
        "maxFailedIndexes": 0,
        **_held(work),
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(work, step), "spec": spec}


def _held(work: Work) -> Manifest:
    """With a queue a child begins suspended: without Kueue, or where Kueue looks away, nothing runs.

    From then on Kueue owns the field, and the operator never writes it.
    """
    return {"suspend": True} if work.run.spec.scheduling.queue_name else {}


def _ttl(work: Work) -> int:
    """Seconds until the cluster clears a finished child away; of a failed one the engine takes it back."""
    return seconds(work.run.spec.ttl)


def _failure_rules() -> list[Manifest]:
    """Taken away: free. A bug, or killed from inside (out of memory): the end. The rest is counted."""

    def codes(action: str, *values: int) -> Manifest:
        found = {"containerName": "stage", "operator": "In", "values": sorted(values)}
        return {"action": action, "onExitCodes": found}

    taken = {"type": "DisruptionTarget", "status": "True"}
    return [
        codes("FailJob", *NEVER_AGAIN),
        {"action": "Ignore", "onPodConditions": [taken]},
        codes("FailJob", KILLED),
        codes("Ignore", STOPPED),
    ]


def _fuse_job(work: Work, step: Step, nodes: int) -> Manifest:
    """Single-attempt: the ranks of one training live and die together, and only the operator tries again."""
    name, template = name_of(step, work.place), _template(work, step, "stage")
    spec: Manifest = {
        "template": template,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "ttlSecondsAfterFinished": _ttl(work),
        **_held(work),
    }
    if nodes > 1:
        service = _service(work, step)["metadata"]["name"]
        template["spec"]["subdomain"] = service
        template["spec"]["containers"][0]["env"] += [
            {"name": "MASTER_ADDR", "value": f"{name}-0.{service}"},
            {"name": "MASTER_PORT", "value": str(PORT)},
        ]
        template["spec"]["containers"][0]["ports"] = [{"name": "ranks", "containerPort": PORT}]
        spec |= {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(work, step), "spec": spec}


def _unqueued(meta: Manifest) -> Manifest:
    """For an object that no queue is to see."""
    for label in (naming.QUEUE, naming.QUEUE_PRIORITY):
        meta["labels"].pop(label, None)
    return meta


def _service(work: Work, step: Step) -> Manifest:
    """Each run has its own: that of another run goes with it, while our ranks may still meet there."""
    meta, child = _unqueued(_metadata(work, step)), name_of(step, work.place)
    meta["name"] = f"{child}-{digest(str(work.object['metadata']['uid']))[:8]}"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # the ranks meet before anything could call them ready
            "selector": {naming.CHILD: child},
            "ports": [{"name": "ranks", "port": PORT}],
        },
    }


def _pytorchjob(work: Work, step: Step) -> Manifest:
    """Entry starts the ranks of its node itself, so nprocPerNode stays 1: it would only set variables."""
    nodes = int(step.runtime.get("nodes", 1))
    replica = {"replicas": 1, "restartPolicy": "Never", "template": _template(work, step, "pytorch")}
    replicas: Manifest = {"Master": replica}
    if nodes > 1:
        template = _template(work, step, "pytorch")
        replicas["Worker"] = {"replicas": nodes - 1, "restartPolicy": "Never", "template": template}
    spec = {
        "nprocPerNode": "1",
        "runPolicy": {
            "backoffLimit": 0,
            "cleanPodPolicy": "None",
            "ttlSecondsAfterFinished": _ttl(work),
            **_held(work),
        },
        "pytorchReplicaSpecs": replicas,
    }
    api = naming.API_VERSIONS["PyTorchJob"]
    return {"apiVersion": api, "kind": "PyTorchJob", "metadata": _metadata(work, step), "spec": spec}


def _trainjob(work: Work, step: Step) -> list[Manifest]:
    """A TrainJob on a TrainingRuntime of its own, which holds all of its Pods.

    What a TrainJob may say of its Pods differs from release to release of Trainer (podSpecOverrides,
    podTemplateOverrides, runtimePatches), Kueue drops what it does not know, and none has a priority class.
    """
    runtime = _runtime(work, step)
    api, nodes = naming.API_VERSIONS["TrainJob"], int(step.runtime.get("nodes", 1))
    reference = {"apiGroup": api.split("/")[0], "kind": runtime["kind"], "name": runtime["metadata"]["name"]}
    spec = {**_held(work), "runtimeRef": reference, "trainer": {"numNodes": nodes, "numProcPerNode": 1}}
    made = {"apiVersion": api, "kind": "TrainJob", "metadata": _metadata(work, step), "spec": spec}
    return [runtime, made]


def _runtime(work: Work, step: Step) -> Manifest:
    """One attempt, as by every launcher. Its name has its content's digest: made once, never changed."""
    nodes = int(step.runtime.get("nodes", 1))
    once: Manifest = {"backoffLimit": 0, "podReplacementPolicy": "Failed"}
    once |= {"completions": nodes, "parallelism": nodes}  # Trainer knows them by numNodes, Kueue only so
    once |= {"template": _template(work, step, "node")}
    label = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}  # by which Trainer finds its container
    job = {"name": "node", "template": {"metadata": {"labels": label}, "spec": once}}
    job_set = {"failurePolicy": {"maxRestarts": 0}, "replicatedJobs": [job]}
    spec = {"mlPolicy": {"numNodes": nodes, "torch": {}}, "template": {"spec": job_set}}
    meta = _unqueued(_metadata(work, step))
    meta["name"] = f"{meta['name']}-{digest(spec)[:8]}"
    meta["labels"]["trainer.kubeflow.org/framework"] = "torch"
    api = naming.API_VERSIONS["TrainJob"]
    return {"apiVersion": api, "kind": "TrainingRuntime", "metadata": meta, "spec": spec}
