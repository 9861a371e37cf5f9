"""A field that nothing reads is a lie: every field of the stages changes the plan, or is the operator's."""

import json
import typing

import pytest
from fusechat.plan import plan
from fusechat.spec import RunSpec, load
from pydantic import BaseModel

BASE = """\
apiVersion: fusechat.io/v1alpha1
kind: FusionRun
metadata: {name: tiny}
spec:
  profile: Published
  pivot: {name: p, uri: file:///p}
  sources: [{name: a, uri: file:///a}, {name: b, uri: file:///b}]
  dataset: {uri: file:///d}
  evaluate:
    exactMatch: {uri: file:///q}
    perplexity: {uri: file:///t}
    mtBench: {judge: {}}
    alpacaEval: {judge: {}}
"""
METHODS = {
    **dict.fromkeys(("density", "lambda", "normalize", "weights"), "ties"),
    "t": "slerp",
    "seed": "dare_ties",
}
OTHERS = {
    "uri": "file:///other",
    "revision": "sha256:" + "a" * 64,
    "weights": {"a": 2.0},
    "subjects": ["Fused"],
    "split": "test",
}
LATER = {"mtBench", "alpacaEval"}  # their benchmarks are still to come


def leaves(model: type[BaseModel], path: tuple[str, ...]):
    """(path, field) of every field that is no object, below `model`."""
    for name, field in model.model_fields.items():
        below = (*path, field.alias or name)
        inner = [a for a in (field.annotation, *typing.get_args(field.annotation)) if isinstance(a, type)]
        objects = [a for a in inner if issubclass(a, BaseModel)]
        if objects and below[-1] not in LATER:
            yield from leaves(objects[0], below)
        elif not objects:
            yield below, field


STAGES = ("extract", "align", "filter", "fuse", "merge", "evaluate")


def has_a_choice(field):
    """Whether another value than the default exists."""
    one_of = typing.get_origin(field.annotation) is typing.Literal
    return not one_of or len(typing.get_args(field.annotation)) > 1


CASES = [
    (path, field)
    for stage in STAGES
    for path, field in leaves(RunSpec.model_fields[stage].default_factory, (stage,))
    if has_a_choice(field)
]


def another(path, field):
    """A valid value that is not the default."""
    if path[-1] in OTHERS:
        return OTHERS[path[-1]]
    kinds = [field.annotation, *typing.get_args(field.annotation)]
    choices = [c for kind in kinds for c in typing.get_args(kind) if isinstance(c, str)]
    choices += [kind for kind in kinds if isinstance(kind, str)]
    if choices:
        return next(c for c in choices if c not in (field.default, "MS", "Bytes"))
    if bool in kinds:
        return not field.default
    if isinstance(field.default, float):
        return 0.25
    return 64


@pytest.mark.parametrize(("path", "field"), CASES, ids=[".".join(path) for path, _ in CASES])
def test_the_field_changes_the_plan(path, field):
    def steps(value=None):
        data = json.loads(load(BASE).model_dump_json(by_alias=True, exclude_none=True))
        data["spec"]["align"] = {}
        data["spec"]["fuse"] = {}
        if path[0] == "merge" and path[1] in METHODS:
            data["spec"]["merge"] = {"method": METHODS[path[1]]}
        if value is not None:
            node = data["spec"]
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = value
        return plan(load(data)).steps

    assert steps(another(path, field)) != steps()
