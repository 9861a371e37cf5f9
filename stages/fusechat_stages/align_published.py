"""Profile Published of align: counts of one block, and one block's aligned rows, as FuseChat's release does.

Called by align. Knows the block format and the numerics; no store. Decoded strings come as a mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusechat_stages.align_join import join_samples, partners, row_samples, row_turns
from fusechat_stages.numerics import dtw, rows, vocabulary
from fusechat_stages.numerics.matching import ONE_HOT, agreement, choose_positions
from fusechat_stages.numerics.vocabulary import PairCounts
from fusechat_stages.shards import Aligned, Rows


@dataclass(frozen=True)
class Strings:
    """decode([id]) of every id that a block holds, both sides."""

    pivot: Mapping[int, str]
    source: Mapping[int, str]


def warp_block(pivot: Rows, source: Rows, strings: Strings) -> np.ndarray:
    """int32[2, N]: for each input id of the pivot's block the first and last source position it matches.

    Positions count from the start of the sample; -1 for samples that the source does not have.
    """
    spans = np.full((2, len(pivot.input_ids)), -1, dtype=np.int32)
    for s, t in enumerate(partners(pivot, source).tolist()):
        left, right = pivot.sample_ids(s), source.sample_ids(t) if t >= 0 else np.zeros(0)
        if len(left) and len(right):
            place = slice(int(pivot.input_offsets[s]), int(pivot.input_offsets[s + 1]))
            spans[:, place] = dtw.align_strings(
                [strings.source[i] for i in right.tolist()], [strings.pivot[i] for i in left.tolist()]
            )
    return spans


def count_block(pivot: Rows, source: Rows, spans: np.ndarray, pivots: int) -> PairCounts:
    """Counts of one block from its ranges (`warp_block`): every sample and every position, prompts too."""
    parts = [PairCounts(np.zeros(0, np.int64), np.zeros(0, np.int64), pivots)]
    for s, t in enumerate(partners(pivot, source).tolist()):
        place = slice(int(pivot.input_offsets[s]), int(pivot.input_offsets[s + 1]))
        first_N, last_N = spans[:, place]
        if t >= 0 and len(first_N) and first_N[0] >= 0:
            pivot_N, source_M = pivot.sample_ids(s), source.sample_ids(t)
            parts.append(vocabulary.count_pairs(pivot_N, source_M, first_N, last_N, pivots))
    return vocabulary.merge_counts(parts)


def align_block(
    pivot: Rows,
    source: Rows,
    spans: np.ndarray,
    method: str,
    strings: Strings,
    equal: np.ndarray,
    mapped: np.ndarray,
) -> tuple[Aligned, np.ndarray]:
    """One block -> (aligned rows, probability of the kept ids per row).

    `equal` and `mapped` are int32[sources]: the pivot id of the equal piece (-1: none), and the vocabulary
    map. MS takes the equal piece's id before the map's, EM only the former, MinED only the latter.
    """
    _check(source)
    source_row_R = _source_rows(pivot, source, spans, method, strings, mapped)
    target = {"MS": np.where(equal >= 0, equal, mapped), "EM": equal, "MinED": mapped}[method]
    moved = rows.empty_rows(len(source_row_R), source.topk_ids.shape[1])
    at = np.flatnonzero(source_row_R >= 0)
    ids_RK = source.topk_ids[source_row_R[at]]
    inside_RK = ids_RK < len(target)
    safe_RK = np.where(inside_RK, ids_RK, 0)
    target_RK = np.where(inside_RK, target[safe_RK], -1)
    exact_RK = target_RK == np.where(inside_RK & (equal[safe_RK] >= 0), equal[safe_RK], -2)
    scores_RK, tail_R = source.scores[source_row_R[at]], source.tail[source_row_R[at]]
    rows.put(moved, at, rows.move_first(target_RK, exact_RK, scores_RK, tail_R))
    hot = np.flatnonzero(source_row_R == ONE_HOT)
    rows.put(moved, hot, rows.one_hot(_gold(pivot)[hot], source.topk_ids.shape[1]))
    return _aligned(pivot, source, moved)


def join_block(pivot: Rows, source: Rows) -> tuple[Aligned, np.ndarray]:
    """One block of a pair with one vocabulary: the source's rows as they are where the supervised ids agree.

    A turn's rows are taken as far as its supervised ids are equal on both sides; the others are EMPTY.
    """
    _check(source)
    slots = join_samples(pivot, source)
    keys, golds = zip(*(_row_keys(b, s) for b, s in zip((pivot, source), slots, strict=True)), strict=True)
    _, at_pivot, at_source = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    partner_R = np.full(len(keys[0]), -1, dtype=np.int64)
    partner_R[at_pivot] = at_source
    other_R = golds[1][partner_R] if len(golds[1]) else golds[0]
    differs_R = (partner_R < 0) | (golds[0] != other_R)
    seen = np.concatenate([[0], np.cumsum(differs_R)])
    turn_first_R = np.searchsorted(row_turns(pivot), row_turns(pivot))
    at = np.flatnonzero(seen[1:] == seen[turn_first_R])
    moved = rows.empty_rows(len(partner_R), source.topk_ids.shape[1])
    source_R = partner_R[at]
    ids_RK = source.topk_ids[source_R]
    scores_RK, tail_R = source.scores[source_R], source.tail[source_R]
    taken = rows.move_first(ids_RK, np.ones_like(ids_RK, bool), scores_RK, tail_R)
    rows.put(moved, at, taken)
    return _aligned(pivot, source, moved)


def metric_ce(block: Rows) -> np.ndarray:
    """float32[S]: mean nats per supervised token in half precision, as the release stores `metric_ce`.

    Each token's loss is rounded to fp16, the sum to fp16, and the quotient to fp16; NaN without a row.
    """
    counts_S = np.diff(block.row_offsets)
    rounded_R = block.ce.astype(np.float16).astype(np.float64)
    sums_S = np.bincount(row_samples(block), weights=rounded_R, minlength=block.samples)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        sums_S = sums_S.astype(np.float16).astype(np.float32)
        return (sums_S / counts_S.astype(np.float16)).astype(np.float16).astype(np.float32)


def _check(source: Rows) -> None:
    if source.meta.get("scores") != "logits":
        raise ValueError(
            f"the source's block holds {source.meta.get('scores')!r}, profile Published aligns logits; "
            "extract the source with profile Published"
        )


def _source_rows(
    pivot: Rows, source: Rows, spans: np.ndarray, method: str, strings: Strings, mapped: np.ndarray
) -> np.ndarray:
    """int64[R of the pivot]: row of the source, ONE_HOT, or -2 where the source lacks the sample."""
    agrees = agreement(method, strings.source, strings.pivot, mapped)
    stored = np.full(len(source.input_ids), ONE_HOT, dtype=np.int64)
    stored[source.input_offsets[row_samples(source)] + source.positions()] = np.arange(len(source.ce))
    found = np.full(len(pivot.ce), -2, dtype=np.int64)
    positions_R = pivot.positions()
    for s, t in enumerate(partners(pivot, source).tolist()):
        rows_s = slice(int(pivot.row_offsets[s]), int(pivot.row_offsets[s + 1]))
        at = positions_R[rows_s]
        first, last = spans[:, pivot.input_offsets[s] + at]
        if t < 0 or not len(at) or first[0] < 0:
            continue
        chosen = choose_positions(method, pivot.sample_ids(s)[at], source.sample_ids(t), first, last, agrees)
        found[rows_s] = np.where(chosen < 0, ONE_HOT, stored[source.input_offsets[t] + np.maximum(chosen, 0)])
    return found


def _gold(block: Rows) -> np.ndarray:
    """int32[R]: the token that each row predicts."""
    return block.input_ids[block.input_offsets[row_samples(block)] + block.positions() + 1]


def _row_keys(block: Rows, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64[R] unique keys (sample, turn, place within the turn), and the predicted tokens."""
    turn_R = row_turns(block)
    within_R = np.arange(len(turn_R)) - np.searchsorted(turn_R, turn_R)
    ordinal_R = block.turn_ordinal[turn_R].astype(np.int64)
    return (slots[row_samples(block)] << 48) | (ordinal_R << 28) | within_R, _gold(block)


def _aligned(pivot: Rows, source: Rows, moved: rows.Moved) -> tuple[Aligned, np.ndarray]:
    place_S = partners(pivot, source)
    own = np.append(metric_ce(source), np.float32(np.nan))
    aligned = Aligned(
        ids=pivot.ids,
        index=pivot.index,
        row_offsets=pivot.row_offsets,
        topk_ids=moved.ids_RK,
        scores=moved.scores_RK,
        tail=moved.tail_R,
        unmapped=moved.unmapped_R,
        kind=moved.kind_R,
        ce_pivot=metric_ce(pivot),
        ce_source=own[place_S],
        meta={**pivot.meta, "scores": "logits", "k": str(source.topk_ids.shape[1])},
    )
    return aligned, moved.mass_R
