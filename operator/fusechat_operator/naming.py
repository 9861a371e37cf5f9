"""Names and labels of everything the operator makes; the whole address is an annotation (a label holds 63).

Pure. Used by jobs, reconcile, cluster and handlers.
"""

from __future__ import annotations

import hashlib
from typing import Any

GROUP = "fusechat.io"
RUN = f"{GROUP}/run"
UID = f"{GROUP}/run-uid"
STEP = f"{GROUP}/step"
STAGE = f"{GROUP}/stage"
ADDRESS = f"{GROUP}/address"
CHILD = f"{GROUP}/child"
GPUS = f"{GROUP}/gpus"
TEMPLATE = f"{GROUP}/template"
RETRY_AT = f"{GROUP}/retry-at"
HEARTBEAT = f"{GROUP}/heartbeat"
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "fusechat"
SELECTOR = f"{MANAGED_BY}={MANAGER}"
QUEUE = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"

API_VERSIONS = {
    "Job": "batch/v1",
    "PyTorchJob": "kubeflow.org/v1",
    "TrainJob": "trainer.kubeflow.org/v1alpha1",
}
PLURALS = {"Job": "jobs", "PyTorchJob": "pytorchjobs", "TrainJob": "trainjobs"}


def child_name(stage: str, address: str, store_uri: str) -> str:
    """One name for one artifact in one store, so that two runs that need it meet at the same child."""
    return f"{stage}-{hashlib.sha256(f'{address} {store_uri}'.encode()).hexdigest()[:20]}"


def run_labels(name: str, uid: str) -> dict[str, str]:
    """What every object of a run carries."""
    return {MANAGED_BY: MANAGER, RUN: name, UID: uid}


def owner(run: dict[str, Any]) -> dict[str, Any]:
    """The one owner of a child. Its deletion never waits for the child: blockOwnerDeletion is false."""
    meta = run["metadata"]
    return {
        "apiVersion": run["apiVersion"],
        "kind": run["kind"],
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }


def short_hash(address: str) -> str:
    """First 40 hex digits of an address, for a label."""
    return address.rpartition("/")[2][:40]
