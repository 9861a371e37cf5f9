"""The work of a merge: every file of the output, its tensors on every core.

Used by stage merge, which has planned it. Knows tasks, methods and memory; nothing of what else a model has.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from fusechat_stages.artifacts import Output, Stopped
from fusechat_stages.merge_plan import Shard, Task
from fusechat_stages.merge_source import Staged, staged
from fusechat_stages.merge_tensors import ShardFile, bytes_of
from fusechat_stages.numerics import merge_published, merging
from fusechat_stages.numerics.merge_settings import Settings
from fusechat_stages.numerics.merge_tiles import TILE, Stream, Tile, Workspace

MEMORY = 128 << 20
"""Bytes of fetched tensors held in memory by all threads together; larger ones go to scratch."""

GETS = 8
"""Ranges fetched from the store at a time."""

WAITING = 2
"""Threads more than cores where weights come from the store: those that wait for them do not compute."""

PIVOT = "the pivot"
"""What complaints call the base."""


@dataclass(frozen=True)
class Merged:
    """What became of one tensor: elements, those that differ from the pivot's, a coefficient per target."""

    name: str
    elements: int
    moved: int
    coefficients: tuple[float, ...] | None


class Merger:
    """Files one after the other, the tensors of a file in parallel; an upload overlaps the next file."""

    def __init__(
        self, settings: Settings, labels: tuple[str, ...], planned: list[Shard], out: Output, far: bool
    ) -> None:
        """`far`: some weights are in a store. Labels: what to call the targets in complaints and metrics."""
        self._settings, self._labels, self._planned, self._out = settings, labels, planned, out
        self._total = sum(task.place.numel for shard in planned for task in shard.tasks)
        self._done, self._lock = 0, threading.Lock()
        self._threads = _cores() + (WAITING if far else 0)
        self._local = threading.local()

    def run(self) -> None:
        with (
            ThreadPoolExecutor(GETS, "merge-get") as self._gets,
            ThreadPoolExecutor(self._threads, "merge") as pool,
        ):
            pending: deque[_Pending] = deque()
            try:
                for block in self._out.blocks(len(self._planned)):
                    pending.append(self._start(block, pool))
                    if len(pending) > 1:
                        self._finish(pending.popleft())
                while pending:
                    self._finish(pending.popleft())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _start(self, block: int, pool: ThreadPoolExecutor) -> _Pending:
        shard = self._planned[block]
        file = ShardFile(self._out.folder / shard.name, [task.place for task in shard.tasks])
        return _Pending(
            block, file, [pool.submit(self._batch, b, file) for b in shard.batches(self._memory())]
        )

    def _finish(self, pending: _Pending) -> None:
        found = [one for future in pending.futures for one in future.result()]
        pending.file.close()
        self._out.publish_block(
            pending.block, {pending.file.path.name: pending.file.path}, self._metrics(found)
        )

    def _metrics(self, found: list[Merged]) -> dict[str, Any]:
        merged = [one for one in found if one.coefficients is not None]
        weighted = {
            label: sum(one.elements * (one.coefficients or ())[j] for one in merged)
            for j, label in enumerate(self._labels)
        }
        return {
            "tensors": len(found),
            "parameters": sum(one.elements for one in found),
            "merged": sum(one.elements for one in merged),
            "moved": sum(one.moved for one in merged),
            "weighted": weighted,
            "coefficients": {one.name: list(one.coefficients or ()) for one in merged},
        }

    def _batch(self, batch: tuple[Task, ...], file: ShardFile) -> list[Merged]:
        """Some tensors, in a thread of the pool."""
        if self._out.stopping:
            raise Stopped("stopped between two tensors; the finished files are kept")
        torch.set_num_threads(1)
        stored = [one for task in batch for one in task.stored]
        with staged(stored, self._gets, self._memory(), self._out.folder) as at_hand:
            return [self._merge(task, at_hand, file) for task in batch]

    def _merge(self, task: Task, at_hand: Staged, file: ShardFile) -> Merged:
        kept = [j for j, target in enumerate(task.targets) if target is not None]
        if len(kept) < (2 if self._settings.method == "slerp" else 1):
            result = self._copied(task, at_hand, file)
        elif self._settings.profile == "Published":
            result = self._whole(task, kept, at_hand, file)
        else:
            result = self._streamed(task, at_hand, file)
        with self._lock:
            self._done += task.place.numel
        self._out.progress(self._done, self._total, "parameters")
        return result

    def _copied(self, task: Task, at_hand: Staged, file: ShardFile) -> Merged:
        file.write(task.place.name, 0, bytes_of(at_hand.whole(task.base)))
        return Merged(task.place.name, task.place.numel, 0, None)

    def _whole(self, task: Task, kept: list[int], at_hand: Staged, file: ShardFile) -> Merged:
        place, base = task.place, at_hand.whole(task.base)
        cut = tuple(slice(size) for size in place.shape)
        targets = [at_hand.whole(target)[cut] for target in task.stored[1:]]
        settings = replace(self._settings, weights=tuple(self._settings.weights[j] for j in kept))
        merged, facts = merge_published.merge_tensor(place.name, base, targets, settings)
        file.write(place.name, 0, bytes_of(merged.contiguous()))
        coefficients = [0.0] * len(task.targets)
        for j, coefficient in zip(kept, facts.coefficients, strict=True):
            coefficients[j] = coefficient
        return Merged(place.name, place.numel, int(torch.count_nonzero(merged != base)), tuple(coefficients))

    def _streamed(self, task: Task, at_hand: Staged, file: ShardFile) -> Merged:
        place, moved = task.place, 0
        rounded_N = torch.empty(TILE, dtype=place.dtype)

        def write(tile: Tile, merged_N: torch.Tensor) -> None:
            nonlocal moved
            values_N = rounded_N[: tile.size].copy_(merged_N)
            moved += _differing(values_N, tile.raw_base)
            file.write(place.name, tile.start * place.dtype.itemsize, bytes_of(values_N))

        read = at_hand.read(task.stored)
        stream = Stream(place.name, [PIVOT, *self._labels], place.numel, read, self._space())
        facts = merging.merge_tensor(stream, self._settings, write)
        return Merged(place.name, place.numel, moved, facts.coefficients)

    def _memory(self) -> int:
        """Bytes that one thread may hold of what it fetched."""
        return MEMORY // self._threads

    def _space(self) -> Workspace:
        if not hasattr(self._local, "space"):
            self._local.space = Workspace(len(self._labels))
        space: Workspace = self._local.space
        return space


@dataclass(frozen=True)
class _Pending:
    block: int
    file: ShardFile
    futures: list[Future[list[Merged]]]


def _differing(values_N: torch.Tensor, others_N: torch.Tensor) -> int:
    """Elements whose bits differ."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values_N.element_size()]
    return int((values_N.view(width).numpy() != others_N.view(width).numpy()).sum())


def _cores() -> int:
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Tensors are the unit of parallelism: torch's own threads would only fight ours."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
