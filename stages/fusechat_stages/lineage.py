"""Whether a step's inputs belong together: rows and the model they came from, pairs of one dataset.

Used by entry before a stage runs. A plan gives nothing else; a command line written by hand may, and the
result would be wrong without a word. Knows manifests only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fusechat.errors import BadData
from fusechat.store import Manifest

# stage -> pairs that must be one artifact: a role, or a role's own input (`role/input`); `.N` is any number
SAME: Mapping[str, tuple[tuple[str, str], ...]] = {
    "align": (
        ("pivot/model", "pivotModel"),
        ("source/model", "sourceModel"),
        ("pivot/dataset", "source/dataset"),
    ),
    "filter": (("aligned/pivot", "pivot"),),
    "fuse": (
        ("pivot/model", "model"),
        ("aligned.N/pivot", "pivot"),
        ("selection.N/aligned", "aligned.N"),
    ),
    "merge": (("target.N/model", "base"),),
}


def check(stage: str, inputs: Mapping[str, Manifest]) -> None:
    """BadData naming the two inputs that do not belong together; what a manifest does not tell is let be."""
    for one, other in SAME.get(stage, ()):
        for left, right in _numbered(one, other, inputs):
            found, expected = _address(left, inputs), _address(right, inputs)
            if found and expected and found != expected:
                raise BadData(
                    f"inputs of {stage} do not belong together: {left} is {found[:20]}..., {right} is "
                    f"{expected[:20]}...; give it the artifacts that `fusechat plan` names"
                )


def _numbered(one: str, other: str, inputs: Mapping[str, Manifest]) -> Iterator[tuple[str, str]]:
    if ".N" not in one:
        yield one, other
        return
    stem = one.partition(".N")[0]
    for role in inputs:
        if role.startswith(f"{stem}."):
            number = role.removeprefix(stem)
            yield one.replace(".N", number), other.replace(".N", number)


def _address(path: str, inputs: Mapping[str, Manifest]) -> str | None:
    role, _, own = path.partition("/")
    if role not in inputs:
        return None
    if not own:
        return inputs[role].address
    found = inputs[role].inputs.get(own)
    return found.address if found else None
