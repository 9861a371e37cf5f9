"""A probe: the Job by which a run's own store is asked, and what its Pods answered. Pure.

Used by own_store. A probe runs in the run's namespace with the run's way in and answers through its Pods'
termination messages, so that the operator reads no Secret and no log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusechat import inquiry
from fusechat.inquiry import Question
from fusechat.spec import FusionRun

from fusechat_operator import naming, pods
from fusechat_operator.causes import cause
from fusechat_operator.children import Child, Pod
from fusechat_operator.facts import Trouble
from fusechat_operator.places import Place
from fusechat_operator.settings import Settings

PREFIX = STAGE = "probe"
COMMAND = ["python", "-m", "fusechat_stages.probe"]
QUESTIONS_A_POD, MOST_PODS = 24, 24
SCRATCH = "64Mi"
DEADLINE_SECONDS = 900
KEPT_SECONDS = 300
"""How long a probe that failed is there for a person to see; one that did not goes when it was read."""

LONGEST_ARGUMENT = 100_000
"""Linux takes 131,072 bytes; etcd a megabyte of all together."""


@dataclass(frozen=True)
class Probe:
    """One Job and what it asks; `manifest` is how it is made."""

    name: str
    questions: tuple[Question, ...]
    manifest: Mapping[str, Any]


def is_probe(child: Child) -> bool:
    """Whether a child of a run is none of its steps."""
    return child.name.startswith(f"{PREFIX}-")


def build(
    found: Mapping[str, Any],
    run: FusionRun,
    where: Place,
    settings: Settings,
    asked: Sequence[Question],
    salt: str,
) -> Probe:
    """The same questions of the same moment (`salt`) make the same name: an operator finds its own again."""
    packed, meta = inquiry.pack(asked), found["metadata"]
    told = f"{meta['uid']} {where.identity} {salt} {packed}"
    name = f"{PREFIX}-{hashlib.sha256(told.encode()).hexdigest()[:20]}"
    count = max(1, min(MOST_PODS, -(-len(asked) // QUESTIONS_A_POD)))
    labels = {
        **naming.run_labels(run.metadata.name, str(meta["uid"])),
        naming.STEP: STAGE,
        naming.STAGE: STAGE,
        naming.CHILD: name,
    }
    made = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": run.metadata.namespace,
            "labels": {**labels, **_queue(run)},
            "ownerReferences": [naming.owner(dict(found))],
        },
        "spec": {
            **_job_spec(count),
            **({"suspend": True} if run.spec.scheduling.queue_name else {}),
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {**settings.pod_annotations, "sidecar.istio.io/inject": "false"},
                },
                "spec": _pod(run, where, settings, _arguments(where, packed, count)),
            },
        },
    }
    return Probe(name, tuple(asked), made)


def _queue(run: FusionRun) -> dict[str, str]:
    """As of the run's other children: no Job of it runs past its quota."""
    if not run.spec.scheduling.queue_name:
        return {}
    priority = run.metadata.labels.get(naming.QUEUE_PRIORITY)
    return {
        naming.QUEUE: run.spec.scheduling.queue_name,
        **({naming.QUEUE_PRIORITY: priority} if priority else {}),
    }


def _job_spec(count: int) -> dict[str, Any]:
    taken = {"type": "DisruptionTarget", "status": "True"}
    made: dict[str, Any] = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": DEADLINE_SECONDS,
        "ttlSecondsAfterFinished": KEPT_SECONDS,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [taken]}]},
    }
    if count > 1:
        made |= {"completionMode": "Indexed", "completions": count, "parallelism": count}
    return made


def _arguments(where: Place, packed: str, count: int) -> list[str]:
    index = "$(JOB_COMPLETION_INDEX)" if count > 1 else "0"
    pieces = [packed[at : at + LONGEST_ARGUMENT] for at in range(0, len(packed), LONGEST_ARGUMENT)]
    store = where.uri.replace("$", "$$")
    return [f"--store={store}", f"--part={index}/{count}", *(f"--ask={piece}" for piece in pieces)]


def _pod(run: FusionRun, where: Place, settings: Settings, arguments: list[str]) -> dict[str, Any]:
    requests = {"cpu": "50m", "memory": "256Mi"}
    if settings.scratch_requests:
        requests["ephemeral-storage"] = SCRATCH
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": pods.pod_security(settings),
        "containers": [
            {
                "name": "stage",
                "image": settings.image_of("resolve"),
                "imagePullPolicy": settings.image_pull_policy,
                "command": COMMAND,
                "args": arguments,
                "env": pods.store_environment(where),
                "resources": {"requests": requests, "limits": {"memory": requests["memory"]}},
                "securityContext": pods.RESTRICTED,
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [{"name": "scratch", "mountPath": pods.SCRATCH}],
            }
        ],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": SCRATCH}}],
        **pods.placement(run),
        **pods.accounts(where, settings),
    }


def answers(listed: Sequence[Pod]) -> dict[int, Any]:
    """What its Pods answered, by the questions' numbers; one that is not there is to be asked again."""
    found: dict[int, Any] = {}
    for pod in listed:
        packed = (pod.summary or {}).get("answer")
        if not isinstance(packed, str):
            continue
        try:
            told = inquiry.unpack(packed)
        except ValueError:
            continue  # not ours, or of another release: as if it were silent
        found |= {int(number): answer for number, answer in told.items()}
    return found


def trouble(where: Place, child: Child, listed: Sequence[Pod]) -> Trouble:
    """Why a probe failed, for the run's status."""
    why = cause(child, listed, ())
    return Trouble(f"{why.sentence} (asked with {where.way_in})", refused=why.exit_code == 69)
