"""Stage resolve: what the spec leaves open (a branch, a folder) -> commits and content digests.

Runs once a generation, before any address is known; its metrics hold the pins, which plan reads.
params: {"origins": {name: {"kind", "uri", "revision", "split", "code"}}, "nonce"}; a kind is model, dataset
or questions; the nonce makes each asking a step of its own, for the answer may differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusechat_stages import origins
from fusechat_stages.artifacts import Input, Output

VERSION = 1


def run(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Output) -> None:
    """Pin every origin. Raises BadData for what does not exist, Unavailable for what does not answer."""
    named = params["origins"]
    pins: dict[str, str] = {}
    for done, (name, origin) in enumerate(sorted(named.items())):
        out.progress(done, len(named), "origins", now=name)
        uri, revision = origin["uri"], origin.get("revision")
        if origin["kind"] == "model":
            files = origins.list_model(uri, revision, code=bool(origin.get("code")))
        else:
            files = origins.list_data(uri, revision, origin.get("split"))
        pins[name] = origins.pin(uri, revision, files)
    out.metrics["pins"] = pins
    out.deterministic = False
