"""Some tensors of all models, ready to be read as often as a method asks, within a bounded memory.

Used by stage merge. From folders they are read in place. From the store each byte is fetched once, by
parallel ranges, into memory or, where that would be too much, into a scratch file that has no name; never a
whole model.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from fusechat_stages.merge_tensors import Place, Weights
from fusechat_stages.numerics.merge_tiles import Read

RANGE_BYTES = 1 << 23
"""One GET: large enough that its overhead is lost, small enough that a large tensor is several."""

GAP_BYTES = 1 << 16
"""Bytes between two tensors that are fetched along rather than asked for apart."""


@dataclass(frozen=True)
class Stored:
    """A tensor and the model it is of."""

    weights: Weights
    place: Place


@dataclass(frozen=True)
class Run:
    """Tensors that lie together in one file of one model: bytes [start, stop)."""

    weights: Weights
    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class _Slice:
    """Bytes of a tensor in an open file or in memory."""

    where: int | bytearray
    start: int
    dtype: torch.dtype


class Staged:
    """Tensors that are at hand: made by `staged`."""

    def __init__(self, slices: dict[Stored, _Slice]) -> None:
        self._slices = slices

    def read(self, stored: Sequence[Stored]) -> Read:
        """A `Read` over tensors of one shape; its buffers grow to the largest block and are used again."""
        slices = [self._slices[one] for one in stored]
        buffers = [bytearray() for _ in slices]

        def read(start: int, stop: int) -> list[torch.Tensor]:
            return [_tensor(one, start, stop, buffers, number) for number, one in enumerate(slices)]

        return read

    def whole(self, one: Stored) -> torch.Tensor:
        """One tensor in its own shape."""
        if not one.place.numel:
            return torch.empty(one.place.shape, dtype=one.place.dtype)
        return self.read([one])(0, one.place.numel)[0].view(one.place.shape)


@contextmanager
def staged(
    stored: Sequence[Stored], pool: ThreadPoolExecutor, memory: int, scratch: Path
) -> Iterator[Staged]:
    """Tensors of any number and shape; `pool` fetches what is in the store.

    Up to `memory` bytes are held in memory, more goes to `scratch`.
    """
    slices = {
        s: _Slice(s.weights.file(s.place.file), s.place.start, s.place.dtype)
        for s in stored
        if s.weights.folder
    }
    far = [s for s in stored if not s.weights.folder]
    found = runs(far)
    total = sum(run.stop - run.start for run in found)
    if total <= memory:
        arena = bytearray(total)
        yield Staged(slices | _fetched(far, found, arena, partial(_into_memory, memoryview(arena)), pool))
        return
    with tempfile.TemporaryFile(dir=scratch) as file:
        put = partial(_into_file, file.fileno())
        yield Staged(slices | _fetched(far, found, file.fileno(), put, pool))


def runs(stored: Sequence[Stored]) -> list[Run]:
    """What to fetch: neighbours in one file together, so that small tensors cost no request each."""
    found: list[Run] = []
    for one in sorted(stored, key=lambda s: (id(s.weights), s.place.file, s.place.start)):
        weights, place, stop = one.weights, one.place, one.place.start + one.place.size
        last = found[-1] if found else None
        if (
            last
            and (last.weights, last.file) == (weights, place.file)
            and place.start - last.stop <= GAP_BYTES
        ):
            found[-1] = Run(weights, last.file, last.start, max(last.stop, stop))
        else:
            found.append(Run(weights, place.file, place.start, stop))
    return found


def _fetched(
    stored: Sequence[Stored],
    found: Sequence[Run],
    where: int | bytearray,
    put: Callable[[int, bytes], None],
    pool: ThreadPoolExecutor,
) -> dict[Stored, _Slice]:
    """Fetch the runs one after the other into `where`, and tell where each tensor is."""
    offsets, at = {}, 0
    fetches: list[Future[None]] = []
    for run in found:
        offsets[run] = at
        fetches += [
            pool.submit(_fetch, run, start, at, put) for start in range(run.start, run.stop, RANGE_BYTES)
        ]
        at += run.stop - run.start
    _wait(fetches)
    slices = {}
    for one in stored:
        run = next(r for r in found if _holds(r, one))
        slices[one] = _Slice(where, offsets[run] + one.place.start - run.start, one.place.dtype)
    return slices


def _holds(run: Run, one: Stored) -> bool:
    return (run.weights, run.file) == (
        one.weights,
        one.place.file,
    ) and run.start <= one.place.start < run.stop


def _fetch(run: Run, start: int, offset: int, put: Callable[[int, bytes], None]) -> None:
    put(offset + start - run.start, run.weights.read(run.file, start, min(RANGE_BYTES, run.stop - start)))


def _wait(fetches: Sequence[Future[None]]) -> None:
    """All of them, also where one fails: they write into memory that their caller is about to give up."""
    wait(fetches)
    for fetch in fetches:
        fetch.result()


def _into_memory(view: memoryview, start: int, data: bytes) -> None:
    view[start : start + len(data)] = data


def _into_file(file: int, start: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, start)
        view, start = view[done:], start + done


def _tensor(one: _Slice, start: int, stop: int, buffers: list[bytearray], number: int) -> torch.Tensor:
    width, count = one.dtype.itemsize, stop - start
    if isinstance(one.where, bytearray):
        return torch.frombuffer(one.where, dtype=one.dtype, count=count, offset=one.start + start * width)
    if len(buffers[number]) < count * width:
        buffers[number] = bytearray(count * width)
    view, at = memoryview(buffers[number])[: count * width], one.start + start * width
    while view:
        done = os.preadv(one.where, [view], at)
        if not done:
            raise ValueError("a file of weights became shorter while it was read; run the step again")
        view, at = view[done:], at + done
    return torch.frombuffer(buffers[number], dtype=one.dtype, count=count)
