"""Safetensors by byte range: where the tensors of a model artifact lie, and files of our own.

Used by stage merge. Reads no more of a model than it is asked for, from the store or from a folder; knows the
format (huggingface/safetensors: 8 bytes of length, a JSON header, the data) and nothing of merging.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusechat_stages.artifacts import FolderInput, Input

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LARGEST_HEADER = 100_000_000
"""What the safetensors library itself accepts, in bytes."""

FIRST_READ = 1 << 18


@dataclass(frozen=True)
class Place:
    """One stored tensor: `size` bytes from byte `start` of the artifact's file `file`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: str
    start: int
    size: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class Weights:
    """The tensors of one model artifact. Threads may share it. ValueError if the files are not sound."""

    def __init__(self, source: Input, label: str) -> None:
        self.source, self.label = source, label
        self.folder = isinstance(source, FolderInput)
        self._open: dict[str, int] = {}
        self.tensors = {place.name: place for file in self._files() for place in self._header(file)}

    def tied(self) -> bool:
        """Whether the model's config says that its head is its embedding."""
        return bool(self._json("config.json").get("tie_word_embeddings", False))

    def file(self, name: str) -> int:
        """Descriptor of a file of a folder, opened once and shared."""
        if name not in self._open:
            self._open[name] = os.open(self.source.path(name), os.O_RDONLY)
        return self._open[name]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def read(self, file: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length) of a file. ValueError if it ends before them."""
        data = self.source.read(file, start, length)
        if len(data) != length:
            raise ValueError(
                f"{file} of {self.label} ends at byte {start + len(data)}; fetch the model again"
            )
        return data

    def _files(self) -> list[str]:
        """The index decides, then the single file: a repository may hold a second copy in another layout."""
        names = self.source.names()
        if INDEX in names:
            return sorted(set(self._json(INDEX)["weight_map"].values()))
        found = [SINGLE] if SINGLE in names else [name for name in names if name.endswith(".safetensors")]
        if not found:
            raise ValueError(
                f"{self.label} has no safetensors, only {', '.join(names[:5])}; convert its weights first"
            )
        return found

    def _json(self, name: str) -> dict[str, Any]:
        if name not in self.source.names():
            return {}
        try:
            return dict(json.loads(self.source.path(name).read_bytes()))
        except ValueError as error:
            raise ValueError(
                f"{name} of {self.label} is not JSON ({error}); fetch the model again"
            ) from error

    def _size(self, file: str) -> int:
        return self.source.path(file).stat().st_size if self.folder else self.source.entry(file).size

    def _header(self, file: str) -> list[Place]:
        size = self._size(file)
        head = self.source.read(file, 0, min(size, FIRST_READ))
        length = int.from_bytes(head[:8], "little")
        if len(head) < 8 or length > min(size - 8, LARGEST_HEADER):
            raise ValueError(f"{file} of {self.label} is no safetensors file; fetch the model again")
        if len(head) < 8 + length:
            head += self.source.read(file, len(head), 8 + length - len(head))
        try:
            table = json.loads(head[8 : 8 + length])
            return [
                self._place(file, name, told, 8 + length, size)
                for name, told in table.items()
                if name != "__metadata__"
            ]
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"the header of {file} of {self.label} cannot be read: {error!r}") from error

    def _place(self, file: str, name: str, told: Mapping[str, Any], data: int, size: int) -> Place:
        begin, end = told["data_offsets"]
        if told["dtype"] not in DTYPES:
            raise ValueError(
                f"tensor {name} of {self.label} is stored as {told['dtype']}, expected one of "
                f"{', '.join(DTYPES)}; use an unquantised model"
            )
        place = Place(name, DTYPES[told["dtype"]], tuple(told["shape"]), file, data + begin, end - begin)
        if place.size != place.numel * place.dtype.itemsize or data + end > size:
            raise ValueError(f"tensor {name} of {self.label} is cut short in {file}; fetch the model again")
        return place


class ShardFile:
    """A safetensors file being written: header first, then tensors at their offsets, by any thread."""

    def __init__(self, path: Path, tensors: Iterable[Place]) -> None:
        names = {value: key for key, value in DTYPES.items()}
        # As the library orders them: every tensor is aligned to its own dtype then.
        ordered = sorted(tensors, key=lambda place: (-place.dtype.itemsize, place.name))
        table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        self._offsets: dict[str, int] = {}
        for place in ordered:
            table[place.name] = {
                "dtype": names[place.dtype],
                "shape": list(place.shape),
                "data_offsets": [at, at + place.size],
            }
            self._offsets[place.name] = at
            at += place.size
        head = json.dumps(table, separators=(",", ":")).encode()
        head += b" " * (-len(head) % 8)
        self.path, self._data = path, 8 + len(head)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.ftruncate(self._file, self._data + at)
        os.pwrite(self._file, len(head).to_bytes(8, "little") + head, 0)

    def write(self, name: str, start: int, data: memoryview | bytes) -> None:
        """Put bytes of a tensor at byte `start` within it."""
        view, at = memoryview(data), self._data + self._offsets[name] + start
        while view:
            done = os.pwrite(self._file, view, at)
            view, at = view[done:], at + done

    def close(self) -> None:
        os.close(self._file)


def index_json(shards: Sequence[tuple[str, Sequence[Place]]]) -> str:
    """The index of a model in several files, as transformers writes it."""
    weights = {place.name: name for name, places in shards for place in places}
    total = sum(place.size for _, places in shards for place in places)
    return json.dumps(
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))}, indent=2
    )


def bytes_of(values: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    return values.reshape(-1).view(torch.uint8).numpy().data
