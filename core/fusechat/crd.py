"""The FusionRun CRD, made of spec.py; `python -m fusechat.crd FOLDER ... docs` writes it and its page.

Pure but for `main`. Called by `make generate`, the chart and the tests. The schema is structural, every text,
list and map in it is bounded, and the rules of spec_rules.py stand in it as CEL. Knows no field by name but
those of kubectl's columns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from fusechat import reference
from fusechat.spec import API_VERSION, KIND, FusionRun, RunSpec
from fusechat.spec_rules import Rule, rules_on
from fusechat.spec_status import Status

GROUP, VERSION = API_VERSION.split("/")
PLURAL = "fusionruns"
FILE_NAME = f"{PLURAL}.{GROUP}.yaml"
GENERATED = "Generated from core/fusechat/spec.py by `make generate`; do not edit."
Schema = dict[str, Any]


def crd() -> Schema:
    """The CustomResourceDefinition, as `kubectl apply` takes it."""
    names = {"kind": KIND, "listKind": f"{KIND}List", "plural": PLURAL, "singular": KIND.lower()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {**names, "shortNames": ["fr"], "categories": ["fusion"]},
            "scope": "Namespaced",
            "versions": [_version()],
        },
    }


def _version() -> Schema:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": list(_columns()),
        "selectableFields": [
            {"jsonPath": path} for path in (".spec.profile", ".spec.suspend", ".spec.scheduling.queueName")
        ],
        "schema": {"openAPIV3Schema": _root()},
    }


def _columns() -> Iterator[Schema]:
    for name, path, kind in (
        ("Ready", '.status.conditions[?(@.type=="Ready")].status', "string"),
        ("Stage", ".status.stage", "string"),
        ("Progress", ".status.progress", "string"),
        ("Cached", ".status.cached", "string"),
        ("Score", ".status.score", "string"),
        ("Age", ".metadata.creationTimestamp", "date"),
    ):
        yield {"name": name, "type": kind, "jsonPath": path}
    yield {
        "name": "Message",
        "type": "string",
        "jsonPath": '.status.conditions[?(@.type=="Ready")].message',
        "priority": 1,
    }


def _root() -> Schema:
    text = {"type": "string"}
    return {
        "type": "object",
        "description": (FusionRun.__doc__ or "").strip(),
        "required": ["metadata", "spec"],
        "properties": {
            "apiVersion": text,
            "kind": text,
            "metadata": {"type": "object"},
            "spec": schema(RunSpec),
            # Without a default kstatus reads a run that no operator has seen yet as finished.
            "status": {**schema(Status), "default": {"observedGeneration": -1}},
        },
        **_cel("FusionRun"),
    }


def schema(model: type[BaseModel]) -> Schema:
    """The structural schema of a model: references inlined, alternatives with null made optional."""
    made = model.model_json_schema(by_alias=True, mode="validation")
    return _structural(made, made.get("$defs", {}))


def _structural(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        return _structural({**target, **{k: v for k, v in node.items() if k != "$ref"}}, definitions)
    if "anyOf" in node:
        return _structural(_one_of(node), definitions)
    made = {key: node[key] for key in _KEPT if key in node}
    if "const" in node:
        made["enum"] = [node["const"]]
    if node.get("default") not in (None, [], {}):
        made["default"] = node["default"]
    if "x-form" in node:
        made |= _worded(made.pop("pattern"), node)
    if node.get("type") == "integer":
        made["format"] = "int64"
    if "items" in node:
        made["items"] = _structural(node["items"], definitions)
    if "properties" in node:
        made["properties"] = {k: _structural(v, definitions) for k, v in node["properties"].items()}
        made |= _cel(str(node.get("title")))
    elif node.get("type") == "object":
        made["additionalProperties"] = _structural(_values(node), definitions)
    return made


_KEPT = (
    "type",
    "description",
    "format",
    "enum",
    "required",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "maxProperties",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-int-or-string",
)


def _one_of(node: Mapping[str, Any]) -> Schema:
    """`X | None` is an X that may be left out; a number or a text is Kubernetes' int-or-string."""
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    branches = [branch for branch in node["anyOf"] if branch.get("type") != "null"]
    if len(branches) == 1:
        return {**branches[0], **rest}
    texts = [branch for branch in branches if branch.get("type") == "string"]
    assert (len(branches), len(texts)) == (2, 1), f"no structural form for {branches}"
    bounds = {key: texts[0][key] for key in ("pattern", "maxLength", "x-form")}
    return {**bounds, **rest, "x-kubernetes-int-or-string": True}


def _worded(pattern: str, node: Mapping[str, Any]) -> Schema:
    """A pattern as CEL, whose message has words where the API server would show the expression."""
    rule = f"self.matches(r'{pattern}')"
    if node.get("x-kubernetes-int-or-string"):
        rule = f"type(self) == int || {rule}"
    return {"x-kubernetes-validations": [{"rule": rule, "message": f"expected {node['x-form']}"}]}


def _values(node: Mapping[str, Any]) -> Schema:
    """The schema of a map's values; pydantic gives it by the pattern of the keys where they have one."""
    by_pattern = list(node.get("patternProperties", {}).values())
    return dict(by_pattern[0] if by_pattern else node["additionalProperties"])


def _cel(name: str) -> Schema:
    found = [_validation(rule) for rule in rules_on(name)]
    return {"x-kubernetes-validations": found} if found else {}


def _validation(rule: Rule) -> Schema:
    if rule.field.startswith("metadata."):  # a fieldPath may name only what the schema does
        return {"rule": rule.cel, "message": f"{rule.field}: {rule.message}"}
    return {"rule": rule.cel, "message": rule.message, "fieldPath": f".{rule.field}"}


def crd_yaml() -> str:
    """The CRD as the file in crds/: byte for byte the same every time."""
    return f"# {GENERATED}\n" + yaml.safe_dump(crd(), sort_keys=False, width=110, allow_unicode=True)


def main(arguments: list[str]) -> None:
    """Write reference.md into the last folder and the CRD into each of the others."""
    if len(arguments) < 2:
        raise SystemExit("usage: python -m fusechat.crd CRDS_FOLDER [CRDS_FOLDER ...] DOCS_FOLDER")
    *folders, docs = map(Path, arguments)
    for folder in folders:
        (folder / FILE_NAME).write_text(crd_yaml(), encoding="utf-8")
    (docs / "reference.md").write_text(reference.page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
