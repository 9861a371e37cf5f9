"""Which source position feeds each pivot position: the release's rules, profile Published.

Called by align after the warping (`dtw`). Knows strings and integers; no tokenizer, no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

ONE_HOT = -1
"""No source position: the row is one-hot on the gold next token."""

Agrees = Callable[[int, int], bool]


def choose_positions(
    method: str,
    pivot_ids: np.ndarray,
    source_ids: np.ndarray,
    first_N: np.ndarray,
    last_N: np.ndarray,
    agrees: Agrees,
) -> np.ndarray:
    """int64[N]: the source position whose row each pivot position takes, or ONE_HOT.

    `first_N`/`last_N` are the warping ranges of those pivot positions. A range of one is taken if its tokens
    agree (`agrees(source id, pivot id)`); of a longer range MS takes the first piece that agrees, EM and
    MinED none.
    """
    chosen = np.full(len(pivot_ids), ONE_HOT, dtype=np.int64)
    source = source_ids.tolist()
    longer = method == "MS"
    for n, (pivot, first, last) in enumerate(
        zip(pivot_ids.tolist(), first_N.tolist(), last_N.tolist(), strict=True)
    ):
        if first != last and not longer:
            continue
        for m in range(first, last + 1):
            if agrees(source[m], pivot):
                chosen[n] = m
                break
    return chosen


def agreement(
    method: str, source_text: Mapping[int, str], pivot_text: Mapping[int, str], target: np.ndarray
) -> Agrees:
    """The test of one method on a (source id, pivot id) pair; strings are decode([id]).

    MS: one string ends with the other. EM: equal strings. MinED: equal strings, or `target` (the vocabulary
    map, int32[sources]) sends the source token to the pivot token.
    """
    known: dict[tuple[int, int], bool] = {}

    def agrees(source: int, pivot: int) -> bool:
        key = (source, pivot)
        if key not in known:
            known[key] = rule(source, pivot)
        return known[key]

    def suffix(source: int, pivot: int) -> bool:
        a, b = source_text[source], pivot_text[pivot]
        return a.endswith(b) or b.endswith(a)

    def equal(source: int, pivot: int) -> bool:
        return source_text[source] == pivot_text[pivot]

    def nearest(source: int, pivot: int) -> bool:
        return equal(source, pivot) or int(target[source]) == pivot

    rule = {"MS": suffix, "EM": equal, "MinED": nearest}[method]
    return agrees
