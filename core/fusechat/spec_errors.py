"""pydantic's findings -> one sentence each: line and field, what was found, what was expected, what to do.

Called by spec_load. Knows pydantic's error types and walks the model to know a field's neighbours; knows no
field by name.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Where:
    """The line of each field in the text it was read from; empty for what came from elsewhere."""

    lines: Mapping[Path, int]

    def __call__(self, path: Path) -> str:
        """`line 7: `, of the field or the nearest thing around it that has a line; else nothing."""
        for length in range(len(path), 0, -1):
            if line := self.lines.get(path[:length]):
                return f"line {line}: "
        return ""


def sentences(error: ValidationError, model: type[BaseModel], where: Where) -> list[str]:
    """One sentence a problem, in the order of the fields, none twice."""
    found: dict[Path, list[str]] = {}
    for item in error.errors(include_url=False):
        path = _known(item["loc"], model)
        said = _rules(item, path, where) or [f"{where(path)}{name(path)}: {_say(item, path, model)}"]
        # Of an alternative (a number or a text) pydantic reports every branch: the first says enough.
        if path not in found or item["type"] in ("extra_forbidden", "value_error"):
            found.setdefault(path, []).extend(said)
    return [sentence for said in found.values() for sentence in said]


def name(path: Path) -> str:
    """`spec.sources[2].uri`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the FusionRun"


def _known(loc: Iterable[str | int], model: type[BaseModel]) -> Path:
    """The location without the branch names that pydantic adds for alternatives."""
    path: list[str | int] = []
    for part in loc:
        if str(part).startswith("constrained-") or (path and part in ("int", "str", "[key]")):
            continue
        path.append(part)
    return tuple(path)


def _rules(item: Any, path: Path, where: Where) -> list[str]:
    """The sentences of spec_rules, which begin with the field they are about."""
    if item["type"] != "value_error":
        return []
    said = []
    for line in str(item["ctx"]["error"]).splitlines():
        field, _, message = line.partition(": ")
        below = (*path, *field.split("."))
        said.append(f"{where(below)}{name(below)}: {message}")
    return said


def _say(item: Any, path: Path, model: type[BaseModel]) -> str:
    if item["type"] == "missing":
        return f"is missing; add it: {_description(path, model)}"
    if item["type"] == "extra_forbidden":
        return f"there is no such field; {_nearest(str(path[-1]), path, model)}"
    return f"got {_show(item['input'])}, expected {_expected(item, path, model)}"


def _nearest(key: str, path: Path, model: type[BaseModel]) -> str:
    around = _class_at(path[:-1], model)
    known = (
        [str(field.alias or field_name) for field_name, field in around.model_fields.items()]
        if around
        else []
    )
    by_letters = {field.lower(): field for field in known}
    near = difflib.get_close_matches(key.replace("_", "").lower(), by_letters, n=1, cutoff=0.6)
    return f"did you mean {by_letters[near[0]]}?" if near else f"there are {', '.join(known)}"


_KINDS: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "names with values",
    "model_type": "an object with fields",
    "model_attributes_type": "an object with fields",
    "finite_number": "a finite number",
}
_BOUNDED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than_equal": lambda ctx: f"at least {ctx['ge']}",
    "less_than_equal": lambda ctx: f"at most {ctx['le']}",
    "literal_error": lambda ctx: f"one of {ctx['expected'].replace(chr(39), '')}",
    "string_too_long": lambda ctx: f"at most {ctx['max_length']} characters",
    "string_too_short": lambda ctx: f"at least {ctx['min_length']} character",
    "too_long": lambda ctx: f"at most {ctx['max_length']} entries",
    "too_short": lambda ctx: f"at least {ctx['min_length']} entry",
}


def _expected(item: Any, path: Path, model: type[BaseModel]) -> str:
    kind, form = item["type"], _form(item["loc"], path, model)
    if kind == "string_type" and not isinstance(item["input"], (dict, list)) and item["input"] is not None:
        return f"{form or 'text'}; put it in quotes if it is meant as text"
    if kind in ("string_pattern_mismatch", "string_type") or (form and kind not in _BOUNDED):
        return form or "text in one line"
    if kind in _BOUNDED:
        return _BOUNDED[kind](item["ctx"])
    return _KINDS.get(kind, str(item["msg"]))


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value!r}" if isinstance(value, (int, float)) else f'"{value}"'
    return text if len(text) <= 80 else f'{text[:77]}..."'


def _description(path: Path, model: type[BaseModel]) -> str:
    field = _field_at(path, model)
    return (field.description or "see the reference").rstrip(".") if field else "see the reference"


def _form(loc: Path, path: Path, model: type[BaseModel]) -> str | None:
    """The words that the type of a field (of a map: of its keys or values) has for its pattern (`x-form`)."""
    field = _field_at(path, model)
    if field is None:
        return None
    if maps := _maps(field.annotation):
        keys, values = maps
        found: Iterable[Mapping[str, Any]] = _extras(keys if loc[-1] == "[key]" else values)
    else:
        found = _extras(field.annotation, field)
    for extra in found:
        if "x-form" in extra:
            return str(extra["x-form"])
    return None


def _maps(annotation: Any) -> tuple[Any, Any] | None:
    """The types of keys and values of `dict[K, V]`, also inside Annotated."""
    if typing.get_origin(annotation) is Annotated:
        return _maps(typing.get_args(annotation)[0])
    return typing.get_args(annotation) if typing.get_origin(annotation) is dict else None


def _extras(annotation: Any, field: FieldInfo | None = None) -> Iterable[Mapping[str, Any]]:
    for info in [field, *getattr(annotation, "__metadata__", ())]:
        if isinstance(info, FieldInfo) and isinstance(info.json_schema_extra, dict):
            yield info.json_schema_extra
    for inner in typing.get_args(annotation):
        yield from _extras(inner)


def _field_at(path: Path, model: type[BaseModel]) -> FieldInfo | None:
    names = [part for part in path if isinstance(part, str)]
    around: type[BaseModel] | None = model
    field: FieldInfo | None = None
    for part in names:
        if around is None:  # below a map: its values have the map's field
            return field
        found = [f for n, f in around.model_fields.items() if (f.alias or n) == part]
        if not found:
            return None
        field, around = found[0], _model_in(found[0].annotation)
    return field


def _class_at(path: Path, model: type[BaseModel]) -> type[BaseModel] | None:
    if not [part for part in path if isinstance(part, str)]:
        return model
    field = _field_at(path, model)
    return _model_in(field.annotation) if field else None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    for inner in typing.get_args(annotation):
        if (found := _model_in(inner)) is not None:
            return found
    return None
