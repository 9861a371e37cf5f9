"""What reconcile asks about the world, and what it was told.

Reconcile is pure: it looks at facts, and where one is missing it notes the question and decides nothing that
hangs on it. The engine answers all questions of a round at once and calls it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from fusechat.store import InputRef

What = Literal[
    "artifact",
    "hit",
    "sink",
    "metrics",
    "child",
    "own",
    "pods",
    "workload",
    "warning",
    "attempts",
    "progress",
    "launchers",
    "refusal",
]


class Ask(NamedTuple):
    """One question. `key` by kind of question:

    artifact: an address (verified, never from memory) · sink: the same, before any child was looked at: what
    a child has published since, it does not know · hit: as sink, and may be some seconds old · metrics: an
    address (may be remembered) · child: Kind/name · own: a run's uid (all its children), or uid/Kind ·
    pods: a child's name · workload: a child's uid · warning: a child's uid (what its controller complained
    of last) · attempts and progress: an address · launchers: nothing · refusal: a child's name (why the API
    server did not take it).
    """

    what: What
    key: str = ""


@dataclass(frozen=True)
class Artifact:
    """What of a manifest the operator needs."""

    address: str
    digest: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, InputRef] = field(default_factory=dict)


@dataclass(frozen=True)
class Trouble:
    """The answer could not be had; `sentence` says why. `refused`: the asker may not, waiting won't help."""

    sentence: str
    refused: bool = False


class Unknown:
    """Nobody has asked yet."""


UNKNOWN = Unknown()


class Look:
    """Facts with a memory of what was asked for and missing, and of what could not be had."""

    def __init__(self, facts: Mapping[Ask, Any]) -> None:
        self._facts = facts
        self.asks: set[Ask] = set()
        self.troubles: list[Trouble] = []

    def lacked(self, address: str) -> bool:
        """Whether there was no artifact when this look began."""
        return any(self._facts.get(Ask(what, address), UNKNOWN) is None for what in _AT_FIRST)

    def __call__(self, what: What, key: str = "") -> Any:
        """The answer, or UNKNOWN."""
        ask = Ask(what, key)
        if ask not in self._facts:
            self.asks.add(ask)
            return UNKNOWN
        found = self._facts[ask]
        if isinstance(found, Trouble):
            self.troubles.append(found)
            return UNKNOWN
        return found


_AT_FIRST: tuple[What, ...] = ("hit", "sink")
