"""The files between stages: one Arrow IPC stream a block, flat numpy arrays in memory.

Written by extract (`Rows`) and align (`Aligned`), read by align, filter and fuse. A block holds at most
2,048 samples; sequences are ragged and never padded, and only supervised positions have a row. Arrow IPC
streams are used because `datasets.Dataset.from_file` opens them and refuses Arrow IPC files. Knows no
store, no tokenizer and no torch.

Shapes: S samples, N input ids, U supervised turns, R rows (one per supervised token), K kept tokens a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

VERSION = 1
BLOCK_SAMPLES = 2048
BATCH_ROWS = 1 << 16
"""Rows a record batch closes at: bounds the writer's memory and keeps Arrow's 32-bit list offsets valid."""

EMPTY, EXACT, MAPPED, ONE_HOT = 0, 1, 2, 3
"""What became of an aligned row: no source position; all kept ids have an equal token; some were mapped to
another; only the gold token (profile Published)."""


def block_name(block: int, suffix: str = "arrow") -> str:
    """File name of a block: `block-00012.arrow`."""
    return f"block-{block:05d}.{suffix}"


@dataclass(frozen=True)
class Turn:
    """One supervised assistant turn: tokens `[start, end)` of the sample's input ids are predicted.

    `ordinal` counts the conversation's assistant turns from 0 (dropped ones too); `bytes` is the length of
    the whole rendered answer before truncation, without the template's separator space and end-of-turn.
    """

    start: int
    end: int
    ordinal: int
    bytes: int


@dataclass(frozen=True)
class Rows:
    """A block of one model's next-token distributions. Row of token t sits at input position t - 1."""

    ids: list[str]
    index: np.ndarray  # int64[S], position in the dataset
    input_ids: np.ndarray  # int32[N]
    input_offsets: np.ndarray  # int64[S + 1]
    turn_start: np.ndarray  # int32[U], within the sample's input ids
    turn_end: np.ndarray  # int32[U]
    turn_ordinal: np.ndarray  # int32[U]
    turn_bytes: np.ndarray  # int32[U]
    turn_offsets: np.ndarray  # int64[S + 1]
    row_offsets: np.ndarray  # int64[S + 1]
    topk_ids: np.ndarray  # int32[R, K]
    scores: np.ndarray  # float16[R, K], logits or log-probabilities: meta["scores"]
    tail: np.ndarray  # float32[R], probability outside the kept ids
    ce: np.ndarray  # float32[R], nats, of the gold next token
    end_byte: np.ndarray  # int32[R], bytes of the turn's answer consumed after the predicted token
    meta: Mapping[str, str]

    @property
    def samples(self) -> int:
        return len(self.ids)

    def sample_ids(self, s: int) -> np.ndarray:
        """int32[n]: the input ids of sample `s` of this block."""
        return self.input_ids[self.input_offsets[s] : self.input_offsets[s + 1]]

    def positions(self) -> np.ndarray:
        """int64[R]: input position of every row within its sample (row r predicts input_ids[r + 1])."""
        lengths_U = (self.turn_end - self.turn_start).astype(np.int64)
        first_U = np.cumsum(lengths_U) - lengths_U
        within_R = np.arange(int(lengths_U.sum()), dtype=np.int64) - np.repeat(first_U, lengths_U)
        return np.repeat(self.turn_start.astype(np.int64) - 1, lengths_U) + within_R


@dataclass(frozen=True)
class Aligned:
    """A block of one source's distributions over the pivot's vocabulary, a row per row of the pivot."""

    ids: list[str]
    index: np.ndarray  # int64[S]
    row_offsets: np.ndarray  # int64[S + 1], equal to the pivot's
    topk_ids: np.ndarray  # int32[R, K], pivot ids, -1 in an empty slot
    scores: np.ndarray  # float16[R, K], -inf in an empty slot
    tail: np.ndarray  # float32[R]
    unmapped: np.ndarray  # float32[R], probability of kept ids that have no pivot token
    kind: np.ndarray  # uint8[R]: EMPTY, EXACT, MAPPED, ONE_HOT
    ce_pivot: np.ndarray  # float32[S], what MinCE compares; NaN where undefined
    ce_source: np.ndarray  # float32[S]
    meta: Mapping[str, str]

    @property
    def samples(self) -> int:
        return len(self.ids)


# offsets field -> the flat arrays that it cuts into samples
_ROWS_LISTS = {
    "input_offsets": {"input_ids": np.int32},
    "turn_offsets": dict.fromkeys(("turn_start", "turn_end", "turn_ordinal", "turn_bytes"), np.int32),
    "row_offsets": {"topk_ids": np.int32, "scores": np.float16, "tail": np.float32, "ce": np.float32,
                    "end_byte": np.int32},
}  # fmt: skip
_ALIGNED_LISTS = {
    "row_offsets": {"topk_ids": np.int32, "scores": np.float16, "tail": np.float32, "unmapped": np.float32,
                    "kind": np.uint8},
}  # fmt: skip
_SCALARS = {
    Rows: {"index": np.int64},
    Aligned: {"index": np.int64, "ce_pivot": np.float32, "ce_source": np.float32},
}
_LISTS = {Rows: _ROWS_LISTS, Aligned: _ALIGNED_LISTS}
_WIDE = {"topk_ids", "scores"}


def write_rows(path: Path, rows: Rows) -> None:
    """Write one block; `rows.meta` (strings: scores, k, vocab, profile) goes into the schema's metadata."""
    _write(path, rows)


def write_aligned(path: Path, aligned: Aligned) -> None:
    """Write one block of aligned rows."""
    _write(path, aligned)


def read_rows(path: Path) -> Rows:
    """Read a block written by `write_rows`, memory mapped. Raises ValueError on another format or version."""
    return _read(path, Rows)


def read_aligned(path: Path) -> Aligned:
    """Read a block written by `write_aligned`, memory mapped."""
    return _read(path, Aligned)


class RowsWriter:
    """Collects samples one by one and writes the block on `close()`; nothing is left behind on an error."""

    def __init__(self, path: Path, *, k: int, meta: Mapping[str, Any]) -> None:
        self._path, self._k = path, k
        self._meta = {key: str(value) for key, value in {**meta, "k": k}.items()}
        self._ids: list[str] = []
        self._parts: dict[str, list[np.ndarray]] = {n: [] for lists in _ROWS_LISTS.values() for n in lists}
        self._index: list[int] = []
        self._counts: dict[str, list[int]] = {name: [] for name in _ROWS_LISTS}

    def append(
        self,
        id: str,
        index: int,
        input_ids: np.ndarray,
        turns: Sequence[Turn],
        *,
        topk_ids: np.ndarray,
        scores: np.ndarray,
        tail: np.ndarray,
        ce: np.ndarray,
        end_byte: np.ndarray,
    ) -> None:
        """Add one sample: input_ids [n]; per row topk_ids [r, K], scores [r, K], tail, ce, end_byte [r].

        `r` must equal the turns' supervised tokens; rows stand in the order of the turns.
        """
        rows = sum(turn.end - turn.start for turn in turns)
        assert topk_ids.shape == scores.shape == (rows, self._k), (
            topk_ids.shape,
            scores.shape,
            rows,
            self._k,
        )
        assert len(tail) == len(ce) == len(end_byte) == rows
        spans = np.array([(t.start, t.end, t.ordinal, t.bytes) for t in turns], dtype=np.int32).reshape(-1, 4)
        values = {"input_ids": input_ids, "topk_ids": topk_ids, "scores": scores}
        values |= {"tail": tail, "ce": ce, "end_byte": end_byte}
        values |= dict(zip(_ROWS_LISTS["turn_offsets"], spans.T, strict=True))
        for offsets, lists in _ROWS_LISTS.items():
            for name, dtype in lists.items():
                self._parts[name].append(np.asarray(values[name]).astype(dtype))
            self._counts[offsets].append(len(values[next(iter(lists))]))
        self._ids.append(id)
        self._index.append(index)

    def close(self) -> Rows:
        """Write the file and return the block."""
        rows = Rows(
            ids=self._ids,
            index=np.array(self._index, dtype=np.int64),
            meta=self._meta,
            **{
                name: np.concatenate([[0], np.cumsum(c)]).astype(np.int64) for name, c in self._counts.items()
            },
            **{
                name: self._join(name, dtype)
                for lists in _ROWS_LISTS.values()
                for name, dtype in lists.items()
            },
        )
        write_rows(self._path, rows)
        return rows

    def _join(self, name: str, dtype: Any) -> np.ndarray:
        empty = np.zeros((0, self._k) if name in _WIDE else 0, dtype=dtype)
        return np.concatenate([empty, *self._parts[name]])


def _write(path: Path, block: Any) -> None:
    kind = type(block)
    meta = {**block.meta, "format": kind.__name__, "version": str(VERSION), "k": str(block.topk_ids.shape[1])}
    schema = _schema(kind, block.topk_ids.shape[1]).with_metadata(meta)
    partial = path.with_name(path.name + ".partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for first, last in _batches(block.row_offsets):
            writer.write_batch(_batch(block, schema, first, last))
    partial.replace(path)


def _batches(row_offsets: np.ndarray) -> list[tuple[int, int]]:
    """Sample ranges of about BATCH_ROWS rows each."""
    cuts, samples = [0], len(row_offsets) - 1
    while cuts[-1] < samples:
        limit = row_offsets[cuts[-1]] + BATCH_ROWS
        cuts.append(max(cuts[-1] + 1, int(np.searchsorted(row_offsets, limit, side="right")) - 1))
    return list(pairwise(cuts))


def _schema(kind: type, k: int) -> pa.Schema:
    columns: list[tuple[str, pa.DataType]] = [("id", pa.string())]
    columns += [(name, pa.from_numpy_dtype(dtype)) for name, dtype in _SCALARS[kind].items()]
    for lists in _LISTS[kind].values():
        for name, dtype in lists.items():
            value = pa.from_numpy_dtype(dtype)
            columns.append((name, pa.list_(pa.list_(value, k) if name in _WIDE else value)))
    return pa.schema(columns)


def _batch(block: Any, schema: pa.Schema, first: int, last: int) -> pa.RecordBatch:
    kind = type(block)
    columns = [pa.array(block.ids[first:last], pa.string())]
    columns += [
        pa.array(getattr(block, name)[first:last].astype(dtype)) for name, dtype in _SCALARS[kind].items()
    ]
    for offsets_name, lists in _LISTS[kind].items():
        offsets = getattr(block, offsets_name)[first : last + 1]
        relative = pa.array((offsets - offsets[0]).astype(np.int32))
        for name, dtype in lists.items():
            flat = np.ascontiguousarray(getattr(block, name)[offsets[0] : offsets[-1]], dtype=dtype)
            values = pa.array(flat.reshape(-1))
            if name in _WIDE:
                values = pa.FixedSizeListArray.from_arrays(values, flat.shape[1])
            columns.append(pa.ListArray.from_arrays(relative, values))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _read(path: Path, kind: type) -> Any:
    try:
        reader = pa.ipc.open_stream(pa.memory_map(str(path)))
        meta = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
        _check(path, meta, kind)
        batches = list(reader)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path.name}: not a readable block ({error}); the file is cut or not Arrow IPC"
        ) from error
    empty = _schema(kind, int(meta["k"])).empty_table().to_batches() or [_empty(kind, int(meta["k"]))]
    parts = [_arrays(batch, kind) for batch in (batches or empty)]
    arrays = {name: parts[0][name] if len(parts) == 1 else np.concatenate([p[name] for p in parts])
              for name in parts[0] if not name.endswith("_offsets")}  # fmt: skip
    for name in _LISTS[kind]:
        counts = np.concatenate([np.diff(part[name]) for part in parts])
        arrays[name] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    ids = [value for batch in batches for value in batch.column("id").to_pylist()]
    names = {field.name for field in fields(kind)}
    return kind(ids=ids, meta=meta, **{name: array for name, array in arrays.items() if name in names})


def _check(path: Path, meta: Mapping[str, str], kind: type) -> None:
    found = f"{meta.get('format')} version {meta.get('version')}"
    if found != f"{kind.__name__} version {VERSION}":
        raise ValueError(
            f"{path.name}: a block of {found}, expected {kind.__name__} version {VERSION}; make it anew"
        )


def _empty(kind: type, k: int) -> pa.RecordBatch:
    schema = _schema(kind, k)
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _arrays(batch: pa.RecordBatch, kind: type) -> dict[str, np.ndarray]:
    arrays = {name: batch.column(name).to_numpy() for name in _SCALARS[kind]}
    for offsets_name, lists in _LISTS[kind].items():
        for name in lists:
            column = batch.column(name)
            values = column.values
            if name in _WIDE:
                arrays[name] = values.values.to_numpy().reshape(-1, values.type.list_size)
            else:
                arrays[name] = values.to_numpy()
        arrays[offsets_name] = column.offsets.to_numpy().astype(np.int64)
    return arrays
