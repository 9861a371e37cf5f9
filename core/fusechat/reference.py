"""docs/reference.md: every field of a FusionRun with its type, default, bounds and meaning, made of spec.py.

Pure. Called by crd.py's `main`. One section a type, in the order in which the spec mentions them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from fusechat.spec import API_VERSION, KIND, RunSpec
from fusechat.spec_rules import RULES
from fusechat.spec_status import Status

Schema = Mapping[str, Any]
HEAD = f"""# FusionRun reference

<!-- Generated from core/fusechat/spec.py by `make generate`; do not edit. -->

`apiVersion: {API_VERSION}`, `kind: {KIND}`. In the spec only `pivot`, `sources` and `dataset` must be given;
every other field has the paper's default. Numbers in brackets are bounds, both included.
"""


def page() -> str:
    """The page as markdown: byte for byte the same every time."""
    rules = "\n".join(f"- {line}" for line in dict.fromkeys(f"`{r.field}` {r.message}." for r in RULES))
    return "\n".join(
        [
            HEAD,
            *_sections(RunSpec, "spec"),
            "## Rules between fields\n",
            "Checked by the API server when a run is applied, and by `fusechat plan` and `fusechat run`.\n",
            rules + "\n",
            *_sections(Status, "status"),
        ]
    )


def _sections(model: type[BaseModel], title: str) -> Iterator[str]:
    made = model.model_json_schema(by_alias=True)
    definitions = made.get("$defs", {})
    yield _section(made, f"## {title}", definitions)
    for name in _mentioned(made, definitions, {}):
        yield _section(definitions[name], f"### {name}", definitions)


def _mentioned(node: Any, definitions: Schema, seen: dict[str, None]) -> dict[str, None]:
    """Names of the types in the order of their first mention, those below a type right after it."""
    if isinstance(node, list):
        for item in node:
            _mentioned(item, definitions, seen)
    elif isinstance(node, dict):
        if (name := _named(node)) and name not in seen:
            seen[name] = None
            _mentioned(definitions[name], definitions, seen)
        for key, item in node.items():
            if key != "$defs":
                _mentioned(item, definitions, seen)
    return seen


def _named(node: Schema) -> str:
    return str(node.get("$ref", "")).rpartition("/")[2]


def _section(node: Schema, title: str, definitions: Schema) -> str:
    lines = [title, "", str(node.get("description", "")), "", "| field | type | default | meaning |"]
    lines.append("|---|---|---|---|")
    for name, field in node["properties"].items():
        default = "**required**" if name in node.get("required", ()) else _shown(field.get("default"))
        told = field.get("description") or definitions[_named(field)]["description"]
        meaning = told.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| `{name}` | {_kind(field)} | {default} | {meaning} |")
    return "\n".join([*lines, ""])


def _shown(value: Any) -> str:
    if value in (None, [], {}):
        return ""
    if isinstance(value, list):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kind(field: Schema) -> str:
    if name := _named(field):
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        branches = [branch for branch in field["anyOf"] if branch.get("type") != "null"]
        return _kind(branches[-1])  # of Kubernetes' int-or-string, the text says what both mean
    if "const" in field or "enum" in field:
        values = field.get("enum", [field.get("const")])
        return ", ".join(f"`{value}`" for value in values)
    kind = field["type"]
    if kind == "array":
        return f"list of {_kind(field['items'])} {_range(field, 'minItems', 'maxItems')}".strip()
    if kind == "object":
        values = list(field.get("patternProperties", {}).values()) or [field["additionalProperties"]]
        return f"map of {_kind(values[0])}, at most {field['maxProperties']}"
    form = str(field.get("x-form", ""))
    words = {
        "string": form if " such as " in form else "text",
        "boolean": "true or false",
        "integer": "whole number",
    }
    return f"{words.get(kind, kind)} {_range(field, 'minimum', 'maximum')}".strip()


def _range(field: Schema, low: str, high: str) -> str:
    return f"[{field.get(low, 0)}, {field[high]}]" if high in field else ""
