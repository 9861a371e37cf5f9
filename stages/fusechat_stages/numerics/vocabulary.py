"""Vocabulary maps of profile Published: which pivot token a source token stands for.

Called by align (ops count and map). Statistics are sparse: a pair of tokens that met is one int64 key
`source * pivots + pivot` and a count, sorted by key; nothing here is ever source x pivot in size. Knows
strings and integers; no tokenizer, no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist, cpdist

CONTAINED_WEIGHT = 0.1
NEAREST_CHUNK = 512
"""Source strings compared at once: NEAREST_CHUNK x pivots uint16 is what `nearest` holds."""


@dataclass(frozen=True)
class PairCounts:
    """How often pivot and source tokens were matched: keys_P int64 sorted and unique, counts_P int64."""

    keys_P: np.ndarray
    counts_P: np.ndarray
    pivots: int

    @property
    def source_P(self) -> np.ndarray:
        return self.keys_P // self.pivots

    @property
    def pivot_P(self) -> np.ndarray:
        return self.keys_P % self.pivots


def count_pairs(
    pivot_N: np.ndarray, source_M: np.ndarray, first_N: np.ndarray, last_N: np.ndarray, pivots: int
) -> PairCounts:
    """Counts of one conversation from its warping ranges (`dtw.align_strings`), special tokens included.

    A source token that a pivot position is matched with more than once counts once there, as in the release
    (it adds to a matrix row by fancy indexing).
    """
    lengths_N = (last_N - first_N + 1).astype(np.int64)
    at_E = np.repeat(np.arange(len(pivot_N), dtype=np.int64), lengths_N)
    within_E = np.arange(len(at_E)) - np.repeat(np.cumsum(lengths_N) - lengths_N, lengths_N)
    source_E = source_M[np.repeat(first_N, lengths_N) + within_E].astype(np.int64)
    width = int(source_M.max()) + 1
    met_E = np.unique(at_E * width + source_E)
    keys_E = (met_E % width) * pivots + pivot_N[met_E // width]
    return PairCounts(*np.unique(keys_E, return_counts=True), pivots)


def merge_counts(parts: Sequence[PairCounts]) -> PairCounts:
    """The sum of several counts over the same vocabularies; order and split do not matter."""
    pivots = {part.pivots for part in parts}
    if len(pivots) != 1:
        raise ValueError(f"counts over pivot vocabularies of {sorted(pivots)} tokens; expected a single one")
    keys_E = np.concatenate([part.keys_P for part in parts])
    counts_E = np.concatenate([part.counts_P for part in parts])
    order_E = np.argsort(keys_E, kind="stable")
    keys_E, counts_E = keys_E[order_E], counts_E[order_E]
    if not len(keys_E):
        return parts[0]
    starts = np.flatnonzero(np.concatenate([[True], keys_E[1:] != keys_E[:-1]]))
    return PairCounts(keys_E[starts], np.add.reduceat(counts_E, starts), pivots.pop())


def merge_ranges(parts: Sequence[PairCounts], sources: int, pairs: int = 1 << 18) -> Iterator[PairCounts]:
    """The sum in slices of source ids, each of about `pairs` pairs before adding: memory stays bounded.

    `parts` may be memory mapped. A source token's pairs are never cut apart.
    """
    total = sum(len(part.keys_P) for part in parts)
    slices = max(1, -(-total // pairs))
    held = np.zeros(sources, dtype=np.int64)
    for part in parts:
        for begin in range(0, len(part.keys_P), pairs):
            chunk = part.keys_P[begin : begin + pairs] // part.pivots
            held += np.bincount(chunk, minlength=sources)[:sources]
    aims = np.arange(1, slices) * (total / slices)
    edges = [0, *np.searchsorted(np.cumsum(held), aims, side="right").tolist(), sources]
    for low, high in pairwise(edges):
        if low < high:
            yield merge_counts([_slice(part, low, high) for part in parts])


def surface_map(
    counts: Sequence[PairCounts],
    source_pieces: Sequence[str | None],
    pivot_pieces: Sequence[str | None],
    *,
    source_marker: str,
    pivot_marker: str,
    default: int,
    forced: Sequence[tuple[int | None, int | None]] = (),
) -> np.ndarray:
    """int32[sources]: the map MS (align type "default"), from pieces as `convert_ids_to_tokens` gives them.

    A source token goes to the pivot token that it met and that has the least editdistance * sigmoid(count),
    the distance taken without space markers (with them if one side is nothing else) and times 0.1 if one
    string contains the other; the lowest pivot id wins ties. What met nothing goes to `default` (the pivot's
    unk, or its eos). `forced` are (source id, pivot id) of bos and eos, kept only where both sides have one.
    """
    target = np.full(len(source_pieces), default, dtype=np.int32)
    for part in merge_ranges(counts, len(source_pieces)):
        _least(part, source_pieces, pivot_pieces, (source_marker, pivot_marker), target)
    for source, pivot in forced:
        if source is not None and pivot is not None:
            target[source] = pivot
    return target


def equal_map(
    source_pieces: Sequence[str | None],
    pivot_pieces: Sequence[str | None],
    *,
    source_marker: str,
    pivot_marker: str,
) -> np.ndarray:
    """int32[sources]: the pivot id of the equal piece, the space marker mapped; -1 where there is none."""
    number = {piece: i for i, piece in reversed(list(enumerate(pivot_pieces))) if piece is not None}
    mapped = (None if p is None else p.replace(source_marker, pivot_marker) for p in source_pieces)
    return np.fromiter((number.get(p, -1) for p in mapped), np.int32, len(source_pieces))


def nearest_map(
    source_pieces: Sequence[str | None],
    pivot_pieces: Sequence[str | None],
    *,
    source_marker: str,
    pivot_marker: str,
    default: int,
) -> np.ndarray:
    """int32[sources]: the map MinED (align type "soft"): the equal piece, else that of least edit distance.

    Pieces keep their space marker (the source's replaced by the pivot's); the lowest pivot id wins ties. An
    id that has no piece goes to `default`.
    """
    markers = {"source_marker": source_marker, "pivot_marker": pivot_marker}
    target = equal_map(source_pieces, pivot_pieces, **markers)
    target[[i for i, piece in enumerate(source_pieces) if piece is None]] = default
    open_ids = np.flatnonzero(target < 0)
    pieces = [str(source_pieces[i]).replace(source_marker, pivot_marker) for i in open_ids]
    choices = [(i, piece) for i, piece in enumerate(pivot_pieces) if piece is not None]
    pivot_ids = np.array([i for i, _ in choices], dtype=np.int32)
    target[open_ids] = pivot_ids[nearest(pieces, [piece for _, piece in choices])]
    return target


def nearest(strings: Sequence[str], choices: Sequence[str]) -> np.ndarray:
    """int64[len(strings)]: index of the choice of least edit distance, the first of equals."""
    found = np.zeros(len(strings), dtype=np.int64)
    for begin in range(0, len(strings), NEAREST_CHUNK):
        chunk = strings[begin : begin + NEAREST_CHUNK]
        distances = cdist(chunk, choices, scorer=Levenshtein.distance, dtype=np.uint16, workers=1)
        found[begin : begin + len(chunk)] = distances.argmin(axis=1)
    return found


def space_marker(pieces: Sequence[str | None]) -> str:
    """The character that stands for a space in these pieces: "▁" or "Ġ", whichever begins more of them."""
    return max("▁Ġ", key=lambda mark: sum(piece is not None and piece.startswith(mark) for piece in pieces))


def _slice(part: PairCounts, low: int, high: int) -> PairCounts:
    begin, end = np.searchsorted(part.keys_P, [low * part.pivots, high * part.pivots])
    return PairCounts(np.asarray(part.keys_P[begin:end]), np.asarray(part.counts_P[begin:end]), part.pivots)


def _least(
    counts: PairCounts,
    source_pieces: Sequence[str | None],
    pivot_pieces: Sequence[str | None],
    markers: tuple[str, str],
    target: np.ndarray,
) -> None:
    """Put the best pivot token of every source token in `counts` into `target`."""
    named = [
        (source_pieces[s], pivot_pieces[p])
        for s, p in zip(counts.source_P.tolist(), counts.pivot_P.tolist(), strict=True)
    ]
    known_P = np.array([s is not None and p is not None for s, p in named], dtype=bool)
    if not known_P.any():
        return
    pairs = [_bare(str(s), str(p), markers) for (s, p), known in zip(named, known_P, strict=True) if known]
    weights_P = np.array([CONTAINED_WEIGHT if a in b or b in a else 1.0 for a, b in pairs])
    distances_P = cpdist(
        [a for a, _ in pairs], [b for _, b in pairs], scorer=Levenshtein.distance, dtype=np.float64
    )
    counted_P = counts.counts_P[known_P].astype(np.float64)
    scores_P = distances_P * weights_P * (1.0 / (1.0 + np.exp(-counted_P)))
    source_P, pivot_P = counts.source_P[known_P], counts.pivot_P[known_P]
    order_P = np.lexsort((pivot_P, scores_P, source_P))
    first_P = order_P[np.concatenate([[True], np.diff(source_P[order_P]) != 0])]
    target[source_P[first_P]] = pivot_P[first_P]


def _bare(source: str, pivot: str, markers: tuple[str, str]) -> tuple[str, str]:
    """Both pieces without their space markers; with them where that would leave nothing of one."""
    source_bare, pivot_bare = source.replace(markers[0], ""), pivot.replace(markers[1], "")
    if source_bare and pivot_bare:
        return source_bare, pivot_bare
    return source.replace(*markers), pivot
