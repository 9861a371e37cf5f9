"""What a FusionRun names outside of itself (models, data), and which of it the user has pinned.

Pure. Called by plan. An address never holds a URI or a branch: it holds a pin, `hf:<commit>` or
`sha256:<digest of the files' paths and contents>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fusechat.spec import FusionRun

COMMIT = re.compile(r"^[0-9a-f]{40}$")
DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")


@dataclass(frozen=True)
class Origin:
    """One thing to fetch: kind is model, dataset or questions."""

    kind: str
    uri: str
    revision: str | None = None
    split: str | None = None
    limit: int | None = None
    code: bool = False

    def params(self) -> dict[str, Any]:
        """What of it changes the fetched bytes, beside the pin."""
        options = {"split": self.split, "limit": self.limit, "code": self.code or None}
        return {name: value for name, value in options.items() if value is not None}

    def asked(self) -> dict[str, Any]:
        """What resolve is asked about it."""
        values = {"kind": self.kind, "uri": self.uri, "revision": self.revision, "split": self.split}
        return {
            name: value for name, value in {**values, "code": self.code or None}.items() if value is not None
        }


def origins(run: FusionRun) -> dict[str, Origin]:
    """Every origin by its name in the plan (`fetch-<name>`); the spec's rules keep the names apart."""
    spec, evaluate = run.spec, run.spec.evaluate
    pivot, data = spec.pivot, spec.dataset
    found = {"pivot": Origin("model", pivot.uri, pivot.revision, code=pivot.allow_remote_code)}
    found |= {s.name: Origin("model", s.uri, s.revision, code=s.allow_remote_code) for s in spec.sources}
    found["dataset"] = Origin("dataset", data.uri, data.revision, data.split, data.limit)
    if evaluate.exact_match:
        asked = evaluate.exact_match
        found["exactmatch"] = Origin(
            "questions", asked.uri, asked.revision, split=asked.split, limit=asked.limit
        )
    if evaluate.perplexity:
        held = evaluate.perplexity
        found["perplexity"] = Origin("dataset", held.uri, held.revision, held.split, held.limit)
    return found


def user_pins(run: FusionRun) -> dict[str, str]:
    """The pins that the spec itself gives: a full commit for hf://, a digest for s3:// and file://."""
    pins = {}
    for name, origin in origins(run).items():
        revision = origin.revision or ""
        if origin.uri.startswith("hf://") and COMMIT.match(revision):
            pins[name] = f"hf:{revision}"
        elif not origin.uri.startswith("hf://") and DIGEST.match(revision):
            pins[name] = revision
    return pins
