"""What the operator knows of its store, on a real one."""

from __future__ import annotations

import asyncio

import pytest
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
