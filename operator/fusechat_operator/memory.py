"""What a run's status remembers from one reconcile to the next: each step's line, and the frozen plan. Pure.

Read from the object's status and written back by `status`. Nothing else survives an operator, and
nothing else has to.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fusechat.address import digest
from fusechat.pins import origins
from fusechat.plan import Plan
from fusechat.spec import FusionRun

DONE = ("Cached", "Succeeded")
SHORT = 10
"""Hex digits of an address in a line: enough to tell that a plan has changed, few enough for 50 sources."""


@dataclass(frozen=True)
class Line:
    """One step. `ended` is the uid of the last child whose end was counted; tries are by cause.

    `within`: how many disruptions and troubles outside of these a Job has met that goes on by itself.
    """

    name: str
    state: str = "Pending"
    address: str | None = None
    disruption: int = 0
    infrastructure: int = 0
    bug: int = 0
    ended: str = ""
    replanned: bool = False
    within: tuple[int, int] = (0, 0)

    @property
    def done(self) -> bool:
        return self.state in DONE

    def counted(self, cause: str, uid: str) -> Line:
        """With one more attempt of that cause, by that child."""
        return replace(self, **{cause: getattr(self, cause) + 1}, ended=uid)

    def counting(self, disruptions: int, failures: int) -> Line:
        """With what the Job of now has counted by itself so far."""
        more = max(0, disruptions - self.within[0]), max(0, failures - self.within[1])
        return replace(
            self,
            disruption=self.disruption + more[0],
            infrastructure=self.infrastructure + more[1],
            within=(self.within[0] + more[0], self.within[1] + more[1]),
        )


@dataclass(frozen=True)
class Memory:
    """`generation` is the one that `lines` and the plan's parts are of; -1 for a run never looked at.

    `store`: the identity of the one in which it began; "" where an older operator did not write it down.
    """

    generation: int = -1
    lines: Mapping[str, Line] = field(default_factory=dict)
    pins: Mapping[str, str] = field(default_factory=dict)
    asked: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""
    launcher: str = ""
    last_retry: str = ""
    started: str = ""
    gpu_seconds: float = 0.0
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    store: str = ""

    def true(self, condition: str) -> bool:
        return self.conditions.get(condition, {}).get("status") == "True"


def read(status: Mapping[str, Any]) -> Memory:
    """From an object's status; what a newer operator added is left alone."""
    plan = _whole_plan(status.get("plan") or {})
    lines = [_line(found) for found in lines_of(status)]
    pins = plan.get("pins") or ()
    return Memory(
        int(plan.get("generation", -1)),
        {line.name: line for line in lines},
        {p["name"]: p["pin"] for p in pins},
        {p["name"]: p.get("asked", "") for p in pins},
        plan.get("versions") or {},
        plan.get("images") or {},
        plan.get("digest", ""),
        status.get("launcher", ""),
        status.get("lastRetry", ""),
        status.get("started", ""),
        float(status.get("gpuSeconds") or 0.0),
        {c["type"]: c for c in status.get("conditions") or ()},
        {d["name"]: d for d in status.get("details") or ()},
        plan.get("store", ""),
    )


def _line(found: Mapping[str, Any]) -> Line:
    tries = found.get("tries") or {}
    return Line(
        found["name"],
        found["state"],
        found.get("address"),
        int(tries.get("disruption", 0)),
        int(tries.get("infrastructure", 0)),
        int(tries.get("bug", 0)),
        found.get("ended", ""),
        bool(found.get("replanned")),
        (int((found.get("within") or (0, 0))[0]), int((found.get("within") or (0, 0))[1])),
    )


def line_json(line: Line, brief: bool = False) -> dict[str, Any]:
    """As status.steps has it: what is nothing is left out, and if `brief` the address."""
    tries = {name: getattr(line, name) for name in ("disruption", "infrastructure", "bug")}
    made: dict[str, Any] = {
        "name": line.name,
        "state": line.state,
        "address": None if brief else line.address,
    }
    if any(tries.values()):
        made["tries"] = tries  # all three: the API server would add the others, and the status never compare
    made |= {"ended": line.ended, "replanned": line.replanned or None}
    made["within"] = list(line.within) if any(line.within) else None
    return {key: value for key, value in made.items() if value}


def lines_of(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every step's line: `packed` where there is no room for all of them in `steps`."""
    return list(_unpacked(status.get("packed")) or status.get("steps") or ())


def packed_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    """status.plan with its long parts packed."""
    if not plan or "packed" in plan:
        return dict(plan)
    rest = {key: value for key, value in plan.items() if key not in _LONG}
    return {**rest, "packed": pack({key: plan[key] for key in _LONG if key in plan})}


_LONG = ("pins", "images")


def _whole_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {**plan, **(_unpacked(plan.get("packed")) or {})}


def pack(found: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    """As few characters as can be; the same for the same."""
    return base64.b64encode(zlib.compress(json.dumps(found, separators=(",", ":")).encode(), 9)).decode()


def _unpacked(text: str | None) -> Any:
    """What was packed; None for nothing and for what cannot be read: artifacts tell it again."""
    try:
        return json.loads(zlib.decompress(base64.b64decode(text))) if text else None
    except (ValueError, zlib.error):
        return None


def plan_digest(made: Plan) -> str:
    """One digest of all addresses of a plan."""
    return digest([[step.name, step.address] for step in made.steps])[:16]


def asked(run: FusionRun) -> dict[str, str]:
    """A digest of each origin as the spec names it: while it stays, so does its pin."""
    return {name: digest(origin.asked())[:8] for name, origin in origins(run).items()}
