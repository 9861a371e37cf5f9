"""When which key is worked on: at once, later, never twice at a time, and nobody sleeps through its time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress

import pytest
from fusechat_operator.agenda import Agenda

SOON = 0.005


def run(scene: Callable[[Agenda], Awaitable[None]]) -> None:
    """Play a scene with an agenda; what still waits after it is cancelled."""

    async def play() -> None:
        await asyncio.wait_for(scene(Agenda()), 5)

    asyncio.run(play())


async def worked(agenda: Agenda, work, workers: int, seconds: float) -> None:
    """Let the agenda work for a while."""
    with suppress(TimeoutError):
        await asyncio.wait_for(agenda.run(work, workers), seconds)


def test_a_key_that_comes_twice_before_its_turn_is_worked_on_once():
    async def scene(agenda: Agenda) -> None:
        done: list[Hashable] = []

        async def work(key: Hashable) -> None:
            done.append(key)

        for _ in range(50):
            agenda.add("a")
        agenda.add("b")
        assert len(agenda) == 2
        await worked(agenda, work, 4, 0.02)
        assert sorted(done) == ["a", "b"]
        assert len(agenda) == 0

    run(scene)


def test_a_key_that_comes_while_it_is_worked_on_is_worked_on_again_after_and_never_at_once():
    async def scene(agenda: Agenda) -> None:
        busy, most, done = 0, 0, 0

        async def work(key: Hashable) -> None:
            nonlocal busy, most, done
            busy += 1
            most = max(most, busy)
            if done == 0:
                agenda.add(key)
                agenda.add(key)
            await asyncio.sleep(0)
            busy -= 1
            done += 1

        agenda.add("a")
        await worked(agenda, work, 8, 0.02)
        assert (done, most) == (2, 1)

    run(scene)


def test_a_delay_is_waited_for_and_a_shorter_one_comes_before_it():
    async def scene(agenda: Agenda) -> None:
        done: list[tuple[Hashable, float]] = []
        loop = asyncio.get_running_loop()
        begun = loop.time()

        async def work(key: Hashable) -> None:
            done.append((key, loop.time() - begun))

        agenda.add("late", 4 * SOON)
        agenda.add("early", SOON)
        agenda.add("moved", 1000)
        agenda.add("moved", 2 * SOON)
        await worked(agenda, work, 1, 0.1)
        assert [key for key, _ in done] == ["early", "moved", "late"]
        assert all(at >= delay for (_, at), delay in zip(done, (SOON, 2 * SOON, 4 * SOON), strict=True))

    run(scene)


def test_a_later_time_does_not_put_off_an_earlier_one():
    async def scene(agenda: Agenda) -> None:
        done = asyncio.Event()

        async def work(key: Hashable) -> None:
            done.set()

        agenda.add("a")
        agenda.add("a", 1000)
        working = asyncio.create_task(agenda.run(work, 1))
        await asyncio.wait_for(done.wait(), 1)
        await asyncio.sleep(0)
        assert len(agenda) == 0
        working.cancel()

    run(scene)


def test_as_many_keys_are_worked_on_at_once_as_there_are_workers():
    async def scene(agenda: Agenda) -> None:
        busy, full, go = 0, asyncio.Event(), asyncio.Event()

        async def work(key: Hashable) -> None:
            nonlocal busy
            busy += 1
            if busy == 3:
                full.set()
            await go.wait()

        working = asyncio.create_task(agenda.run(work, 3))
        await asyncio.sleep(0)
        for key in range(5):
            agenda.add(key)
        await asyncio.wait_for(full.wait(), 1)
        await asyncio.sleep(SOON)
        assert (busy, len(agenda)) == (3, 2)
        go.set()
        working.cancel()

    run(scene)


def test_a_busy_key_keeps_nobody_from_the_others():
    async def scene(agenda: Agenda) -> None:
        go, done = asyncio.Event(), asyncio.Event()

        async def work(key: Hashable) -> None:
            if key == "slow":
                agenda.add("slow")
                await go.wait()
            else:
                done.set()

        working = asyncio.create_task(agenda.run(work, 2))
        agenda.add("slow")
        await asyncio.sleep(0)
        agenda.add("quick", SOON)
        await asyncio.wait_for(done.wait(), 1)
        working.cancel()

    run(scene)


def test_a_worker_whose_key_fails_ends_the_run_and_hides_nothing():
    async def scene(agenda: Agenda) -> None:
        async def work(key: Hashable) -> None:
            raise RuntimeError("a fault of ours")

        agenda.add("a")
        with pytest.raises(RuntimeError, match="a fault of ours"):
            await agenda.run(work, 2)

    run(scene)


def test_no_worker_sleeps_through_what_came_while_it_lay_down():
    """The news comes between one worker's look at the agenda and its sleep, and another reads it first."""

    async def scene(agenda: Agenda) -> None:
        second = asyncio.Event()

        async def work(key: Hashable) -> None:
            if key == "first":
                await asyncio.sleep(1000)
            second.set()

        async def news() -> None:
            await asyncio.sleep(0)
            agenda.add("first", SOON)
            agenda.add("second", 2 * SOON)

        agenda.add("far", 1000)  # so that both sleep with a time of their own
        begun = [
            asyncio.create_task(agenda.run(work, 1)),
            asyncio.create_task(news()),
            asyncio.create_task(agenda.run(work, 1)),
        ]
        await asyncio.wait_for(second.wait(), 1)
        for each in begun:
            each.cancel()

    run(scene)


def test_news_goes_before_polls_that_can_wait_but_not_for_ever():
    async def scene(agenda: Agenda) -> None:
        done: list[Hashable] = []

        async def work(key: Hashable) -> None:
            done.append(key)
            if len(done) < 9:
                agenda.add(f"news-{len(done)}")  # there is always more of it
            await asyncio.sleep(6 * SOON)

        for key in ("poll-1", "poll-2"):
            agenda.add(key, 0.001, slack=30 * SOON)
        await asyncio.sleep(0.002)
        agenda.add("news-0")
        await worked(agenda, work, 1, 1.0)
        assert done[0] == "news-0"
        assert 0 < done.index("poll-1") < 9
        assert sorted(done) == sorted({*done}), "each once"
        assert agenda.due == 0

    run(scene)


def test_news_of_a_key_whose_poll_is_late_is_news():
    async def scene(agenda: Agenda) -> None:
        done: list[Hashable] = []

        async def work(key: Hashable) -> None:
            done.append(key)

        for key in "abc":
            agenda.add(key, 0.001, slack=10)
        await asyncio.sleep(0.002)
        agenda.add("c")
        agenda.add("c", 100, slack=0)
        await worked(agenda, work, 1, 0.02)
        assert done == ["c", "a", "b"]
        assert len(agenda) == 0

    run(scene)


def test_how_many_are_due_is_told():
    async def scene(agenda: Agenda) -> None:
        async def work(key: Hashable) -> None:
            seen.append(agenda.due)

        seen: list[int] = []
        agenda.add("far", 1000)
        for key in range(3):
            agenda.add(key)
            agenda.add(key, 500)
        assert (agenda.due, len(agenda)) == (3, 4)
        await worked(agenda, work, 1, 0.02)
        assert seen == [2, 1, 0]

    run(scene)
