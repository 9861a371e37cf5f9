"""The only module that talks to the API server. Objects come and go as plain dicts.

Used by the engine, lease and health. Requests are spaced to the settings' rate, so that a storm of runs waits
here and not in the API server; a refusal by the server is an ApiRefusal with its own words.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.config.config_exception import ConfigException

from fusechat_operator import naming
from fusechat_operator.children import Child, Pod, child, pod
from fusechat_operator.workloads import NO_KUEUE, UNSEEN, Queued, queued

RUNS = "/apis/fusechat.io/v1alpha1"
TIMEOUT_SECONDS = 20.0
Object = dict[str, Any]


class ApiRefusal(Exception):
    """The server said no. `status` is HTTP's, `reason` Kubernetes' (AlreadyExists, Conflict, ...).

    `again`: in how many seconds it wants to be asked again, 0.0 where it did not say.
    """

    def __init__(self, status: int, reason: str, message: str, again: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.reason, self.again = status, reason, again

    @property
    def webhook_is_away(self) -> bool:
        """The server is there, and an admission webhook that it must ask first is not: Kueue's, for one."""
        return self.status >= 500 and "webhook" in str(self)

    @property
    def stays(self) -> bool:
        """A policy, a quota, missing rights or a webhook that is away: another try at once meets the same."""
        return self.status in (400, 403, 422) or self.webhook_is_away


class Limiter:
    """A token bucket: `qps` requests a second over time, `burst` at once."""

    def __init__(self, qps: float, burst: int) -> None:
        self._qps, self._burst = qps, float(burst)
        self._tokens, self._at = float(burst), time.monotonic()

    async def take(self) -> None:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._qps)
        self._at = now
        self._tokens -= 1.0
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._qps)


class Cluster:
    """One API server. Made by `connect`."""

    def __init__(self, api: client.ApiClient, qps: float, burst: int) -> None:
        self.api, self._limiter = api, Limiter(qps, burst)
        self.counted: Callable[[str, str], None] = lambda method, what: None
        self._launchers: tuple[float, tuple[str, ...]] = (0.0, ())
        self._kueue_known = (0.0, "")

    @classmethod
    async def connect(cls, qps: float, burst: int) -> Cluster:
        """From the Pod's service account, else from KUBECONFIG (or ~/.kube/config)."""
        made = client.Configuration()
        if os.environ.get("KUBECONFIG") or not os.environ.get("KUBERNETES_SERVICE_HOST"):
            try:
                await config.load_kube_config(client_configuration=made)  # type: ignore[no-untyped-call]
            except ConfigException as error:
                raise ValueError(
                    f"no cluster to talk to: no Pod and no usable kubeconfig ({error}); set KUBECONFIG"
                ) from error
        else:
            config.load_incluster_config(client_configuration=made)  # type: ignore[no-untyped-call]
        made.connection_pool_maxsize = 64
        return cls(client.ApiClient(made), qps, burst)

    async def close(self) -> None:
        await self.api.close()  # type: ignore[no-untyped-call]

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        kind: str = "application/json",
        urgent: bool = False,
    ) -> Object:
        """One request. ApiRefusal for an answer that is no success, OSError where none came."""
        data = await self._raw(method, path, body, query, kind, urgent)
        found: Object = json.loads(data) if data else {}
        return found

    async def _raw(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        kind: str = "application/json",
        urgent: bool = False,
    ) -> bytes:
        if not urgent:
            await self._limiter.take()
        self.counted(method, _what(path))
        headers = {"Accept": "application/json, */*", "Content-Type": kind}
        await self.api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = self.api.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            answer = await self.api.rest_client.request(  # type: ignore[no-untyped-call]
                method, url, headers=headers, body=body, _request_timeout=TIMEOUT_SECONDS
            )
            data = await answer.read()
        except TimeoutError as error:
            raise OSError(f"the API server did not answer within {TIMEOUT_SECONDS:.0f} s") from error
        except aiohttp.ClientError as error:
            raise OSError(f"the API server cannot be reached: {error}") from error
        if not 200 <= answer.status < 300:
            raise _refusal(answer.status, data, answer.getheader("Retry-After", ""))
        return bytes(data)

    # runs

    async def run(self, namespace: str, name: str) -> Object | None:
        """The FusionRun, or None."""
        return await self._get(f"{RUNS}/namespaces/{namespace}/fusionruns/{quote(name)}")

    async def write_status(self, found: Object, status: Mapping[str, Any]) -> None:
        """Replace the status of the object as it was read: ApiRefusal Conflict if it has changed since."""
        meta = found["metadata"]
        path = f"{RUNS}/namespaces/{meta['namespace']}/fusionruns/{quote(meta['name'])}/status"
        await self.request("PUT", path, {**found, "status": dict(status)})

    # children

    async def child(self, namespace: str, key: str) -> Child | None:
        """A child by `Kind/name`."""
        kind, name = key.split("/")
        found = await self._get(f"{_path(kind, namespace)}/{quote(name)}")
        return child({"kind": kind, **found}) if found else None

    async def own(self, namespace: str, key: str) -> list[Child]:
        """All children of a run by its uid, whatever launches them; of `uid/Kind` those of one kind."""
        uid, _, only = key.partition("/")
        found: list[Child] = []
        for kind in [only] if only else await self.kinds():
            query = {"labelSelector": f"{naming.UID}={uid}"}
            listed = await self.request("GET", _path(kind, namespace), query=query)
            found += [child({"kind": kind, **item}) for item in listed["items"]]
        return [each for each in found if each.owner == uid]

    async def pods(self, namespace: str, name: str) -> list[Pod]:
        """The Pods of a child that are still there."""
        query = {"labelSelector": f"{naming.CHILD}={name}"}
        listed = await self.request("GET", f"/api/v1/namespaces/{namespace}/pods", query=query)
        return [pod(item) for item in listed["items"]]

    async def workload(self, namespace: str, uid: str) -> Queued:
        """How a child stands with Kueue, if there is one."""
        version = await self._kueue()
        if not version:
            return NO_KUEUE
        path = f"/apis/kueue.x-k8s.io/{version}/namespaces/{namespace}/workloads"
        try:
            listed = await self.request("GET", path, query={"labelSelector": f"kueue.x-k8s.io/job-uid={uid}"})
        except ApiRefusal as error:
            if error.status != 404:
                raise
            self._kueue_known = (0.0, "")  # upgraded or gone: the next look asks again
            raise ApiRefusal(503, "", f"Kueue no longer serves {version}") from error
        return queued(listed["items"][0]) if listed["items"] else UNSEEN

    async def warning(self, namespace: str, uid: str) -> str:
        """The newest complaint of a controller about an object; "" if there is none."""
        query = {"fieldSelector": f"involvedObject.uid={uid},type=Warning"}
        found = (await self.request("GET", f"/api/v1/namespaces/{namespace}/events", query=query))["items"]
        found.sort(key=lambda event: str(event.get("lastTimestamp") or ""))
        return str(found[-1].get("message", "")) if found else ""

    async def _kueue(self) -> str:
        """Kueue's API version, "" where it is not installed; a known one is looked up once a minute."""
        at, known = self._kueue_known
        if known and time.monotonic() - at < 60:
            return known
        found = await self._get("/apis/kueue.x-k8s.io")
        self._kueue_known = (time.monotonic(), str(found["preferredVersion"]["version"]) if found else "")
        return self._kueue_known[1]

    async def create(self, manifest: Mapping[str, Any]) -> None:
        """Create a child or its Service. That it is there already is no error; all else is an ApiRefusal."""
        namespace, kind = manifest["metadata"]["namespace"], manifest["kind"]
        try:
            await self.request("POST", _path(kind, namespace), dict(manifest))
        except ApiRefusal as error:
            if error.reason != "AlreadyExists":
                raise

    async def delete(self, namespace: str, gone: Child, whatever: bool = False) -> None:
        """Delete a child with grace, if it is as it was looked at; or `whatever` has become of it."""
        still = {"uid": gone.uid} if whatever else {"uid": gone.uid, "resourceVersion": gone.version}
        options = {"propagationPolicy": "Background", "preconditions": still}
        try:
            await self.request("DELETE", f"{_path(gone.kind, namespace)}/{quote(gone.name)}", options)
        except ApiRefusal as error:
            if error.status not in (404, 409):
                raise

    async def keep(self, namespace: str, failed: Child) -> None:
        """Take a failed child's time to live away, so that a person finds it and its Pods' logs."""
        never = {"ttlSecondsAfterFinished": None}
        spec = {"Job": never, "PyTorchJob": {"runPolicy": never}}.get(failed.kind)
        if spec is None:
            return
        path = f"{_path(failed.kind, namespace)}/{quote(failed.name)}"
        try:
            await self.request("PATCH", path, {"spec": spec}, kind="application/merge-patch+json")
        except ApiRefusal as error:
            if error.status != 404:
                raise

    async def kinds(self) -> tuple[str, ...]:
        """The launchers that are installed, in Auto's order; looked up at most once a minute."""
        at, known = self._launchers
        if known and time.monotonic() - at < 60:
            return known
        there = []
        for kind, api in naming.API_VERSIONS.items():
            found = await self._get(f"/apis/{api}")
            if found and any(r["kind"] == kind for r in found["resources"]):
                there.append(kind)
        ordered = tuple(sorted(there, key=("PyTorchJob", "TrainJob", "Job").index))
        self._launchers = (time.monotonic(), ordered)
        return ordered

    # people's commands

    async def change(self, found: Object, patch: Mapping[str, Any]) -> None:
        """Merge a change into a FusionRun."""
        meta = found["metadata"]
        path = f"{RUNS}/namespaces/{meta['namespace']}/fusionruns/{quote(meta['name'])}"
        await self.request("PATCH", path, dict(patch), kind="application/merge-patch+json")

    async def logs(self, namespace: str, uid: str, step: str) -> AsyncIterator[tuple[str, str]]:
        """(Pod, its log) of each Pod of a step that has begun."""
        query = {"labelSelector": f"{naming.UID}={uid},{naming.STEP}={step}"}
        pods = f"/api/v1/namespaces/{namespace}/pods"
        for item in (await self.request("GET", pods, query=query))["items"]:
            name = item["metadata"]["name"]
            if item.get("status", {}).get("phase") != "Pending":
                yield name, (await self._raw("GET", f"{pods}/{name}/log")).decode(errors="replace")

    # everything else

    async def post_event(self, found: Object, name: str, event: Mapping[str, Any]) -> None:
        """An Event about a run; the same one again counts up."""
        namespace = found["metadata"]["namespace"]
        path = f"/api/v1/namespaces/{namespace}/events"
        try:
            await self.request("POST", path, dict(event))
        except ApiRefusal as error:
            if error.reason != "AlreadyExists":
                raise
            old = await self._get(f"{path}/{name}") or {}
            again = {"count": int(old.get("count") or 1) + 1, "lastTimestamp": event["lastTimestamp"]}
            await self.request("PATCH", f"{path}/{name}", again, kind="application/merge-patch+json")

    async def _get(self, path: str) -> Object | None:
        try:
            return await self.request("GET", path)
        except ApiRefusal as error:
            if error.status == 404:
                return None
            raise


def _path(kind: str, namespace: str) -> str:
    if kind == "Service":
        return f"/api/v1/namespaces/{namespace}/services"
    if kind == "TrainingRuntime":
        return f"/apis/{naming.API_VERSIONS['TrainJob']}/namespaces/{namespace}/trainingruntimes"
    return f"/apis/{naming.API_VERSIONS[kind]}/namespaces/{namespace}/{naming.PLURALS[kind]}"


def _what(path: str) -> str:
    """The resource that a path is about, as `jobs` or `fusionruns/status`."""
    _, _, rest = path.partition("/namespaces/")
    parts = rest.split("/")[1:]
    if not parts:
        return "discovery"
    return f"{parts[0]}/{parts[2]}" if len(parts) > 2 else parts[0]


def _refusal(status: int, data: bytes, after: str = "") -> ApiRefusal:
    again = float(after) if after.isascii() and after.isdigit() else 0.0
    try:
        told = json.loads(data)
        return ApiRefusal(status, str(told.get("reason", "")), str(told.get("message", "")), again)
    except ValueError:
        return ApiRefusal(status, "", data[:200].decode(errors="replace"), again)
