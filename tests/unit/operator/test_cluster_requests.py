"""What the cluster module asks of an API server, and how it takes the answers; caught at the wire."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fusechat_operator import cluster as module
from fusechat_operator.children import child
from fusechat_operator.cluster import ApiRefusal, Cluster, Limiter
from kubernetes.aio import client

from tests.unit.operator.world import World, a_run, begun


class Wire(Cluster):
    """Requests are kept; `answers` by "METHOD path", each a document or a refusal, the last one for ever."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__(None, 1e6, 10**6)  # type: ignore[arg-type]
        self.answers = {key: list(v) if isinstance(v, list) else [v] for key, v in answers.items()}
        self.sent: list[tuple[str, str, Any]] = []

    async def request(self, method, path, body=None, query=None, kind="application/json", urgent=False):
        self.sent.append((method, path, body))
        waiting = self.answers.get(f"{method} {path}", [ApiRefusal(404, "NotFound", "not found")])
        found = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(found, Exception):
            raise found
        return found


THERE = ApiRefusal(409, "AlreadyExists", 'jobs.batch "x" already exists')
EVENTS = "/api/v1/namespaces/team/events"
RUN = {"metadata": {"namespace": "team", "name": "run"}}


def test_an_event_that_is_there_already_is_counted_up():
    wire = Wire({f"POST {EVENTS}": THERE, f"GET {EVENTS}/e": {"count": 3}, f"PATCH {EVENTS}/e": {}})
    asyncio.run(wire.post_event(RUN, "e", {"reason": "StepFailed", "lastTimestamp": "now"}))
    assert wire.sent[-1] == ("PATCH", f"{EVENTS}/e", {"count": 4, "lastTimestamp": "now"})


@pytest.mark.parametrize("old", [{}, {"count": None}])
def test_an_event_without_a_count_counts_as_one(old):
    wire = Wire({f"POST {EVENTS}": THERE, f"GET {EVENTS}/e": old, f"PATCH {EVENTS}/e": {}})
    asyncio.run(wire.post_event(RUN, "e", {"lastTimestamp": "now"}))
    assert wire.sent[-1][2]["count"] == 2


def test_a_new_event_is_one_request():
    wire = Wire({f"POST {EVENTS}": {}})
    asyncio.run(wire.post_event(RUN, "e", {"lastTimestamp": "now"}))
    assert len(wire.sent) == 1


def test_an_event_that_is_refused_is_the_callers_to_know():
    wire = Wire({f"POST {EVENTS}": ApiRefusal(403, "Forbidden", "no")})
    with pytest.raises(ApiRefusal):
        asyncio.run(wire.post_event(RUN, "e", {"lastTimestamp": "now"}))


def jobs(name: str = "") -> str:
    return f"/apis/batch/v1/namespaces/team/jobs{'/' if name else ''}{name}"


def test_creating_what_is_there_is_no_error_and_all_else_is():
    (manifest, *_) = World(a_run()).decide().create
    asyncio.run(Wire({f"POST {jobs()}": THERE}).create(manifest))
    for refusal in (ApiRefusal(409, "Conflict", "x"), ApiRefusal(403, "Forbidden", "quota")):
        with pytest.raises(ApiRefusal):
            asyncio.run(Wire({f"POST {jobs()}": refusal}).create(manifest))


@pytest.mark.parametrize("status", [404, 409])
def test_a_deletion_names_what_was_looked_at_and_forgives_that_it_is_another_or_gone(status):
    gone = child(begun("merge").child_of("merge"))
    wire = Wire({f"DELETE {jobs(gone.name)}": ApiRefusal(status, "x", "x")})
    asyncio.run(wire.delete("team", gone))
    ((_, _, options),) = wire.sent
    assert options["preconditions"] == {"uid": gone.uid, "resourceVersion": gone.version}
    assert options["propagationPolicy"] == "Background"
    wire = Wire({f"DELETE {jobs(gone.name)}": ApiRefusal(403, "Forbidden", "x")})
    with pytest.raises(ApiRefusal):
        asyncio.run(wire.delete("team", gone))


@pytest.mark.parametrize(
    ("installed", "want"),
    [
        (("Job", "PyTorchJob", "TrainJob"), ("PyTorchJob", "TrainJob", "Job")),
        (("Job", "TrainJob"), ("TrainJob", "Job")),
        (("Job",), ("Job",)),
    ],
)
def test_launchers_are_discovered_in_autos_order_and_remembered_for_a_minute(installed, want, monkeypatch):
    apis = {"Job": "batch/v1", "PyTorchJob": "kubeflow.org/v1", "TrainJob": "trainer.kubeflow.org/v1alpha1"}
    wire = Wire({f"GET /apis/{apis[kind]}": {"resources": [{"kind": kind}]} for kind in installed})
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    assert asyncio.run(wire.kinds()) == want
    count = len(wire.sent)
    assert asyncio.run(wire.kinds()) == want
    assert len(wire.sent) == count
    now[0] += 61
    asyncio.run(wire.kinds())
    assert len(wire.sent) == 2 * count


def test_a_group_without_the_kind_is_not_a_launcher():
    """kubeflow.org may be served by another of its operators."""
    wire = Wire(
        {
            "GET /apis/batch/v1": {"resources": [{"kind": "Job"}]},
            "GET /apis/kubeflow.org/v1": {"resources": [{"kind": "TFJob"}]},
        }
    )
    assert asyncio.run(wire.kinds()) == ("Job",)


def test_children_of_a_run_are_those_that_it_owns_whatever_their_labels_say():
    world = begun("fuse-s0", "fuse-s1")
    mine, other = world.child_of("fuse-s0"), world.child_of("fuse-s1")
    other["metadata"]["ownerReferences"][0]["uid"] = "somebody-else"
    path = "/apis/kubeflow.org/v1/namespaces/team/pytorchjobs"
    wire = Wire({f"GET {path}": {"items": [mine, other]}})
    uid = world.runs["run"]["metadata"]["uid"]
    found = asyncio.run(wire.own("team", f"{uid}/PyTorchJob"))
    assert [each.name for each in found] == [mine["metadata"]["name"]]


def test_a_failed_child_loses_its_time_to_live():
    failed = child(begun("fuse-s0").child_of("fuse-s0"))
    path = f"/apis/kubeflow.org/v1/namespaces/team/pytorchjobs/{failed.name}"
    wire = Wire({f"PATCH {path}": {}})
    asyncio.run(wire.keep("team", failed))
    assert wire.sent[-1][2] == {"spec": {"runPolicy": {"ttlSecondsAfterFinished": None}}}
    asyncio.run(Wire({}).keep("team", failed)), "it may be gone"


@pytest.mark.parametrize(
    ("data", "reason", "says"),
    [
        (b'{"reason": "Forbidden", "message": "exceeded quota"}', "Forbidden", "exceeded quota"),
        (b"upstream connect error", "", "upstream connect error"),
        (b"{}", "", ""),
        (b"\xff\xfe", "", ""),
    ],
)
def test_a_refusal_has_the_servers_own_words(data, reason, says):
    found = module._refusal(403, data)
    assert (found.status, found.reason) == (403, reason)
    assert says in str(found)


def test_requests_beyond_the_burst_are_spaced(monkeypatch):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))

    monkeypatch.setattr(module.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(module.asyncio, "sleep", sleep)

    async def scene() -> None:
        limiter = Limiter(qps=10, burst=3)
        for _ in range(6):
            await limiter.take()

    asyncio.run(scene())
    assert slept == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("said", "again"), [("7", 7.0), (None, 0.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0), ("-1", 0.0)]
)
def test_a_refusal_tells_when_to_ask_again(said, again):
    async def asked() -> ApiRefusal:
        async def refuse(_: web.Request) -> web.Response:
            told = {"reason": "TooManyRequests", "message": "slow down"}
            return web.json_response(told, status=429, headers={"Retry-After": said} if said else {})

        app = web.Application()
        app.router.add_get("/x", refuse)
        async with TestServer(app) as server:
            made = client.Configuration()
            made.host = str(server.make_url("")).rstrip("/")
            found = Cluster(client.ApiClient(made), 1e6, 10**6)
            with pytest.raises(ApiRefusal, match="slow down") as caught:
                await found.request("GET", "/x")
            await found.close()
        return caught.value

    found = asyncio.run(asked())
    assert (found.status, found.reason, found.again) == (429, "TooManyRequests", again)


def test_an_upgrade_of_kueue_is_not_its_absence():
    """The version that was looked up a moment ago is served no more."""
    path = "GET /apis/kueue.x-k8s.io/{}/namespaces/team/workloads"
    there = {"items": [{"spec": {}, "status": {}}]}
    missing = ApiRefusal(404, "NotFound", "the server could not find the requested resource")
    versions = [{"preferredVersion": {"version": version}} for version in ("v1beta1", "v1beta2")]
    wire = Wire({
        "GET /apis/kueue.x-k8s.io": versions,
        path.format("v1beta1"): [there, missing],
        path.format("v1beta2"): there,
    })  # fmt: skip
    assert asyncio.run(wire.workload("team", "u")).seen
    with pytest.raises(ApiRefusal, match="no longer serves v1beta1") as refused:
        asyncio.run(wire.workload("team", "u"))
    assert refused.value.status == 503, "the look is tried again"
    assert asyncio.run(wire.workload("team", "u")).seen
