"""What the operator knows of its store, on a real one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from fusechat.cli import main
from fusechat.store import Manifest
from fusechat_operator.artifacts import Artifacts
from fusechat_operator.facts import Artifact
from fusechat_operator.settings import DefaultStore, Settings

ADDRESS = "fetch/" + "a" * 64


@pytest.fixture
def published(store):
    store.publish(Manifest(
        ADDRESS, "fetch", 1, "Corrected", {}, {}, (), {"rows": 3}, True, {}, "me", "2026-01-01T00:00:00Z", {}
    ))  # fmt: skip
    return Artifacts(Settings("system", "op", "image", store=DefaultStore(store.uri, store.place.endpoint)))


def test_a_hit_is_remembered_for_a_while_and_a_miss_never(store, published):
    asyncio.run(_a_hit_is_remembered(store, published))


async def _a_hit_is_remembered(store, known: Artifacts) -> None:
    other = "fetch/" + "b" * 64
    assert await known.hit(other) is None
    found = await known.hit(ADDRESS)
    assert isinstance(found, Artifact)
    assert found.metrics == {"rows": 3}
    store.delete([f"{ADDRESS}/manifest.json"])
    assert await known.hit(ADDRESS) == found
    assert await known.artifact(ADDRESS) is None
    assert await known.hit(ADDRESS) is None
    assert await known.metrics(ADDRESS) is None


def test_an_artifact_that_was_set_aside_is_no_hit(store, published):
    async def set_aside() -> None:
        assert await published.hit(ADDRESS)
        await published.forget(ADDRESS)
        assert await published.hit(ADDRESS) is None

    asyncio.run(set_aside())


def cluster_gc(store, monkeypatch, uids, *more: str) -> int:
    """`fusechat cluster gc` on a cluster that lists these runs, one a page."""

    class Api:
        async def request(self, method: str, path: str, query: Mapping[str, str]) -> dict[str, Any]:
            assert (method, path) == ("GET", "/apis/fusechat.io/v1alpha1/fusionruns")
            at = int(query.get("continue", 0))
            left = {"continue": str(at + 1)} if at + 1 < len(uids) else {}
            return {"items": [{"metadata": {"uid": uid}} for uid in uids[at : at + 1]], "metadata": left}

        async def close(self) -> None: ...

    async def connect(qps: float, burst: int) -> Api:
        return Api()

    monkeypatch.setattr("fusechat_operator.cluster.Cluster.connect", connect)
    return main(["cluster", "gc", "--store", store.uri, "--cluster", "west", "--days", "0", *more])


def test_cluster_gc_drops_the_references_of_its_runs_that_are_gone_and_of_no_others(
    store, published, monkeypatch, capsys
):
    for key in ("west/a", "west/b", "east/c"):
        store.put_json(f"refs/{key}.json", {"addresses": [ADDRESS] if key == "west/b" else []})
    assert cluster_gc(store, monkeypatch, ["x", "a"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "its run is gone: refs/west/b.json\nwould delete (say --delete): the references of 1"
    )
    assert store.manifest(ADDRESS)
    assert cluster_gc(store, monkeypatch, ["x", "a"], "--delete") == 0
    assert [found.key for found in store.keys("refs/")] == ["refs/east/c.json", "refs/west/a.json"]
    assert store.manifest(ADDRESS) is None


def test_cluster_gc_refuses_where_none_of_the_runs_is_there(store, monkeypatch, capsys):
    store.put_json("refs/west/b.json", {"addresses": []})
    assert cluster_gc(store, monkeypatch, ["of", "another"], "--delete") == 64
    assert "is this kubeconfig another cluster's?" in capsys.readouterr().err
    assert store.get_json("refs/west/b.json")
    assert cluster_gc(store, monkeypatch, ["b"], "--delete") == 0
