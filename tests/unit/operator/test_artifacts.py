"""What the operator's own store cannot do is told, and never passed over."""

from __future__ import annotations

import asyncio

import pytest
from fusechat_operator.artifacts import Artifacts
from fusechat_operator.facts import Trouble
from fusechat_operator.settings import DefaultStore, Settings


@pytest.fixture
def away(monkeypatch):
    """Artifacts of a store at which nobody listens."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "test")
    told = DefaultStore("s3://fuse/world", "http://127.0.0.1:1")
    return Artifacts(Settings("system", "op", "image", store=told))


@pytest.mark.parametrize(
    "effect",
    [lambda it: it.put("refs/c/u.json", {"at": 1}), lambda it: it.forget("fuse/" + "a" * 64)],
    ids=["put", "forget"],
)
def test_an_effect_that_a_store_which_is_away_did_not_take_is_trouble(away, effect):
    found = asyncio.run(effect(away))
    assert isinstance(found, Trouble)
    assert "127.0.0.1:1" in found.sentence
