"""Dynamic time warping of two token sequences on the edit distance of their strings.

Profile Published aligns so (FuseChat, arXiv 2408.07990, section 3.2; the matrix has a row per source token
and a column per pivot token). Called by align. It knows strings and integers; no tokenizer, no file.

The recurrence D[i, j] = c[i, j] + min(D[i-1, j-1], D[i-1, j], D[i, j-1]) is solved a row at a time: with
P = cumsum(c[i]) and a[j] = min(D[i-1, j-1], D[i-1, j]), D[i, j] = P[j] + min over j' <= j of a[j'] - P[j'-1],
a running minimum. Costs are integers, so this equals the cell by cell recurrence exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

STRIPE_ROWS = 2048
"""Rows of the matrix held at once; longer sources keep one row a stripe and compute the stripe again."""


def edit_distances(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """uint16[len(left), len(right)]: Levenshtein distance of every pair, in characters."""
    if not left or not right:
        return np.zeros((len(left), len(right)), dtype=np.uint16)
    return cdist(left, right, scorer=Levenshtein.distance, dtype=np.uint16, workers=1)


def align_strings(source: Sequence[str], pivot: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which source tokens each pivot token is matched with: int32[N] first and int32[N] last, both included.

    `source` (M strings) and `pivot` (N strings) are the decoded tokens of one conversation, not empty. A
    warping path is monotonous, so the matches of a pivot token are a range.
    """
    source_texts, source_at = _numbered(source)
    pivot_texts, pivot_at = _numbered(pivot)
    return warp(edit_distances(source_texts, pivot_texts), source_at, pivot_at)


def warp(costs_UV: np.ndarray, source_M: np.ndarray, pivot_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges as `align_strings`, from the costs of U distinct source and V distinct pivot tokens.

    `source_M` and `pivot_N` say which distinct token stands at each position. Ties of the back-trace go to
    the diagonal, then to pivot - 1, then to source - 1. Memory: STRIPE_ROWS + U rows of N int32.
    """
    summed_UN = np.cumsum(costs_UV[:, pivot_N], axis=1, dtype=np.int32)
    tops = _stripe_tops(summed_UN, source_M)
    first_N = np.zeros(len(pivot_N), dtype=np.int32)
    last_N = np.zeros(len(pivot_N), dtype=np.int32)
    last_N[-1] = len(source_M) - 1
    j = len(pivot_N) - 1
    for stripe in reversed(range(len(tops))):
        begin = stripe * STRIPE_ROWS
        rows = source_M[begin : begin + STRIPE_ROWS]
        above = tops[stripe]
        matrix = _fill(summed_UN, rows, above)
        j = _trace(matrix, above, begin, j, first_N, last_N)
    return first_N, last_N


def _numbered(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Distinct strings in order of appearance, and which of them stands at each position."""
    number: dict[str, int] = {}
    at = np.fromiter((number.setdefault(text, len(number)) for text in texts), np.int64, len(texts))
    return list(number), at


def _stripe_tops(summed_UN: np.ndarray, source_M: np.ndarray) -> list[np.ndarray | None]:
    """For every stripe the matrix row above it (None above the first)."""
    tops: list[np.ndarray | None] = [None]
    for begin in range(0, len(source_M) - STRIPE_ROWS, STRIPE_ROWS):
        matrix = _fill(summed_UN, source_M[begin : begin + STRIPE_ROWS], tops[-1])
        tops.append(matrix[-1].copy())
    return tops


def _fill(summed_UN: np.ndarray, source_M: np.ndarray, above_N: np.ndarray | None) -> np.ndarray:
    """int32[M, N]: the accumulated distances of these source positions."""
    matrix = np.empty((len(source_M), summed_UN.shape[1]), dtype=np.int32)
    best = np.empty(summed_UN.shape[1], dtype=np.int32)
    previous = above_N
    for row, u in zip(matrix, source_M.tolist(), strict=True):
        sums = summed_UN[u]
        if previous is None:
            row[:] = sums
        else:
            best[0] = previous[0]
            np.minimum(previous[1:], previous[:-1], out=best[1:])
            np.subtract(best[1:], sums[:-1], out=best[1:])
            np.minimum.accumulate(best, out=best)
            np.add(best, sums, out=row)
        previous = row
    return matrix


def _trace(
    matrix: np.ndarray,
    above_N: np.ndarray | None,
    begin: int,
    j: int,
    first_N: np.ndarray,
    last_N: np.ndarray,
) -> int:
    """Walk back through one stripe from its last row at column `j`; returns the column it is left at.

    `first_N`/`last_N` are filled on the way: a column's last row is where it is entered.
    """
    cells = memoryview(matrix if above_N is None else np.concatenate([above_N[None], matrix]))
    offset = begin - (above_N is not None)
    i, stop = len(cells) - 1, 0 if above_N is None else 1
    while i >= stop and (i > 0 or j > 0):
        diagonal = cells[i - 1, j - 1] if i and j else None
        if j and (not i or (cells[i, j - 1] < diagonal and cells[i, j - 1] <= cells[i - 1, j])):
            first_N[j], j = i + offset, j - 1
            last_N[j] = i + offset
        elif j and diagonal <= cells[i - 1, j]:
            first_N[j], j, i = i + offset, j - 1, i - 1
            last_N[j] = i + offset
        else:
            i -= 1
    return j
