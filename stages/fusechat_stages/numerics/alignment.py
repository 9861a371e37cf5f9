"""Which rows of two tokenizations of one conversation stand at the same place: profile Corrected, O(n + m).

A position is (turn, bytes of the answer consumed before the row), so that both rows condition on the same
text. Called by align. Knows arrays only: no string, no tokenizer, no file. Shapes: R rows, U turns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PLAIN, SPACED, STRIPPED = 0, 1, 2
"""How source bytes become pivot bytes: as they are; with a space in front (only the pivot's first token
carries its template's separator space); without a leading space (only the source's does)."""

MAX_RANK = 255
MAX_BYTES = 1 << 31
MAX_TURNS = 1 << 23


@dataclass(frozen=True)
class Side:
    """One model's rows in a block, in order. Turn numbers mean the same on both sides and rise."""

    turn_R: np.ndarray  # int64, number of the row's turn
    end_R: np.ndarray  # int64, bytes of the answer consumed after the predicted token
    gold_bytes_R: np.ndarray  # int64, length of the predicted token's bytes
    gold_spaced_R: np.ndarray  # bool, they begin with a space
    answer_R: np.ndarray  # int64, bytes of the row's whole answer (end-of-turn ends at one more)


def starts(side: Side) -> np.ndarray:
    """int64[R]: bytes of the answer consumed before the predicted token; 0 in a turn's first row."""
    start_R = np.zeros(len(side.end_R), dtype=np.int64)
    if len(start_R):
        same_R = side.turn_R[1:] == side.turn_R[:-1]
        start_R[1:] = np.where(same_R, side.end_R[:-1], 0)
    return start_R


def match_rows(pivot: Side, source: Side, same_bytes: np.ndarray) -> np.ndarray:
    """int64[R of the pivot]: the source row at the same position, -1 where there is none.

    Only within the first `same_bytes` (per turn) bytes, in which the two answers are equal. Rows that share
    a position (tokens without bytes, a separator of its own) are matched from the last one.
    """
    keys = []
    for side in (pivot, source):
        start_R = starts(side)
        rank_R = _rank_from_last(side.turn_R, start_R)
        keys.append(_keys(side.turn_R, start_R, rank_R))
    (pivot_keys, pivot_at), (source_keys, source_at) = keys
    _, at_pivot, at_source = np.intersect1d(pivot_keys, source_keys, assume_unique=True, return_indices=True)
    match_R = np.full(len(pivot.turn_R), -1, dtype=np.int64)
    match_R[pivot_at[at_pivot]] = source_at[at_source]
    match_R[starts(pivot) > same_bytes[pivot.turn_R]] = -1
    return match_R


def separator_merged(side: Side) -> np.ndarray:
    """bool[R]: rows that predict an answer's first token with the template's separator space in it.

    Told by the gold token: it has one byte more than the answer advances. Where the first token is the
    end-of-turn, the block's other turns tell.
    """
    start_R = starts(side)
    ends_R = side.end_R > side.answer_R
    merged_R = (start_R == 0) & ~ends_R & side.gold_spaced_R & (side.end_R > 0)
    merged_R &= side.gold_bytes_R == side.end_R + 1
    return merged_R | ((start_R == 0) & ends_R & merged_R.any())


def variants(pivot: Side, source: Side, match_R: np.ndarray) -> np.ndarray:
    """uint8[R of the pivot]: PLAIN, SPACED or STRIPPED: how each row's source tokens are to be read."""
    pivot_merged_R = separator_merged(pivot)
    source_merged_R = pivot_merged_R
    if len(source.turn_R):
        source_merged_R = np.where(match_R >= 0, separator_merged(source)[match_R], pivot_merged_R)
    plain_R = pivot_merged_R == source_merged_R
    return np.where(plain_R, PLAIN, np.where(pivot_merged_R, SPACED, STRIPPED)).astype(np.uint8)


def common_end(pivot: Side, source: Side, same_bytes: np.ndarray) -> np.ndarray:
    """int64[turns]: bytes up to which both sides scored the same text of each turn; 0 where they did not.

    The largest position within `same_bytes` at which both have a token boundary: the end-of-turn (answer
    + 1) unless a side is truncated, then the last boundary in common.
    """
    ends = []
    for side in (pivot, source):
        keys = side.turn_R * MAX_BYTES + side.end_R
        ends.append(keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys)
    shared = np.intersect1d(*ends, assume_unique=True)
    turn, end = shared // MAX_BYTES, shared % MAX_BYTES
    inside = end <= same_bytes[turn]
    limit = np.zeros(len(same_bytes), dtype=np.int64)
    np.maximum.at(limit, turn[inside], end[inside])
    return limit


def summed_ce(
    side: Side, ce_R: np.ndarray, limit: np.ndarray, sample: np.ndarray, samples: int
) -> np.ndarray:
    """float64[samples]: nats over the rows that end within `limit` (per turn), summed over a sample's turns.

    `sample` says which sample each turn number belongs to.
    """
    inside_R = side.end_R <= limit[side.turn_R]
    inside_R &= limit[side.turn_R] > 0
    return np.bincount(sample[side.turn_R[inside_R]], weights=ce_R[inside_R], minlength=samples)


def _rank_from_last(turn_R: np.ndarray, start_R: np.ndarray) -> np.ndarray:
    """int64[R]: how many rows of the same position follow."""
    if not len(turn_R):
        return np.zeros(0, dtype=np.int64)
    change = np.flatnonzero((turn_R[1:] != turn_R[:-1]) | (start_R[1:] != start_R[:-1])) + 1
    lasts = np.append(change, len(turn_R)) - 1
    counts = np.diff(np.concatenate([[0], change, [len(turn_R)]]))
    return np.repeat(lasts, counts) - np.arange(len(turn_R))


def _keys(turn_R: np.ndarray, start_R: np.ndarray, rank_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unique int64 keys of the rows that can be matched, and where those rows stand."""
    at = np.flatnonzero(rank_R <= MAX_RANK)
    if len(turn_R) and (turn_R.max() >= MAX_TURNS or start_R.max() >= MAX_BYTES):
        raise ValueError(
            f"a block of {int(turn_R.max()) + 1} turns with answers of up to {int(start_R.max())} bytes; "
            f"at most {MAX_TURNS} turns of {MAX_BYTES} bytes can be aligned"
        )
    return (turn_R[at] * MAX_BYTES + start_R[at]) * (MAX_RANK + 1) + rank_R[at], at
