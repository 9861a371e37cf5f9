"""Warping: the row-wise solution equals the cell-wise recurrence, tie by tie, in any number of stripes."""

import numpy as np
import pytest
from fusechat_stages.numerics import dtw
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

WORDS = st.lists(st.sampled_from(["", "a", "b", "ab", "abc", " a", "�", "🙂"]), min_size=1, max_size=12)


def cell_by_cell(source: list[str], pivot: list[str]) -> list[list[int]]:
    """The textbook recurrence; ties go to the diagonal, then to pivot - 1, then to source - 1."""
    far, rows, columns = float("inf"), range(len(source)), range(len(pivot))
    total = {(-1, -1): 0.0}
    for i in rows:
        for j in columns:
            before = (total.get(at, far) for at in ((i - 1, j - 1), (i, j - 1), (i - 1, j)))
            total[i, j] = Levenshtein.distance(source[i], pivot[j]) + min(before)
    total.pop((-1, -1))
    i, j = len(source) - 1, len(pivot) - 1
    matched: list[list[int]] = [[] for _ in pivot]
    matched[j].append(i)
    while (i, j) != (0, 0):
        i, j = min([(i - 1, j - 1), (i, j - 1), (i - 1, j)], key=lambda at: total.get(at, far))
        matched[j].insert(0, i)
    return matched


def ranges(source: list[str], pivot: list[str]) -> list[list[int]]:
    first, last = dtw.align_strings(source, pivot)
    return [list(range(a, b + 1)) for a, b in zip(first.tolist(), last.tolist(), strict=True)]


@settings(max_examples=150, deadline=None)
@given(WORDS, WORDS, st.sampled_from([1, 2, 3, 5, 2048]))
def test_it_is_the_recurrence_with_its_ties(source, pivot, stripe):
    kept = dtw.STRIPE_ROWS
    try:
        dtw.STRIPE_ROWS = stripe
        assert ranges(source, pivot) == cell_by_cell(source, pivot)
    finally:
        dtw.STRIPE_ROWS = kept


@pytest.mark.parametrize(
    ("name", "source", "pivot", "want"),
    [
        ("all equal: the diagonal", ["a", "a"], ["a", "a"], [[0], [1]]),
        ("more pivot tokens: pivot - 1 before source - 1", ["a", "a"], ["a", "a", "a"], [[0], [0], [1]]),
        ("more source tokens", ["a", "a", "a"], ["a", "a"], [[0, 1], [2]]),
        ("one pivot token takes all", ["x", "y", "z"], ["xyz"], [[0, 1, 2]]),
        ("one source token feeds all", ["xyz"], ["x", "y", "z"], [[0], [0], [0]]),
        ("single tokens", ["a"], ["b"], [[0]]),
        ("nothing to tell apart", ["", ""], ["", ""], [[0], [1]]),
    ],
)
def test_ties(name, source, pivot, want):
    assert ranges(source, pivot) == want, name
    assert cell_by_cell(source, pivot) == want, name


def test_a_tie_between_the_two_sides_goes_to_pivot_minus_one():
    """From the last cell both neighbours cost the same and the diagonal costs more."""
    costs = np.array([[0, 1, 9], [1, 9, 1], [9, 1, 0]], dtype=np.uint16)
    assert costs[1, 1] > costs[1, 2] == costs[2, 1]
    first, last = dtw.warp(costs, np.arange(3), np.arange(3))
    assert list(zip(first.tolist(), last.tolist(), strict=True)) == [(0, 1), (2, 2), (2, 2)]


def test_distances_are_characters_and_do_not_overflow():
    assert dtw.edit_distances(["🙂", "a" * 300], ["", "é"]).tolist() == [[1, 1], [300, 300]]
    assert dtw.edit_distances([], ["a"]).shape == (0, 1)


def test_ranges_touch_and_cover_the_source():
    rng = np.random.default_rng(0)
    words = ["a", "b", "ab", "ba", "aab"]
    first, last = dtw.align_strings(list(rng.choice(words, 300)), list(rng.choice(words, 250)))
    assert first[0] == 0
    assert last[-1] == 299
    assert (first <= last).all()
    assert ((first[1:] == last[:-1]) | (first[1:] == last[:-1] + 1)).all()
