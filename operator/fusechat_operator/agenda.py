"""When which run is looked at: triggers at once, retries and polls later, never one run twice at a time.

Used by the engine. Knows keys and times, nothing of what they stand for.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress

Work = Callable[[Hashable], Awaitable[None]]


class Agenda:
    """A delay queue of keys. A key that comes again while it is worked on is worked on again after."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Hashable]] = []
        self._due: dict[Hashable, float] = {}
        self._busy: set[Hashable] = set()
        self._count = 0
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: Hashable, delay: float = 0.0) -> None:
        """Look at `key` after `delay` seconds, or earlier if that is planned already."""
        at = asyncio.get_running_loop().time() + max(0.0, delay)
        if key in self._due and self._due[key] <= at:
            return
        self._due[key] = at
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, key))
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
            pause = self._pause()
            if isinstance(pause, tuple):
                return pause[0]
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):  # wait_for may lose a cancellation
                    await self._news.wait()

    def _pause(self) -> tuple[Hashable] | float | None:
        """A key that is due (in a tuple), else seconds until one is; None if nothing is planned."""
        now, held = asyncio.get_running_loop().time(), []
        found: tuple[Hashable] | float | None = None
        while self._heap:
            at, _, key = self._heap[0]
            if self._due.get(key) != at:
                heapq.heappop(self._heap)
            elif at > now:
                found = at - now
                break
            elif key in self._busy:
                held.append(heapq.heappop(self._heap))
            else:
                heapq.heappop(self._heap)
                del self._due[key]
                found = (key,)
                break
        for item in held:
            heapq.heappush(self._heap, item)
        return found
