"""When which run is looked at: triggers at once, retries and polls later, never one run twice at a time.

Used by the engine. Knows keys and times, nothing of what they stand for.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress

Work = Callable[[Hashable], Awaitable[None]]
Heap = list[tuple[float, int, Hashable]]
"""(time, number, key): the number is that of the plan by which the key was put here."""


class Agenda:
    """A delay queue of keys. A key that comes again while it is worked on is worked on again after.

    Of the keys that are due, the one that can least wait is first: a thousand polls do not keep news waiting.
    """

    def __init__(self) -> None:
        self._later: Heap = []
        self._now: Heap = []
        self._plans: dict[Hashable, tuple[float, float, int]] = {}
        self._due: set[Hashable] = set()
        self._busy: set[Hashable] = set()
        self._count = 0
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._plans)

    @property
    def due(self) -> int:
        """How many keys should be worked on by now."""
        return len(self._due)

    def add(self, key: Hashable, delay: float = 0.0, slack: float = 0.0) -> None:
        """Look at `key` after `delay` seconds, or earlier if that is planned already.

        It may be `slack` seconds late where others can wait less.
        """
        now = asyncio.get_running_loop().time()
        at = now + max(0.0, delay)
        latest = at + max(0.0, slack)
        if known := self._plans.get(key):
            if known[0] <= at and known[1] <= latest:
                return
            at, latest = min(at, known[0]), min(latest, known[1])
        self._count += 1
        self._plans[key] = at, latest, self._count
        if at <= now:
            self._due.add(key)
            heapq.heappush(self._now, (latest, self._count, key))
        else:
            heapq.heappush(self._later, (at, self._count, key))
        self._news.set()

    async def run(self, work: Work, workers: int) -> None:
        """Work on keys as they come due, until cancelled."""
        await asyncio.gather(*(self._worker(work) for _ in range(workers)))

    async def _worker(self, work: Work) -> None:
        while True:
            key = await self._next()
            self._busy.add(key)
            try:
                await work(key)
            finally:
                self._busy.discard(key)
                self._news.set()

    async def _next(self) -> Hashable:
        while True:
            pause = self._come_due()
            if found := self._take():
                return found[0]
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):  # wait_for may lose a cancellation
                    await self._news.wait()

    def _is_plan(self, key: Hashable, number: int) -> bool:
        """Whether the key has not been planned anew, or taken, since."""
        return key in self._plans and self._plans[key][2] == number

    def _come_due(self) -> float | None:
        """Seconds until the next key is due that is not now; None if nothing is planned."""
        now = asyncio.get_running_loop().time()
        while self._later:
            at, number, key = self._later[0]
            if at > now and self._is_plan(key, number):
                return at - now
            heapq.heappop(self._later)
            if self._is_plan(key, number):
                self._due.add(key)
                heapq.heappush(self._now, (self._plans[key][1], number, key))
        return None

    def _take(self) -> tuple[Hashable] | None:
        """The key that is due and nobody works on, in a tuple."""
        held, found = [], None
        while self._now and not found:
            item = heapq.heappop(self._now)
            _, number, key = item
            if not self._is_plan(key, number):
                continue
            if key in self._busy:
                held.append(item)
            else:
                del self._plans[key]
                self._due.discard(key)
                found = (key,)
        for item in held:
            heapq.heappush(self._now, item)
        return found
