"""Moving top-k rows into another vocabulary: mass is conserved, order and first places are kept."""

import numpy as np
import pytest
from fusechat_stages.numerics import rows
from fusechat_stages.numerics.rows import EMPTY, EXACT, MAPPED, ONE_HOT
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.align_cases import random_rows


def summed(targets, probabilities, tail=0.0, exact=None):
    target = np.array([targets], dtype=np.int32)
    exact = np.ones_like(target, bool) if exact is None else np.array([exact])
    scores = np.log(np.array([probabilities])).astype(np.float16)
    return rows.move_summed(target, exact, scores, np.array([tail], np.float32))


@pytest.mark.parametrize(
    ("name", "targets", "probabilities", "want", "unmapped"),
    [
        ("as it is", [5, 3], [0.5, 0.25], {5: 0.5, 3: 0.25}, 0),
        ("two on one token are summed", [5, 3, 5], [0.4, 0.3, 0.2], {5: 0.6, 3: 0.3}, 0),
        ("a sum may come first", [5, 3, 3], [0.4, 0.3, 0.25], {3: 0.55, 5: 0.4}, 0),
        ("what has no token is unmapped", [-1, 3], [0.5, 0.25], {3: 0.25}, 0.5),
        ("several have none", [-1, 3, -1], [0.5, 0.25, 0.125], {3: 0.25}, 0.625),
        ("all have none", [-1, -1], [0.5, 0.25], {}, 0.75),
    ],
)
def test_where_the_mass_goes(name, targets, probabilities, want, unmapped):
    moved = summed(targets, probabilities, tail=0.1)
    kept = {
        int(i): float(np.exp(s)) for i, s in zip(moved.ids_RK[0], moved.scores_RK[0], strict=True) if i >= 0
    }
    assert list(kept) == list(want), name
    assert kept == pytest.approx(want, abs=1e-3)
    assert moved.unmapped_R[0] == pytest.approx(unmapped, abs=1e-3)
    assert moved.tail_R[0] == np.float32(0.1)
    assert (moved.kind_R[0] == EMPTY) == (not want)
    assert np.isneginf(moved.scores_RK[0, len(want) :]).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 40))
def test_mass_is_conserved(seed, pivots):
    """aligned + tail + unmapped == 1 within 1e-3, also as stored in half precision, for any mapping."""
    rng = np.random.default_rng(seed)
    ids, masses, tail = random_rows(rng, rng.integers(0, 50, 20), 50, 8)
    target = rng.integers(-1, pivots, 50).astype(np.int32)[ids]
    scores = np.log(masses).astype(np.float16)
    moved = rows.move_summed(target, target >= 0, scores, tail.astype(np.float32))
    stored = np.where(moved.ids_RK >= 0, np.exp(moved.scores_RK.astype(np.float64)), 0).sum(axis=1)
    np.testing.assert_allclose(stored + moved.tail_R + moved.unmapped_R, 1, atol=1e-3)
    np.testing.assert_allclose(moved.mass_R, stored, atol=1e-3)
    for row in moved.ids_RK:
        kept = row[row >= 0]
        assert len(set(kept.tolist())) == len(kept)


def test_a_row_that_needs_nothing_keeps_its_bits_and_its_order():
    scores = np.array([[-0.1, -3.0, -2.0]], dtype=np.float16)
    target = np.array([[7, 2, 9]], dtype=np.int32)
    moved = rows.move_summed(target, np.ones_like(target, bool), scores, np.zeros(1, np.float32))
    np.testing.assert_array_equal(moved.ids_RK, target)
    np.testing.assert_array_equal(moved.scores_RK, scores)
    assert moved.kind_R[0] == EXACT


def test_one_token_of_other_bytes_makes_a_row_mapped():
    assert summed([1, 2], [0.5, 0.2], exact=[True, False]).kind_R[0] == MAPPED


def test_a_probability_of_zero_is_no_slot():
    scores = np.array([[-0.1, -np.inf]], dtype=np.float16)
    target = np.array([[1, 2]], dtype=np.int32)
    moved = rows.move_summed(target, np.ones_like(target, bool), scores, np.zeros(1, np.float32))
    assert moved.ids_RK.tolist() == [[1, -1]]


def test_a_score_that_is_not_a_number_stays_to_be_seen_by_filter():
    scores = np.array([[np.nan, -1.0]], dtype=np.float16)
    target = np.array([[1, 2]], dtype=np.int32)
    moved = rows.move_summed(target, np.ones_like(target, bool), scores, np.zeros(1, np.float32))
    assert np.isnan(moved.scores_RK[0, 0])
    assert moved.ids_RK[0, 0] == 1


@pytest.mark.parametrize(
    ("name", "targets", "logits", "want", "kind"),
    [
        ("as it is", [5, 3], [9.0, 8.0], [(5, 9.0), (3, 8.0)], EXACT),
        ("the first of equals wins, though less", [5, 3, 5], [7.0, 8.0, 9.0], [(5, 7.0), (3, 8.0)], MAPPED),
        ("without a target: the others move up", [-1, 3, 4], [9.0, 8.0, 7.0], [(3, 8.0), (4, 7.0)], MAPPED),
        ("nothing is kept", [-1, -1], [9.0, 8.0], [], EMPTY),
    ],
)  # fmt: skip
def test_the_releases_way_keeps_first_and_drops_the_rest(name, targets, logits, want, kind):
    target = np.array([targets], dtype=np.int32)
    scores = np.array([logits], dtype=np.float16)
    moved = rows.move_first(target, target >= 0, scores, np.array([0.25], np.float32))
    kept = [(int(i), float(s)) for i, s in zip(moved.ids_RK[0], moved.scores_RK[0], strict=True) if i >= 0]
    assert kept == want, name
    assert moved.kind_R[0] == kind
    assert moved.mass_R[0] + moved.tail_R[0] + moved.unmapped_R[0] == pytest.approx(1, abs=1e-6)


def test_kept_logits_become_their_softmax_scaled_to_what_the_tail_leaves():
    logits = np.log(np.array([[6.0, 3.0]])).astype(np.float16) + np.float16(4)
    found = rows.probabilities(logits, np.array([0.1], np.float32))
    np.testing.assert_allclose(found, [[0.6, 0.3]], atol=1e-3)


def test_one_hot_rows_hold_the_gold_token_at_logit_one():
    moved = rows.one_hot(np.array([4, 9]), 3)
    assert moved.ids_RK.tolist() == [[4, -1, -1], [9, -1, -1]]
    assert moved.scores_RK[:, 0].tolist() == [1.0, 1.0]
    assert (moved.kind_R == ONE_HOT).all()
