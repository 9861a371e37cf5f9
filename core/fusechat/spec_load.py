"""YAML, a path or a mapping -> a checked model, or a ValueError with one plain sentence a problem.

Called by spec.load. Reads YAML as Kubernetes does where PyYAML differs (5e-6 is a number, a date is text,
a key given twice is an error) and remembers each field's line. Knows no field by name but metadata and URIs.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fusechat.spec_errors import Where, sentences

M = TypeVar("M", bound=BaseModel)
LARGEST = 1 << 20
"""Bytes of a file that are read at most: etcd's limit is near, and what is larger is no FusionRun."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars over PyYAML's 1.1."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _form, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$",
        "-+.0123456789",
    ),
    ("float", r"^\.(?:nan|NaN|NAN)$", "."),
):
    _resolved = f"tag:yaml.org,2002:{_tag}"
    _Loader.add_implicit_resolver(
        _resolved, re.compile(_form), [*_first.replace("\0", ""), *([""] if "\0" in _first else [])]
    )
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _float(str(node.value)))


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def read(model: type[M], source: str | Path | Mapping[str, Any], base: Path | None) -> M:
    """A checked `model`. Raises ValueError; FileNotFoundError's case is a ValueError too."""
    if isinstance(source, Mapping):
        data, lines, folder = copy.deepcopy(dict(source)), Where({}), base
    else:
        text, name, folder = _text(source, base)
        data, lines = _parse(text, name, model.__name__)
    data.pop("status", None)
    _resolve_files(data, (folder or Path()).absolute())
    try:
        # By way of JSON, so that the strict types see what the API server would: lists, not tuples.
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise ValueError("\n".join(sentences(error, model, lines))) from None


def _text(source: str | Path, base: Path | None) -> tuple[str, str, Path | None]:
    if isinstance(source, str) and ("\n" in source or source.lstrip().startswith("{")):
        return source, "the FusionRun", base
    path = Path(source)
    try:
        content = path.read_bytes()[: LARGEST + 1]
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); name the YAML file of a FusionRun"
        ) from None
    if len(content) > LARGEST:
        raise ValueError(f"{path}: more than 1 MiB, which no FusionRun is; name the YAML file of a FusionRun")
    try:
        return content.decode("utf-8"), str(path), base or path.parent
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def _parse(text: str, name: str, kind: str) -> tuple[dict[str, Any], Where]:
    try:
        nodes = [node for node in yaml.compose_all(text, _Loader) if node is not None]
        lines = [_lines(node) for node in nodes]
        documents = [_Loader("").construct_document(node) for node in nodes]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{name}{at}: not YAML: {error.problem}; mend the line or its indentation") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{name}: not YAML: {str(error).splitlines()[0]}") from None
    found = [(d, at) for d, at in zip(documents, lines, strict=True) if isinstance(d, dict)]
    runs = [(d, at) for d, at in found if d.get("kind") == kind] or found
    if len(runs) != 1:
        raise ValueError(f"{name}: expected one {kind}, got {len(runs) or 'none'}; keep each in its own file")
    return runs[0]


def _lines(node: yaml.Node) -> Where:
    found: dict[tuple[str | int, ...], int] = {}
    for path, line in _walk(node, ()):
        if path in found:
            key, first = path[-1], found[path]
            raise yaml.MarkedYAMLError(
                problem=f"the key {key!r} is given twice (first in line {first})",
                problem_mark=yaml.Mark("", 0, line - 1, 0, "", 0),
            )
        found[path] = line
    return Where(found)


def _walk(node: yaml.Node, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, str(key.value))
            yield below, key.start_mark.line + 1
            yield from _walk(value, below)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1
            yield from _walk(value, (*path, index))


def _resolve_files(value: Any, folder: Path) -> None:
    """file:// URIs that are relative become absolute, in place; every field called `uri` may be one."""
    if isinstance(value, list):
        for item in value:
            _resolve_files(item, folder)
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "uri" and isinstance(item, str) and item.startswith("file://"):
                value[key] = _absolute(item, folder)
            else:
                _resolve_files(item, folder)


def _absolute(uri: str, folder: Path) -> str:
    path = uri.removeprefix("file://")
    return uri if path.startswith("/") or not path else f"file://{(folder / path).resolve()}"
