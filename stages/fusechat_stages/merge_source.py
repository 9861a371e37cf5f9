"""One tensor of all models, ready to be read as often as a method asks, within a bounded memory.

Used by stage merge. From folders it is read in place. From the store each byte is fetched once, by parallel
ranges, into memory or, where the tensor is large, into a scratch file that has no name; never a whole model.
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
"""One GET: large enough that its overhead is lost, small enough that a tensor is several."""


@dataclass(frozen=True)
class Stored:
    """A tensor and the model it is of."""

    weights: Weights
    place: Place


@dataclass(frozen=True)
class _Slice:
    """Bytes of a tensor in an open file."""

    file: int
    start: int
    dtype: torch.dtype


@contextmanager
def opened(stored: Sequence[Stored], pool: ThreadPoolExecutor, memory: int, scratch: Path) -> Iterator[Read]:
    """A `Read` over the tensors, all of one shape; `pool` fetches what is in the store.

    Up to `memory` bytes are held in memory, more goes to `scratch`.
    """
    if all(one.weights.folder for one in stored):
        yield _from_files(
            [_Slice(s.weights.file(s.place.file), s.place.start, s.place.dtype) for s in stored]
        )
    elif sum(one.place.size for one in stored) <= memory:
        yield _from_memory([_fetched(one, pool) for one in stored])
    else:
        with tempfile.TemporaryFile(dir=scratch) as file:
            yield _from_files(_spooled(stored, pool, file.fileno()))


def whole(one: Stored, pool: ThreadPoolExecutor) -> torch.Tensor:
    """One tensor in its own shape, in memory."""
    place = one.place
    if not one.weights.folder:
        return _fetched(one, pool).view(place.shape)
    buffer = bytearray(place.size)
    _fill(memoryview(buffer), one.weights.file(place.file), place.start)
    return _view(buffer, place.dtype).view(place.shape)


def _from_memory(tensors: Sequence[torch.Tensor]) -> Read:
    return lambda start, stop: [tensor[start:stop] for tensor in tensors]


def _from_files(slices: Sequence[_Slice]) -> Read:
    """Reads into buffers of its own, which grow to the largest block asked for and are used again."""
    buffers = [bytearray() for _ in slices]

    def read(start: int, stop: int) -> list[torch.Tensor]:
        found = []
        for number, one in enumerate(slices):
            width = one.dtype.itemsize
            length = (stop - start) * width
            if len(buffers[number]) < length:
                buffers[number] = bytearray(length)
            _fill(memoryview(buffers[number])[:length], one.file, one.start + start * width)
            found.append(torch.frombuffer(buffers[number], dtype=one.dtype, count=stop - start))
        return found

    return read


def _fill(view: memoryview, file: int, start: int) -> None:
    while view:
        done = os.preadv(file, [view], start)
        if not done:
            raise ValueError("a file of weights became shorter while it was read; run the step again")
        view, start = view[done:], start + done


def _fetched(one: Stored, pool: ThreadPoolExecutor) -> torch.Tensor:
    buffer = bytearray(one.place.size)
    view = memoryview(buffer)

    def put(start: int, data: bytes) -> None:
        view[start : start + len(data)] = data

    _wait(_ranges(one, pool, put))
    return _view(buffer, one.place.dtype)


def _spooled(stored: Sequence[Stored], pool: ThreadPoolExecutor, file: int) -> list[_Slice]:
    """All tensors, one after the other, in an open file."""
    slices, fetches, at = [], [], 0
    for one in stored:
        slices.append(_Slice(file, at, one.place.dtype))
        fetches += _ranges(one, pool, partial(_write_all, file, at))
        at += one.place.size
    _wait(fetches)
    return slices


def _write_all(file: int, offset: int, start: int, data: bytes) -> None:
    view, at = memoryview(data), offset + start
    while view:
        done = os.pwrite(file, view, at)
        view, at = view[done:], at + done


def _ranges(one: Stored, pool: ThreadPoolExecutor, put: Callable[[int, bytes], None]) -> list[Future[None]]:
    """Fetch a tensor in ranges, each handed to `put(start, data)` in its own thread."""
    size = one.place.size

    def fetch(start: int) -> None:
        put(start, one.weights.read(one.place, start, min(RANGE_BYTES, size - start)))

    return [pool.submit(fetch, start) for start in range(0, size, RANGE_BYTES)]


def _wait(fetches: Sequence[Future[None]]) -> None:
    """All of them, also where one fails: they write into memory that their caller is about to give up."""
    wait(fetches)
    for fetch in fetches:
        fetch.result()


def _view(buffer: bytearray, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
