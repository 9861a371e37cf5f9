"""How large a status gets: a run of many sources, rendered by reconcile with facts made up for it."""

from __future__ import annotations

import json
import time
from typing import Any

from fusechat_operator.decision import Decision
from fusechat_operator.facts import Artifact, Ask
from fusechat_operator.reconcile import reconcile
from fusechat_operator.settings import DefaultStore, Settings

from tests.cluster.stagehand import METRICS, a_run

LONGEST_NAME = 40
"""Of a source, as the spec has it."""


def status_of(sources: int, done: bool, name: int = 3) -> int:
    """Bytes of the status as the API server keeps it: every step done, or as many at work as there can be."""
    return size(the_status(sources, done, name))


def size(made: dict[str, Any]) -> int:
    return len(json.dumps(made, separators=(",", ":")))


def the_status(sources: int, done: bool, name: int = 3) -> dict[str, Any]:
    """The status of a run whose sources' names have so many characters."""
    names = [f"s{i:02d}".ljust(name, "x") for i in range(sources)]
    run = a_run("wide", sources=sources, pinned=False, controls=["SFT"], dataset=None)
    for source, called in zip(run["spec"]["sources"], names, strict=True):
        source["name"] = called
    run["spec"]["dataset"] = {
        "uri": "hf://datasets/FuseAI/FuseChat-Mixture",
        "revision": "a" * 40,
        "shards": 64,
    }
    run["spec"]["evaluate"]["subjects"] = ["Pivot", "Sources", "Controls", "Targets", "Fused"]
    run["spec"]["evaluate"]["perplexity"] = {"uri": "hf://datasets/team/held-out"}
    run["metadata"] |= {"uid": "0" * 36, "generation": 1, "resourceVersion": "1"}
    settings = Settings("fusechat", "op", "image", store=DefaultStore("s3://bucket/prefix"))
    return dict(
        _settled(run, settings, done, ["pivot", "dataset", "exactmatch", "perplexity", *names]).status
    )


def _settled(run: dict, settings: Settings, done: bool, names: list[str]) -> Decision:
    facts: dict[Ask, object] = {}
    while True:
        decision = reconcile(run, facts, settings, time.time())
        if not decision.asks:
            return decision
        facts |= {ask: _answer(ask, done, names) for ask in decision.asks}


def _answer(ask: Ask, done: bool, names: list[str]) -> object:
    if ask.what in ("artifact", "hit", "sink", "metrics"):
        stage = ask.key.partition("/")[0]
        if done or stage in ("resolve", "fetch", "extract"):
            pins = {name: f"sha256:{name:0>64}" for name in names} if stage == "resolve" else {}
            return Artifact(ask.key, "d" * 64, {**METRICS.get(stage, {}), "pins": pins})
        return None
    return {"own": [], "pods": [], "attempts": [], "launchers": ("PyTorchJob", "Job")}.get(ask.what)
