"""/healthz by a clock of its own: the leader by its heartbeat's echo, a standby by the Lease; over HTTP."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest
from fusechat_operator import health, naming
from fusechat_operator.cluster import ApiRefusal
from fusechat_operator.health import SILENT_SECONDS, Heartbeat

from tests.cluster.ports import free_ports
from tests.unit.operator.runs import SETTINGS


class Clock:
    """The process's clock and the wall's, which run together."""

    def __init__(self, patch):
        self.now = 1_000.0
        patch.setattr(time, "monotonic", lambda: self.now)
        patch.setattr(time, "time", lambda: 1_800_000_000.0 + self.now)


class Server:
    """The API server as far as a heartbeat knows it: one Job, or what it raises."""

    def __init__(self):
        self.job, self.raises, self.asked = None, None, []

    async def request(self, method, path, body, **_):
        self.asked.append(method)
        if self.raises:
            raise self.raises
        if method == "PATCH" and self.job is None:
            raise ApiRefusal(404, "NotFound", "no such Job")
        found = self.job or {**body, "metadata": {**body["metadata"], "namespace": SETTINGS.namespace}}
        found["metadata"]["annotations"] = body["metadata"]["annotations"]
        self.job = found


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def heart(clock, server):
    return Heartbeat(server, SETTINGS)


def beat(heart):
    """One beat, as `beat` does it before it sleeps."""

    async def once():
        task = asyncio.ensure_future(heart.beat())
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(once())


def asked(heart):
    """(status, text) of /healthz and of /readyz, over HTTP."""

    async def both():
        (port,) = free_ports(1)
        runner = await health.serve(heart, port)
        try:
            async with aiohttp.ClientSession() as session:
                answers = []
                for path in ("healthz", "readyz"):
                    async with session.get(f"http://127.0.0.1:{port}/{path}") as answer:
                        answers.append((answer.status, await answer.text()))
                return answers
        finally:
            await runner.cleanup()

    return asyncio.run(both())


def test_a_leader_is_healthy_until_its_echo_is_ninety_seconds_old(heart, server, clock):
    heart.leading = True
    beat(heart)
    heart.heard(server.job)
    assert asked(heart) == [(200, "ok (leader)\n")] * 2
    clock.now += SILENT_SECONDS - 1
    assert asked(heart)[0][0] == 200
    clock.now += 1
    assert asked(heart) == [(503, "leader: the API server has been silent for 90 s\n")] * 2
    beat(heart)
    assert asked(heart)[0][0] == 503, "a beat that was sent is none that came back"
    heart.heard(server.job)
    assert asked(heart)[0][0] == 200


def test_a_lease_that_is_read_does_not_stand_for_a_leaders_echo(heart, clock):
    """The Lease comes by requests: what is silent is the watch."""
    heart.leading = True
    clock.now += SILENT_SECONDS
    heart.lease_was_read()
    assert not heart.healthy


def test_a_standby_is_healthy_while_it_can_read_the_lease(heart, clock):
    clock.now += SILENT_SECONDS - 1
    assert asked(heart) == [(200, "ok (standby)\n")] * 2
    clock.now += 1
    assert asked(heart) == [(503, "standby: the API server has been silent for 90 s\n")] * 2
    heart.lease_was_read()
    assert heart.healthy


def test_an_old_beat_that_a_relist_brings_counts_for_its_own_time_only(heart, server, clock):
    heart.leading = True
    beat(heart)
    clock.now += SILENT_SECONDS - 1
    heart.heard(server.job)
    assert heart.healthy
    clock.now += 1
    assert not heart.healthy


def test_a_beat_makes_the_job_once_and_it_never_runs(heart, server):
    beat(heart)
    beat(heart)
    assert server.asked == ["PATCH", "POST", "PATCH"]
    assert server.job["spec"]["suspend"] is True
    assert server.job["metadata"]["labels"] == {naming.MANAGED_BY: naming.MANAGER}, "what the watch selects"
    assert heart.is_echo(server.job)
    elsewhere = {"metadata": {**server.job["metadata"], "namespace": "another"}}
    assert not heart.is_echo(elsewhere)


@pytest.mark.parametrize(
    ("error", "healthy"),
    [
        (OSError("no route to the API server"), False),
        (ApiRefusal(503, "ServiceUnavailable", "etcd has no leader"), False),
        (ApiRefusal(403, "Forbidden", "exceeded quota: count/jobs.batch"), True),
        (ApiRefusal(400, "BadRequest", 'admission webhook "policy" denied the request'), True),
        (ApiRefusal(500, "InternalError", 'failed calling webhook "vjob.kb.io": no endpoints'), True),
    ],
)
def test_what_a_policy_refuses_and_a_webhook_that_is_away_is_not_held_against_the_watch(
    heart, server, clock, error, healthy
):
    heart.leading, server.raises = True, error
    clock.now += SILENT_SECONDS
    beat(heart)
    assert heart.healthy is healthy
