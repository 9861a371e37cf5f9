"""FusionRuns for the tests beside it, and their status as the API server would keep it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from fusechat import crd
from fusechat.address import digest
from fusechat.spec_status import Status
from fusechat_operator.settings import DefaultStore, Settings

STORE = "s3://fuse/world"
SETTINGS = Settings("fusechat-system", "op-0", "registry.example/stages:1", store=DefaultStore(STORE))
STATUS = crd.schema(Status)
Object = dict[str, Any]


def a_run(name: str = "run", sources: int = 2, pinned: bool = True, data: str = "", **spec: Any) -> Object:
    """A FusionRun; the same `data` gives the same addresses under another name."""

    def model(label: str) -> Object:
        made = {"name": label, "uri": f"s3://fuse/models/{label}"}
        return {**made, "revision": pin(label)} if pinned else made

    def pin(label: str) -> str:
        return f"sha256:{digest([data, label])}"

    files = {"uri": "s3://fuse/data.jsonl", **({"revision": pin("data")} if pinned else {})}
    body = {
        "pivot": model("pivot-model"),
        "sources": [model(f"s{i}") for i in range(sources)],
        "dataset": files,
        "evaluate": {"exactMatch": files, "subjects": ["Fused"]},
        **spec,
    }
    return {
        "apiVersion": "fusechat.io/v1alpha1",
        "kind": "FusionRun",
        "metadata": {"name": name, "namespace": "team", "annotations": {}},
        "spec": json.loads(json.dumps(body)),
    }


def kept(status: Mapping[str, Any]) -> Object:
    """A status after a write; it must be what was written, or the operator would write it for ever."""
    made: Object = json.loads(json.dumps(status))
    assert made == defaulted(STATUS, made), "the API server would keep another status than was written"
    Status.model_validate_json(json.dumps(made))
    return made


def defaulted(schema: Mapping[str, Any], value: Any) -> Any:
    """What the API server makes of a value: unknown fields dropped, defaults added."""
    if isinstance(value, dict):
        known = schema.get("properties")
        if known is None:
            return {key: defaulted(schema["additionalProperties"], v) for key, v in value.items()}
        made = {key: defaulted(known[key], v) for key, v in value.items() if key in known}
        missing = {key: copy.deepcopy(s["default"]) for key, s in known.items() if "default" in s}
        return {**{k: v for k, v in missing.items() if k not in made}, **made}
    if isinstance(value, list):
        return [defaulted(schema["items"], each) for each in value]
    return value
