"""What the engine keeps for a while and can lose: who waits for whose child, which children were not taken.

Used by the engine. Keys are (namespace, name): of a run that waits, of a child that it waits for.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from fusechat_operator.one_pass import REFUSAL_PAUSE_SECONDS

Key = tuple[str, str]


class Waiters:
    """Runs that are looked at when a child changes that is not theirs."""

    def __init__(self) -> None:
        self.waiting: dict[Key, set[Key]] = {}
        self._awaited: dict[Key, tuple[str, ...]] = {}

    def of(self, child: Key) -> Iterable[Key]:
        """Those that wait for it."""
        return self.waiting.get(child, ())

    def wait(self, run: Key, names: tuple[str, ...]) -> None:
        """Wait for these children of its namespace, and no more for any other."""
        for name in self._awaited.pop(run, ()):
            where = run[0], name
            self.waiting[where].discard(run)
            if not self.waiting[where]:
                del self.waiting[where]
        if names:
            self._awaited[run] = names = tuple(dict.fromkeys(names))
        for name in names:
            self.waiting.setdefault((run[0], name), set()).add(run)


class Refusals:
    """Why the API server did not take a child, for as long as it is not sent again."""

    def __init__(self) -> None:
        self._known: dict[Key, tuple[float, str]] = {}

    def of(self, child: Key) -> str | None:
        at, sentence = self._known.get(child, (0.0, ""))
        return sentence if sentence and time.monotonic() - at < REFUSAL_PAUSE_SECONDS else None

    def add(self, child: Key, sentence: str) -> None:
        now = time.monotonic()
        old = [key for key, (at, _) in self._known.items() if now - at > REFUSAL_PAUSE_SECONDS]
        for key in old:
            del self._known[key]
        self._known[child] = (now, sentence)
