"""The rules between a FusionRun's fields: one table, checked by Python here and by CEL on the API server.

Used by spec_types.Base, which obeys it, and by crd.py, which writes it into the CRD. A rule stands at one
class of the spec; its CEL sees that object as `self`, its predicate as the model. Both must say the same: a
test runs one list of bad documents through Python and, on a cluster, through the API server.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PIN = re.compile(r"[0-9a-f]{40}|sha256:[0-9a-f]{64}")
RESERVED = ("pivot", "dataset", "exactmatch", "perplexity", "mtbench", "alpacaeval")
"""Names that steps of a plan have for themselves (`fetch-dataset`)."""
DURATION = r"^([0-9]{1,4}h|[0-9]{1,6}(s|m))+$"
"""So few digits that neither Python's sum nor CEL's `duration` of at most 32 characters overflows."""
SHORTEST_TTL, LONGEST = 60, 8760 * 3600
"""Seconds. A child that is gone before it was looked at says nothing; Kubernetes' seconds are 32 bits."""
WEIGHTED = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties")


@dataclass(frozen=True)
class Rule:
    """`holds(model)` and `cel` over the same object; `field` is where the reader should look."""

    name: str
    on: str
    field: str
    cel: str
    message: str
    holds: Callable[[Any], bool]


def broken(model: Any) -> list[str]:
    """Messages of the rules that the model breaks, each begun by the field it is about."""
    return [
        f"{rule.field}: {rule.message}"
        for rule in RULES
        if rule.on == type(model).__name__ and not rule.holds(model)
    ]


def is_pinned(revision: str | None) -> bool:
    """A full commit or a content digest names the same bytes for ever; a branch does not."""
    return revision is not None and PIN.fullmatch(revision) is not None


def seconds(duration: str) -> int:
    """`1h30m` -> 5400."""
    units = {"s": 1, "m": 60, "h": 3600}
    return sum(int(part[:-1]) * units[part[-1]] for part in re.findall(r"[0-9]+[smh]", duration))


def _duration_cel(field: str, bounds: str) -> str:
    """What is no time at all is told by the field's own rule, and would be an error in `duration`."""
    return f"!has({field}) || !{field}.matches('{DURATION}') || ({bounds})"


def _pinned_place(model: Any) -> bool:
    if model.revision is None or model.uri.startswith("hf://"):
        return True
    return re.fullmatch(r"sha256:[0-9a-f]{64}", model.revision) is not None


_DIGEST_CEL = (
    "!has(self.revision) || !has(self.uri) || self.uri.startsWith('hf://') || "
    "self.revision.matches('^sha256:[0-9a-f]{64}$')"
)
_DIGEST_MESSAGE = (
    "a place in s3:// or file:// is pinned by its content: write sha256:<64 hex digits>, or leave it out"
)


def _digest_rule(on: str) -> Rule:
    return Rule("RevisionIsDigest", on, "revision", _DIGEST_CEL, _DIGEST_MESSAGE, _pinned_place)


def _names_differ(spec: Any) -> bool:
    return len({source.name for source in spec.sources}) == len(spec.sources)


def _weights_name_sources(spec: Any) -> bool:
    return set(spec.merge.weights) <= {source.name for source in spec.sources}


def _method_fits_profile(spec: Any) -> bool:
    method = spec.align.method
    return method is None or (method == "Bytes") == (spec.profile == "Corrected")


def _lengths_fit(spec: Any) -> bool:
    return spec.fuse.max_length is None or spec.fuse.max_length <= spec.extract.max_length


RULES: tuple[Rule, ...] = (
    Rule(
        "RunName",
        "FusionRun",
        "metadata.name",
        "self.metadata.name.size() <= 63",
        "a run's name is a label of everything it makes and has at most 63 characters: shorten it",
        lambda run: len(run.metadata.name) <= 63,
    ),
    Rule(
        "SourceNamesDiffer",
        "RunSpec",
        "sources",
        "self.sources.all(a, self.sources.exists_one(b, a.name == b.name))",
        "two sources have the same name: give each its own",
        _names_differ,
    ),
    Rule(
        "PivotIsNoSource",
        "RunSpec",
        "sources",
        "self.sources.all(s, s.name != self.pivot.name)",
        "a source has the pivot's name: the pivot takes part anyway, remove it or rename it",
        lambda spec: all(source.name != spec.pivot.name for source in spec.sources),
    ),
    Rule(
        "NameIsFree",
        "RunSpec",
        "sources",
        "self.sources.all(s, !(s.name in [" + ", ".join(f"'{name}'" for name in RESERVED) + "]))",
        "a source has a name that a step of the plan needs (" + ", ".join(RESERVED) + "): rename it",
        lambda spec: not any(source.name in RESERVED for source in spec.sources),
    ),
    Rule(
        "MethodFitsProfile",
        "RunSpec",
        "align.method",
        "!has(self.align) || !has(self.align.method) || "
        "(self.align.method == 'Bytes') == (self.profile == 'Corrected')",
        "Bytes belongs to profile Corrected, and MS, EM and MinED to profile Published: change one, or leave "
        "the method out",
        _method_fits_profile,
    ),
    Rule(
        "LengthsFit",
        "RunSpec",
        "fuse.maxLength",
        "!has(self.fuse) || !has(self.fuse.maxLength) || "
        "self.fuse.maxLength <= (has(self.extract) ? self.extract.maxLength : 2048)",
        "is more than extract.maxLength: no distribution exists beyond that; raise that or lower this",
        _lengths_fit,
    ),
    Rule(
        "WeightsNameSources",
        "RunSpec",
        "merge.weights",
        "!has(self.merge) || !has(self.merge.weights) || "
        "self.merge.weights.all(name, self.sources.exists(s, s.name == name))",
        "names something that is no source: use the names of the sources",
        _weights_name_sources,
    ),
    Rule(
        "SlerpIsOfTwo",
        "RunSpec",
        "merge.method",
        "!has(self.merge) || self.merge.method != 'slerp' || self.sources.size() == 2",
        "slerp lies between exactly two targets: name two sources, or take another method",
        lambda spec: spec.merge.method != "slerp" or len(spec.sources) == 2,
    ),
    Rule(
        "TtlFits",
        "RunSpec",
        "ttl",
        _duration_cel(
            "self.ttl", "duration(self.ttl) >= duration('1m') && duration(self.ttl) <= duration('8760h')"
        ),
        "a finished child is kept for at least 1m, so that its end is seen, and at most 8760h (a year): "
        "name a time between",
        lambda spec: SHORTEST_TTL <= seconds(spec.ttl) <= LONGEST,
    ),
    Rule(
        "DeadlineFits",
        "RunSpec",
        "deadline",
        _duration_cel("self.deadline", "duration(self.deadline) <= duration('8760h')"),
        "is more than 8760h (a year): name a shorter time, or leave it out for none",
        lambda spec: spec.deadline is None or seconds(spec.deadline) <= LONGEST,
    ),
    Rule(
        "MicroBatchFits",
        "Fuse",
        "microBatch",
        "self.microBatch <= self.globalBatch",
        "is more than globalBatch: a forward pass can't hold more samples than the step; lower it",
        lambda fuse: fuse.micro_batch <= fuse.global_batch,
    ),
    Rule(
        "WeightsAreUsed",
        "Merge",
        "weights",
        "!has(self.weights) || self.weights.size() == 0 || "
        "self.method in ['linear', 'task_arithmetic', 'ties', 'dare_linear', 'dare_ties']",
        "are used by linear, task_arithmetic, ties, dare_linear and dare_ties only (sce, varm and slerp find "
        "their own): remove them, or take one of those methods",
        lambda merge: not merge.weights or merge.method in WEIGHTED,
    ),
    Rule(
        "ModelIsNoDataset",
        "Model",
        "uri",
        "!self.uri.startsWith('hf://datasets/')",
        "is a dataset's: a model of the hub is hf://owner/name",
        lambda model: not model.uri.startswith("hf://datasets/"),
    ),
    Rule(
        "RemoteCodeIsPinned",
        "Model",
        "allowRemoteCode",
        "!self.allowRemoteCode || "
        "(has(self.revision) && self.revision.matches('^([0-9a-f]{40}|sha256:[0-9a-f]{64})$'))",
        "runs the model's own code, which may change: name a full commit as its revision",
        lambda model: not model.allow_remote_code or is_pinned(model.revision),
    ),
    _digest_rule("Model"),
    _digest_rule("Dataset"),
    _digest_rule("ExactMatch"),
    _digest_rule("Perplexity"),
    Rule(
        "OneCredential",
        "Storage",
        "secretRef",
        "!has(self.secretRef) || !has(self.serviceAccountName)",
        "and serviceAccountName are two ways to the same store: keep one",
        lambda storage: storage.secret_ref is None or storage.service_account_name is None,
    ),
    Rule(
        "TolerationHasKey",
        "Toleration",
        "key",
        "has(self.key) || self.operator == 'Exists'",
        "is missing: name the taint, or set operator to Exists to accept every taint",
        lambda toleration: toleration.key is not None or toleration.operator == "Exists",
    ),
)


def rules_on(name: str) -> tuple[Rule, ...]:
    """The rules that stand at the spec's class `name`."""
    return tuple(rule for rule in RULES if rule.on == name)
