"""What a stage's Pod looks like: restricted, read-only, its scratch the only place it writes. Pure.

Used by jobs. The Pod gets no service-account token, and credentials only from Secrets of the run's namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusechat.spec import FusionRun, Model
from fusechat.spec_types import Resources, Scratch
from fusechat.steps import Step

from fusechat_operator import naming
from fusechat_operator.places import Place as Place
from fusechat_operator.places import place as place
from fusechat_operator.settings import Settings

SCRATCH, SHM = "/scratch", "/dev/shm"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
COMMAND = ["python", "-m", "fusechat_stages.entry"]
GRACE_SECONDS = {"fuse": 300}
"""Time to save a checkpoint after SIGTERM; the others have the 30 s of Kubernetes."""

ON_GPU = frozenset({"extract", "evaluate", "fuse"})

# stage -> (CPUs, memory, scratch) without a GPU, and for each GPU; scratch is per Pod
PLAIN: Mapping[str, tuple[str, str, str]] = {
    "resolve": ("100m", "512Mi", "1Gi"),
    "fetch": ("500m", "2Gi", "20Gi"),
    "extract": ("1", "3Gi", "10Gi"),
    "align": ("1", "3Gi", "10Gi"),
    "filter": ("250m", "1Gi", "2Gi"),
    "fuse": ("1", "4Gi", "10Gi"),
    "merge": ("1", "3Gi", "10Gi"),
    "evaluate": ("1", "3Gi", "10Gi"),
    "report": ("100m", "1Gi", "1Gi"),
}
LARGE: Mapping[str, tuple[str, str, str]] = {
    "fetch": ("2", "4Gi", "50Gi"),
    "align": ("1", "4Gi", "50Gi"),
    "filter": ("500m", "2Gi", "20Gi"),
    "merge": ("8", "16Gi", "100Gi"),
    "merge Published": ("8", "96Gi", "100Gi"),
}
"""The same of a run that trains on GPUs: billions of parameters, gigabytes of rows. Published merges whole
tensors, one a thread: 4 GiB for the largest of a 7B model and five targets, on up to 18 threads."""

PER_GPU: Mapping[str, tuple[int, int, str]] = {
    "extract": (8, 64, "200Gi"),
    "evaluate": (8, 64, "200Gi"),
    "fuse": (10, 72, "200Gi"),
}
"""CPUs and GiB of memory a GPU, scratch a Pod: eight of them fit every cloud's machine of 8 A100, which have
from 96 CPUs and 633 GiB on; a 7B model in float32 and its checkpoint take less."""


def asked(run: FusionRun, step: Step) -> tuple[Resources, Scratch | None]:
    """What the spec asks for a step: a model's own before the stage's. Fields may still be unset."""
    spec, model = run.spec, _model(run, step)
    stage = getattr(spec.resources, step.stage)
    own = model.resources if model and step.stage in ("extract", "evaluate") else None
    scratch = model.scratch if model and step.stage in ("fetch", "extract", "evaluate") else None
    return own or stage or Resources(), scratch or getattr(spec.scratch, step.stage)


def _model(run: FusionRun, step: Step) -> Model | None:
    """The model that a step loads, or one of its shape: what a run makes has the pivot's."""
    pivot, name = run.spec.pivot, step.source
    if step.stage == "evaluate" and step.subject:
        name = step.subject.name if step.subject.kind == "Source" else pivot.name
    name = pivot.name if name == "pivot" else name
    return next((model for model in (pivot, *run.spec.sources) if model.name == name), None)


def gpus(run: FusionRun, step: Step) -> int:
    """GPUs of one Pod of a step."""
    told, _ = asked(run, step)
    if told.gpus is not None:
        return told.gpus
    if step.stage == "fuse":
        return int(step.runtime.get("processes", 1))
    return 1 if step.stage in ON_GPU else 0


def resources(run: FusionRun, step: Step) -> dict[str, Any]:
    """Requests and limits: memory is limited to its request, CPUs are not (idle ones help others)."""
    told, _ = asked(run, step)
    count = gpus(run, step)
    cpu, memory, _ = _defaults(run, step)
    requests = {"cpu": str(told.cpu or cpu), "memory": str(told.memory or memory)}
    limits = {"memory": requests["memory"]}
    if count:
        requests[told.gpu_resource] = limits[told.gpu_resource] = str(count)
    return {"requests": requests, "limits": limits}


def _defaults(run: FusionRun, step: Step) -> tuple[str, str, str]:
    count, fuse = gpus(run, step), run.spec.resources.fuse
    if count and step.stage in PER_GPU:
        cpus, gibibytes, scratch = PER_GPU[step.stage]
        return str(cpus * count), f"{gibibytes * count}Gi", scratch
    small = fuse is not None and fuse.gpus == 0
    if small:
        return PLAIN[step.stage]
    named = (f"{step.stage} {run.spec.profile}", step.stage)
    return next((LARGE[name] for name in named if name in LARGE), PLAIN[step.stage])


def template(
    run: FusionRun,
    step: Step,
    where: Place,
    settings: Settings,
    arguments: list[str],
    child: str,
    container: str,
) -> dict[str, Any]:
    """The Pod template (metadata and spec) of a step; `container` is the name that its launcher demands."""
    labels = {
        **naming.run_labels(run.metadata.name, run.metadata.uid or ""),
        naming.STEP: step.name,
        naming.STAGE: step.stage,
        naming.CHILD: child,
    }
    annotations = {
        **settings.pod_annotations,
        "kubectl.kubernetes.io/default-container": container,
        "sidecar.istio.io/inject": "false",  # a sidecar that never ends keeps a Job from ending
    }
    return {
        "metadata": {"labels": labels, "annotations": annotations},
        "spec": spec(run, step, where, settings, arguments, container),
    }


def spec(
    run: FusionRun, step: Step, where: Place, settings: Settings, arguments: list[str], container: str
) -> dict[str, Any]:
    made = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # As process 1 a stage that is stopped while Python starts would not even notice.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": GRACE_SECONDS.get(step.stage, 30),
        "securityContext": pod_security(settings),
        "containers": [_container(run, step, where, settings, arguments, container)],
        "volumes": _volumes(run, step, settings),
        **placement(run),
        **accounts(where, settings),
    }
    return made


def accounts(where: Place, settings: Settings) -> dict[str, Any]:
    """Who a Pod is to its cloud, and how its image is pulled."""
    made: dict[str, Any] = {}
    if where.service_account:
        made["serviceAccountName"] = where.service_account
    if settings.image_pull_secrets:
        made["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return made


def pod_security(settings: Settings) -> dict[str, Any]:
    who = settings.run_as
    return {
        "runAsNonRoot": True,
        "runAsUser": who,
        "runAsGroup": who,
        "fsGroup": who,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container(
    run: FusionRun, step: Step, where: Place, settings: Settings, arguments: list[str], name: str
) -> dict[str, Any]:
    return {
        "name": name,
        "image": settings.image_of(step.stage),
        "imagePullPolicy": settings.image_pull_policy,
        "command": COMMAND,
        "args": arguments,
        "env": environment(run, step, where),
        "resources": _with_scratch(resources(run, step), run, step, settings),
        "securityContext": RESTRICTED,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH}, {"name": "shm", "mountPath": SHM}],
    }


def environment(run: FusionRun, step: Step, where: Place) -> list[dict[str, Any]]:
    """Where to write, where the store is, and the credentials, each from a key of a Secret."""
    plain = {
        "FUSECHAT_SCRATCH": SCRATCH,
        "HF_HOME": f"{SCRATCH}/huggingface",
        "OMP_NUM_THREADS": str(_threads(run, step)),
        "FUSECHAT_GPUS": str(gpus(run, step) or ""),
    }
    made = store_environment(where, plain)
    return made + [_from_secret(name, key) for name, key in _origin_secrets(run, step)]


def store_environment(where: Place, more: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """What a process needs to reach the store, and to write nothing but its scratch."""
    plain = {
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        **(more or {}),
        "AWS_ENDPOINT_URL_S3": where.endpoint,
        "AWS_REGION": where.region,
    }
    made: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in plain.items() if value]
    return made + [_from_secret(where.secret, key) for key in STORE_KEYS if where.secret]


STORE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def _from_secret(secret: str | None, key: str, name: str = "") -> dict[str, Any]:
    reference = {"name": secret, "key": key, "optional": key not in STORE_KEYS[:2]}
    return {"name": name or key, "valueFrom": {"secretKeyRef": reference}}


def _origin_secrets(run: FusionRun, step: Step) -> list[tuple[str, str]]:
    """Secrets of what the step fetches; resolve looks at all origins, so the first token serves them all."""
    if step.stage not in ("fetch", "resolve"):
        return []
    spec = run.spec
    named = [(m.name, m.secret_ref) for m in (spec.pivot, *spec.sources)]
    named += [("dataset", spec.dataset.secret_ref)]
    wanted = {step.source, spec.pivot.name if step.source == "pivot" else step.source}
    found = [ref.name for name, ref in named if ref and (step.stage == "resolve" or name in wanted)]
    return [(found[0], "HF_TOKEN")] if found else []


def _threads(run: FusionRun, step: Step) -> int:
    """Threads of one process: the CPUs asked for, shared by the processes of the Pod."""
    text = resources(run, step)["requests"]["cpu"]
    cpus = float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    return max(1, int(cpus) // int(step.runtime.get("processes", 1)))


def _scratch(run: FusionRun, step: Step) -> Scratch:
    _, told = asked(run, step)
    return told or Scratch(size=_defaults(run, step)[2])


def _with_scratch(made: dict[str, Any], run: FusionRun, step: Step, settings: Settings) -> dict[str, Any]:
    disk = _scratch(run, step)
    if disk.storage_class is None and settings.scratch_requests:
        made["requests"]["ephemeral-storage"] = str(disk.size)
    return made


def _volumes(run: FusionRun, step: Step, settings: Settings) -> list[dict[str, Any]]:
    disk = _scratch(run, step)
    if disk.storage_class is None:
        scratch: dict[str, Any] = {"emptyDir": {"sizeLimit": str(disk.size)}}
    else:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": disk.storage_class,
            "resources": {"requests": {"storage": str(disk.size)}},
        }
        scratch = {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
    return [
        {"name": "scratch", **scratch},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]


def placement(run: FusionRun) -> dict[str, Any]:
    told = run.spec.scheduling.model_dump(
        by_alias=True, exclude_none=True, include={"node_selector", "tolerations", "affinity"}
    )
    made = {key: _plain(value) for key, value in told.items() if value}
    if run.spec.scheduling.priority_class:
        made["priorityClassName"] = run.spec.scheduling.priority_class
    return made


def _plain(value: Any) -> Any:
    """Tuples as lists, and empty lists and maps left out: the API server drops them, and so must we."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if v not in ((), [], {})}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
