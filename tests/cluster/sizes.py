"""How large a status gets: a run of many sources, rendered by reconcile with facts made up for it."""

from __future__ import annotations

import json
import time

from fusechat_operator.decision import Decision
from fusechat_operator.facts import Artifact, Ask
from fusechat_operator.reconcile import reconcile
from fusechat_operator.settings import DefaultStore, Settings

from tests.cluster.stagehand import METRICS, a_run


def status_of(sources: int, done: bool) -> int:
    """Bytes of the status as the API server keeps it: every step done, or as many at work as there can be."""
    run = a_run("wide", sources=sources, pinned=False, controls=["SFT"], dataset=None)
    run["spec"]["dataset"] = {
        "uri": "hf://datasets/FuseAI/FuseChat-Mixture",
        "revision": "a" * 40,
        "shards": 64,
    }
    run["spec"]["evaluate"]["subjects"] = ["Pivot", "Sources", "Controls", "Targets", "Fused"]
    run["spec"]["evaluate"]["perplexity"] = {"uri": "hf://datasets/team/held-out"}
    run["metadata"] |= {"uid": "0" * 36, "generation": 1, "resourceVersion": "1"}
    settings = Settings("fusechat", "op", "image", store=DefaultStore("s3://bucket/prefix"))
    made = _settled(run, settings, done).status
    return len(json.dumps(made, separators=(",", ":")))


NAMES = ["pivot", "dataset", "exactmatch", "perplexity", *(f"s{i}" for i in range(50))]


def _settled(run: dict, settings: Settings, done: bool) -> Decision:
    facts: dict[Ask, object] = {}
    while True:
        decision = reconcile(run, facts, settings, time.time())
        if not decision.asks:
            return decision
        facts |= {ask: _answer(ask, done) for ask in decision.asks}


def _answer(ask: Ask, done: bool) -> object:
    if ask.what in ("artifact", "hit", "metrics"):
        stage = ask.key.partition("/")[0]
        if done or stage in ("resolve", "fetch", "extract"):
            pins = {name: f"sha256:{name:0>64}" for name in NAMES} if stage == "resolve" else {}
            return Artifact(ask.key, "d" * 64, {**METRICS.get(stage, {}), "pins": pins})
        return None
    return {"own": [], "pods": [], "attempts": [], "launchers": ("PyTorchJob", "Job")}.get(ask.what)
