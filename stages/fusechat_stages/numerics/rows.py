"""Distributions moved from one vocabulary into another: top-k rows in, top-k rows out.

Shared by both profiles of align. Shapes: R rows, K kept tokens a row; an empty slot has id -1 and score -inf.
Knows arrays only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EMPTY, EXACT, MAPPED, ONE_HOT = 0, 1, 2, 3
"""Kinds of row, as `shards` stores them."""


@dataclass(frozen=True)
class Moved:
    """Rows over the pivot's vocabulary. Law: probability of the kept ids + tail + unmapped == 1."""

    ids_RK: np.ndarray  # int32, -1 in an empty slot
    scores_RK: np.ndarray  # float16, -inf in an empty slot
    tail_R: np.ndarray  # float32
    unmapped_R: np.ndarray  # float32
    kind_R: np.ndarray  # uint8
    mass_R: np.ndarray  # float32, probability of the kept ids


def empty_rows(rows: int, k: int) -> Moved:
    """Rows of kind EMPTY, to be filled by `put`."""
    return Moved(
        np.full((rows, k), -1, dtype=np.int32),
        np.full((rows, k), -np.inf, dtype=np.float16),
        np.zeros(rows, dtype=np.float32),
        np.zeros(rows, dtype=np.float32),
        np.full(rows, EMPTY, dtype=np.uint8),
        np.zeros(rows, dtype=np.float32),
    )


def put(rows: Moved, at_R: np.ndarray, moved: Moved) -> None:
    """Write `moved` into the rows `at_R` (indices)."""
    for name in ("ids_RK", "scores_RK", "tail_R", "unmapped_R", "kind_R", "mass_R"):
        getattr(rows, name)[at_R] = getattr(moved, name)


def one_hot(gold_R: np.ndarray, k: int) -> Moved:
    """Rows that keep the gold token alone, at logit 1 as the release writes it."""
    rows = empty_rows(len(gold_R), k)
    rows.ids_RK[:, 0] = gold_R
    rows.scores_RK[:, 0] = 1.0
    rows.kind_R[:] = ONE_HOT
    rows.mass_R[:] = 1.0
    return rows


def probabilities(logits_RK: np.ndarray, tail_R: np.ndarray) -> np.ndarray:
    """float32[R, K] from kept logits: their softmax, scaled to 1 - tail."""
    values_RK = logits_RK.astype(np.float32)
    top_R1 = values_RK.max(axis=1, keepdims=True)
    weights_RK = np.exp(values_RK - np.where(np.isfinite(top_R1), top_R1, 0))
    total_R = weights_RK.sum(axis=1)
    share_R = np.divide(1 - tail_R, total_R, out=np.zeros_like(total_R), where=total_R > 0)
    return weights_RK * share_R[:, None]


def move_summed(
    target_RK: np.ndarray, exact_RK: np.ndarray, scores_RK: np.ndarray, tail_R: np.ndarray
) -> Moved:
    """Corrected: masses that fall on one pivot token are summed, those that have none are `unmapped`.

    `target_RK` is the pivot id of each kept source token (-1: none), `exact_RK` whether it has the same
    bytes, `scores_RK` float16 log-probabilities. A row that needs neither keeps its scores bit for bit and in
    order; another is sorted by probability, and its empty slots come last.
    """
    masses_RK = np.exp(scores_RK.astype(np.float32))
    ids_RK = np.where(masses_RK == 0, -1, target_RK).astype(np.int32)
    moved = Moved(
        ids_RK,
        np.array(scores_RK, dtype=np.float16),
        np.array(tail_R, dtype=np.float32),
        np.zeros(len(tail_R), dtype=np.float32),
        np.where(exact_RK.all(axis=1), EXACT, MAPPED).astype(np.uint8),
        masses_RK.sum(axis=1),
    )
    irregular = np.flatnonzero((ids_RK < 0).any(axis=1) | _repeated(ids_RK))
    _sum_masses(moved, irregular, masses_RK[irregular])
    return moved


def _sum_masses(moved: Moved, at: np.ndarray, masses_RK: np.ndarray) -> None:
    """Add up the masses of equal ids in the rows `at`, move those of no id to `unmapped`, and sort."""
    ids_RK = moved.ids_RK[at]
    moved.unmapped_R[at] = np.where(ids_RK < 0, masses_RK, 0).sum(axis=1)
    first_RK, sums_RK = _first_and_sum(ids_RK, masses_RK)
    sums_RK = np.where(first_RK, sums_RK, -1)
    order = np.argsort(-sums_RK, axis=1, kind="stable")
    sums_RK = np.take_along_axis(sums_RK, order, axis=1)
    kept_RK = sums_RK >= 0
    moved.ids_RK[at] = np.where(kept_RK, np.take_along_axis(ids_RK, order, axis=1), -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        moved.scores_RK[at] = np.where(kept_RK, np.log(np.maximum(sums_RK, 0)), -np.inf)
    moved.mass_R[at] = np.where(kept_RK, sums_RK, 0).sum(axis=1)
    moved.kind_R[at[~kept_RK.any(axis=1)]] = EMPTY


def move_first(
    target_RK: np.ndarray, exact_RK: np.ndarray, scores_RK: np.ndarray, tail_R: np.ndarray
) -> Moved:
    """Published: of the source tokens that fall on one pivot token the first keeps its logit, others go.

    Order is kept; tokens without a pivot token go too. What goes is counted as `unmapped`; a row that keeps
    nothing is EMPTY.
    """
    masses_RK = probabilities(scores_RK, tail_R)
    ids_RK = np.array(target_RK, dtype=np.int32)
    scores_RK = np.array(scores_RK, dtype=np.float16)
    kept_RK = ids_RK >= 0
    thin = np.flatnonzero(~kept_RK.all(axis=1) | _repeated(ids_RK))
    kept_RK[thin] &= _first_and_sum(ids_RK[thin], masses_RK[thin])[0]
    order = np.argsort(~kept_RK[thin], axis=1, kind="stable")
    ids_RK[thin] = np.where(
        np.take_along_axis(kept_RK[thin], order, axis=1), np.take_along_axis(ids_RK[thin], order, axis=1), -1
    )
    scores_RK[thin] = np.where(ids_RK[thin] >= 0, np.take_along_axis(scores_RK[thin], order, axis=1), -np.inf)
    mass_R = np.where(kept_RK, masses_RK, 0).sum(axis=1)
    kind_R = np.where((exact_RK & kept_RK).all(axis=1), EXACT, MAPPED)
    kind_R[~kept_RK.any(axis=1)] = EMPTY
    unmapped_R = np.where(kept_RK, 0, masses_RK).sum(axis=1)
    return Moved(ids_RK, scores_RK, np.array(tail_R, np.float32), unmapped_R, kind_R.astype(np.uint8), mass_R)


def _repeated(ids_RK: np.ndarray) -> np.ndarray:
    """bool[R]: rows in which an id stands twice."""
    sorted_RK = np.sort(ids_RK, axis=1)
    return ((sorted_RK[:, 1:] == sorted_RK[:, :-1]) & (sorted_RK[:, 1:] >= 0)).any(axis=1)


def _first_and_sum(ids_RK: np.ndarray, masses_RK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which slot is the first of its id, and the mass of all slots of that id; a slot without id is none."""
    equal_RKK = (ids_RK[:, :, None] == ids_RK[:, None, :]) & (ids_RK >= 0)[:, :, None]
    first_RK = (equal_RKK.argmax(axis=2) == np.arange(ids_RK.shape[1])) & (ids_RK >= 0)
    return first_RK, np.matmul(equal_RKK.astype(np.float32), masses_RK[:, :, None])[:, :, 0]
