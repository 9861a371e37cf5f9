"""Profile Corrected of align: one block of the pivot and one of the source -> aligned rows, by bytes.

Called by align. Knows the block format and the numerics; no store, no tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusechat_stages.align_join import join_samples, row_samples, row_turns
from fusechat_stages.numerics import alignment, rows
from fusechat_stages.numerics.alignment import PLAIN, SPACED, STRIPPED, Side
from fusechat_stages.numerics.bytemap import ByteMap, Vocabulary
from fusechat_stages.shards import Aligned, Rows

CHUNK_ROWS = 1 << 16
"""Rows moved at once: bounds the temporary arrays, not the result."""


@dataclass(frozen=True)
class ByteTable:
    """Per id of a vocabulary: its bytes, their length, and whether they begin with a space."""

    bytes_V: Sequence[bytes]
    length_V: np.ndarray
    spaced_V: np.ndarray


def byte_table(vocabulary: Vocabulary) -> ByteTable:
    """The two arrays of a vocabulary."""
    lengths = np.fromiter(map(len, vocabulary.bytes), np.int64, vocabulary.size)
    spaced = np.fromiter((b.startswith(b" ") for b in vocabulary.bytes), bool, vocabulary.size)
    return ByteTable(vocabulary.bytes, lengths, spaced)


def align_block(
    pivot: Rows, source: Rows, tokens: ByteMap, pivot_table: ByteTable, source_table: ByteTable
) -> tuple[Aligned, np.ndarray]:
    """One block -> (aligned rows, probability of the kept ids per row). ValueError for foreign blocks."""
    _check(source)
    slots = join_samples(pivot, source)
    keys = [_turn_keys(block, slot) for block, slot in zip((pivot, source), slots, strict=True)]
    shared = np.unique(np.concatenate(keys))
    left = _View(pivot, pivot_table, np.searchsorted(shared, keys[0]), slots[0])
    right = _View(source, source_table, np.searchsorted(shared, keys[1]), slots[1])
    same_bytes = _same_bytes(left, right, len(shared))
    match_R = alignment.match_rows(left.side, right.side, same_bytes)
    moved = _move(source, tokens, match_R, alignment.variants(left.side, right.side, match_R))
    limit = alignment.common_end(left.side, right.side, same_bytes)
    ce_pivot, ce_source = _metric_ce(left, right, limit, shared >> 32)
    aligned = Aligned(
        ids=pivot.ids,
        index=pivot.index,
        row_offsets=pivot.row_offsets,
        topk_ids=moved.ids_RK,
        scores=moved.scores_RK,
        tail=moved.tail_R,
        unmapped=moved.unmapped_R,
        kind=moved.kind_R,
        ce_pivot=ce_pivot,
        ce_source=ce_source,
        meta={**pivot.meta, "scores": "logprobs", "k": str(source.topk_ids.shape[1])},
    )
    return aligned, moved.mass_R


class _View:
    """A block under its vocabulary, with turn numbers (`turn_U`) and sample slots that both sides share."""

    def __init__(self, block: Rows, table: ByteTable, turn_U: np.ndarray, slots: np.ndarray) -> None:
        self.block, self.table, self.turn_U, self.slots = block, table, turn_U, slots
        self.side = _side(block, table, turn_U)
        self._rows_U = np.cumsum(block.turn_end - block.turn_start, dtype=np.int64)

    def text(self, u: int) -> bytes:
        """The bytes of the block's u-th turn that were scored, without separator and end-of-turn."""
        block = self.block
        s = int(np.searchsorted(block.turn_offsets, u, side="right")) - 1
        ids = block.sample_ids(s)[block.turn_start[u] : block.turn_end[u]]
        end = min(int(block.end_byte[self._rows_U[u] - 1]), int(block.turn_bytes[u]))
        read = b"".join(self.table.bytes_V[i] for i in ids.tolist())
        return read[len(read) - end :]


def _check(source: Rows) -> None:
    if source.meta.get("scores") != "logprobs":
        raise ValueError(
            f"the source's block holds {source.meta.get('scores')!r}, profile Corrected aligns logprobs; "
            "extract the source with profile Corrected"
        )


def _turn_keys(block: Rows, slots: np.ndarray) -> np.ndarray:
    """int64[U]: sample slot and turn ordinal in one number."""
    sample_U = np.repeat(np.arange(block.samples), np.diff(block.turn_offsets))
    return (slots[sample_U] << 32) | block.turn_ordinal


def _side(block: Rows, table: ByteTable, turn_U: np.ndarray) -> Side:
    at_R = row_turns(block)
    gold_R = block.input_ids[block.input_offsets[row_samples(block)] + block.positions() + 1]
    if len(gold_R) and int(gold_R.max()) >= len(table.length_V):
        raise ValueError(
            f"a block holds token id {int(gold_R.max())}, the tokenizer has {len(table.length_V)}; "
            "the block was extracted with another tokenizer, make it anew"
        )
    return Side(
        turn_R=turn_U[at_R],
        end_R=block.end_byte.astype(np.int64),
        gold_bytes_R=table.length_V[gold_R],
        gold_spaced_R=table.spaced_V[gold_R],
        answer_R=block.turn_bytes.astype(np.int64)[at_R],
    )


def _same_bytes(left: _View, right: _View, turns: int) -> np.ndarray:
    """int64[turns]: bytes in which both sides' answers are equal; the largest number where all are.

    Templates may strip an answer (Llama 3's, Gemma's): only turns whose lengths differ are compared.
    """
    same = np.full(turns, np.iinfo(np.int64).max)
    _, u_left, u_right = np.intersect1d(left.turn_U, right.turn_U, assume_unique=True, return_indices=True)
    differ = left.block.turn_bytes[u_left] != right.block.turn_bytes[u_right]
    for u, v in zip(u_left[differ].tolist(), u_right[differ].tolist(), strict=True):
        same[left.turn_U[u]] = _common_prefix(left.text(u), right.text(v))
    return same


def _common_prefix(one: bytes, other: bytes) -> int:
    size = min(len(one), len(other))
    differ = np.frombuffer(one, np.uint8, size) != np.frombuffer(other, np.uint8, size)
    return int(differ.argmax()) if differ.any() else size


def _move(source: Rows, tokens: ByteMap, match_R: np.ndarray, variant_R: np.ndarray) -> rows.Moved:
    moved = rows.empty_rows(len(match_R), source.topk_ids.shape[1])
    for variant in (PLAIN, SPACED, STRIPPED):
        at = np.flatnonzero((match_R >= 0) & (variant_R == variant))
        for begin in range(0, len(at), CHUNK_ROWS):
            some = at[begin : begin + CHUNK_ROWS]
            r = match_R[some]
            target_RK, exact_RK = tokens.lookup(source.topk_ids[r], variant)
            rows.put(moved, some, rows.move_summed(target_RK, exact_RK, source.scores[r], source.tail[r]))
    return moved


def _metric_ce(
    left: _View, right: _View, limit: np.ndarray, slot_of_turn: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """float32[S], float32[S]: nats per answer byte over the byte range that both scored; NaN where none.

    An answer without bytes counts as one, so that its end-of-turn can still be compared.
    """
    samples = int(max(left.slots.max(initial=-1), right.slots.max(initial=-1))) + 1
    answer = np.zeros(len(limit), dtype=np.int64)
    answer[left.turn_U] = left.block.turn_bytes
    size = np.bincount(slot_of_turn, weights=np.minimum(limit, answer), minlength=samples)
    scored = np.bincount(slot_of_turn, weights=limit > 0, minlength=samples) > 0
    divisor = np.where(scored, np.maximum(size, 1), np.nan)
    ce_pivot, ce_source = (
        (alignment.summed_ce(view.side, view.block.ce, limit, slot_of_turn, samples) / divisor)[left.slots]
        for view in (left, right)
    )
    return ce_pivot.astype(np.float32), ce_source.astype(np.float32)
