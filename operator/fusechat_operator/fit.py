"""A status that fits 32 KB, whatever the run: it says less, step by step, and forgets nothing. Pure.

Used by status and one_pass on what they are about to write. What the operator remembers (lines, pins, images)
is packed where there is no room for it in words; `memory` reads both. What is only for people gets shorter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from fusechat_operator import memory

MOST_BYTES = 32_000
Made = dict[str, Any]


def fit(made: Mapping[str, Any]) -> Made:
    """The status as it is, or the first of its shorter forms that fits."""
    found = dict(made)
    for shorter in _FORMS:
        if size(found) <= MOST_BYTES:
            break
        found = shorter(found)
    return found


def size(made: Mapping[str, Any]) -> int:
    """Bytes of it as the API server keeps it."""
    return len(json.dumps(made, separators=(",", ":"), ensure_ascii=False).encode())


def _without_addresses(made: Made) -> Made:
    lines = [{k: v for k, v in line.items() if k != "address"} for line in made.get("steps", ())]
    return {**made, "steps": lines}


def _terse(made: Made) -> Made:
    return _said(made, words=1024, details=10, detail=256)


def _packed(made: Made) -> Made:
    return _steps(made, shown=100)


def _tight(made: Made) -> Made:
    plan = memory.packed_plan(made.get("plan", {}))
    less = {**made, "plan": plan, "scores": list(made.get("scores", ()))[:10]}
    return _steps(_said(less, words=400, details=5, detail=200), shown=10)


def _bare(made: Made) -> Made:
    return _steps(_said(made, words=200, details=0, detail=0), shown=0)


_FORMS: tuple[Callable[[Made], Made], ...] = (_without_addresses, _terse, _packed, _tight, _bare)


def _said(made: Made, words: int, details: int, detail: int) -> Made:
    conditions = [{**c, "message": cut(c.get("message", ""), words)} for c in made.get("conditions", ())]
    told = [
        {**{k: v for k, v in d.items() if k != "metrics"}, "message": cut(d.get("message", ""), detail)}
        for d in made.get("details", ())
    ]
    return _present({**made, "conditions": conditions, "details": told[:details]})


def _steps(made: Made, shown: int) -> Made:
    """All steps packed; of those that do not simply wait their turn or are done, some in words."""
    lines = memory.lines_of(made)
    busy = [line for state in _BUSY for line in lines if line["state"] == state]
    return _present({**made, "packed": memory.pack(lines), "steps": busy[:shown]})


_BUSY = ("Failed", "Running", "Waiting")


def _present(made: Made) -> Made:
    return {key: value for key, value in made.items() if value != []}


def cut(text: str, most: int) -> str:
    """The beginning of a text, in as many bytes at most; whole characters."""
    return text.encode()[:most].decode(errors="ignore")
