"""What the chart may set: read from the environment once, at start.

Used by `__main__`, which hands it on. Knows no cluster and no store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fusechat.spec import STAGES

SHORT_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")


@dataclass(frozen=True)
class DefaultStore:
    """The cluster's own store. Pods reach it through `secret` or `service_account` of the run's namespace."""

    uri: str
    endpoint: str | None = None
    region: str | None = None
    secret: str | None = None
    service_account: str | None = None


@dataclass(frozen=True)
class Settings:
    """`images` by stage, `image` for those it lacks; `namespaces` () watches all; times in seconds."""

    namespace: str
    identity: str
    image: str
    images: Mapping[str, str] = field(default_factory=dict)
    image_pull_secrets: tuple[str, ...] = ()
    image_pull_policy: str = "IfNotPresent"
    pod_annotations: Mapping[str, str] = field(default_factory=dict)
    namespaces: tuple[str, ...] = ()
    cluster: str = "cluster"
    store: DefaultStore | None = None
    scratch_requests: bool = True
    run_as: int = 65532
    workers: int = 16
    store_threads: int = 16
    api_qps: float = 200.0
    api_burst: int = 400
    poll_seconds: float = 30.0
    queue_seconds: float = 10.0
    lease_seconds: int = 15
    health_port: int = 8080
    metrics_port: int = 9090

    def image_of(self, stage: str) -> str:
        return self.images.get(stage, self.image)


def read(environ: Mapping[str, str]) -> Settings:
    """The settings that `FUSECHAT_*` variables say. ValueError names the variable and what it must be."""
    return Settings(
        namespace=_must(environ, "FUSECHAT_NAMESPACE"),
        identity=_must(environ, "FUSECHAT_IDENTITY"),
        image=_must(environ, "FUSECHAT_IMAGE"),
        images=_images(environ),
        image_pull_secrets=_names(environ, "FUSECHAT_IMAGE_PULL_SECRETS"),
        image_pull_policy=environ.get("FUSECHAT_IMAGE_PULL_POLICY") or "IfNotPresent",
        pod_annotations=_texts(environ, "FUSECHAT_POD_ANNOTATIONS"),
        namespaces=_names(environ, "FUSECHAT_WATCH_NAMESPACES"),
        cluster=environ.get("FUSECHAT_CLUSTER") or "cluster",
        store=_store(environ),
        scratch_requests=(environ.get("FUSECHAT_SCRATCH_REQUESTS") or "true") == "true",
        run_as=int(_number(environ, "FUSECHAT_RUN_AS", 65532)),
        workers=int(_number(environ, "FUSECHAT_WORKERS", 16)),
        store_threads=int(_number(environ, "FUSECHAT_STORE_THREADS", 16)),
        api_qps=_number(environ, "FUSECHAT_API_QPS", 200),
        api_burst=int(_number(environ, "FUSECHAT_API_BURST", 400)),
        poll_seconds=_number(environ, "FUSECHAT_POLL_SECONDS", 30),
        queue_seconds=_number(environ, "FUSECHAT_QUEUE_SECONDS", 10),
        lease_seconds=int(_number(environ, "FUSECHAT_LEASE_SECONDS", 15)),
        health_port=int(_number(environ, "FUSECHAT_HEALTH_PORT", 8080)),
        metrics_port=int(_number(environ, "FUSECHAT_METRICS_PORT", 9090)),
    )


def _must(environ: Mapping[str, str], name: str) -> str:
    if value := environ.get(name):
        return value
    raise ValueError(f"{name} is not set; the chart sets it, and so must whoever starts the operator by hand")


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if not text:
        return float(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value <= 0:
        raise ValueError(f"{name}: expected a number above 0, got {text!r}")
    return value


def _names(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in environ.get(name, "").split(",") if part.strip())
    for each in found:
        if not SHORT_NAME.match(each):
            raise ValueError(f"{name}: expected Kubernetes names with commas between, got {each!r}")
    return found


def _images(environ: Mapping[str, str]) -> dict[str, str]:
    found = _texts(environ, "FUSECHAT_IMAGES")
    if unknown := sorted(set(found) - set(STAGES)):
        raise ValueError(
            f"FUSECHAT_IMAGES: expected images by stage ({', '.join(STAGES)}), got {', '.join(unknown)}"
        )
    return {stage: image for stage, image in found.items() if image}


def _texts(environ: Mapping[str, str], name: str) -> dict[str, str]:
    """A JSON object of texts."""
    text = environ.get(name) or "{}"
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: expected a JSON object, got {text[:80]!r} ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{name}: expected a JSON object of texts, got {text[:80]!r}")
    return found


def _store(environ: Mapping[str, str]) -> DefaultStore | None:
    uri = environ.get("FUSECHAT_STORE")
    if not uri:
        return None
    return DefaultStore(
        uri.rstrip("/"),
        environ.get("FUSECHAT_STORE_ENDPOINT") or None,
        environ.get("FUSECHAT_STORE_REGION") or None,
        environ.get("FUSECHAT_STORE_SECRET") or None,
        environ.get("FUSECHAT_STORE_SERVICE_ACCOUNT") or None,
    )
