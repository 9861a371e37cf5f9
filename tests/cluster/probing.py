"""What a Pod on a fake node would have: its environment with its Secrets, its store, a probe's answer.

Used by the stagehand. kwok runs no container, so the probe's own code runs here, in a process of its own with
the Pod's environment, and its answer becomes the Pod's termination message.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fusechat.store import Store
from fusechat.store_s3 import connect
from kubernetes import client

INDEX = "batch.kubernetes.io/job-completion-index"


def environment(api: client.CoreV1Api, pod: Any) -> dict[str, str]:
    """What the kubelet would set; a key that is not there is left out."""
    found: dict[str, str] = {}
    for variable in pod.spec.containers[0].env or ():
        if variable.value is not None:
            found[variable.name] = variable.value
            continue
        reference = variable.value_from.secret_key_ref
        if reference is None:
            continue  # the index of an Indexed Job, which its controller adds
        try:
            data = api.read_namespaced_secret(reference.name, pod.metadata.namespace).data or {}
        except client.ApiException as error:
            if error.status != 404:
                raise
            data = {}
        if reference.key in data:
            found[variable.name] = base64.b64decode(data[reference.key]).decode()
    return found


def store_of(uri: str, environ: dict[str, str]) -> Store:
    """The store that a process with that environment reaches."""
    made = Store(uri, endpoint=environ.get("AWS_ENDPOINT_URL_S3"), attempts=2)
    keys = environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"]
    made._connected = os.getpid(), connect(made.place, keys, attempts=2)
    return made


def arguments(pod: Any) -> list[str]:
    """The container's, as the kubelet hands them on."""
    index = (pod.metadata.annotations or {}).get(INDEX, "0")
    given = [a.replace("$(JOB_COMPLETION_INDEX)", index) for a in pod.spec.containers[0].args]
    return [a.replace("$$", "$") for a in given]


def play(api: client.CoreV1Api, pod: Any) -> int:
    """Run a probe Pod's own command line, and end the Pod with what it said; its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        plain = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        told = {**plain, **environment(api, pod), "HOME": folder, "TMPDIR": folder}
        told |= {"FUSECHAT_SUMMARY_FILE": str(said), "AWS_EC2_METADATA_DISABLED": "true"}
        command = [sys.executable, *pod.spec.containers[0].command[1:], *arguments(pod)]
        done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=120)
        message = said.read_text() if said.exists() else done.stderr[-2000:]
    assert len(message.encode()) <= 4096, "a kubelet would cut it"
    end(api, pod, done.returncode, message)
    return done.returncode


def end(api: client.CoreV1Api, pod: Any, code: int, message: str) -> None:
    """What a kubelet says of a Pod whose container has ended."""
    container = pod.spec.containers[0]
    ended = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}
    state = {
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"terminated": ended},
    }
    status = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [state]}
    api.patch_namespaced_pod_status(pod.metadata.name, pod.metadata.namespace, {"status": status})
