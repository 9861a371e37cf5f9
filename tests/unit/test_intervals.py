"""Intervals hold the truth as often as they say, and are exact where they can be checked by hand."""

import math
import random

import pytest
from fusechat.intervals import paired_proportions, paired_ratios, ratio, wilson

# Brown, Cai and DasGupta 2001 give the formula; values by an independent evaluation of it to 4 places.
WILSON = [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (80, 100, 0.7112, 0.8666)]


@pytest.mark.parametrize(("correct", "n", "low", "high"), WILSON)
def test_wilson_equals_its_published_values(correct, n, low, high):
    found = wilson(correct, n)
    assert (found.value, found.n) == (correct / n, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_counts_that_cannot_be(correct, n):
    with pytest.raises(ValueError, match="correct"):
        wilson(correct, n)


def test_wilson_holds_the_true_share_about_95_times_in_100():
    draw = random.Random(1)
    for share, n in [(0.03, 120), (0.5, 60), (0.9, 200)]:
        found = [wilson(sum(draw.random() < share for _ in range(n)), n) for _ in range(800)]
        covered = sum(i.low <= share <= i.high for i in found) / len(found)
        assert 0.925 < covered < 0.985, (share, covered)


def _pair(draw, n, both, only_first, only_second):
    first, second = {}, {}
    for i in range(n):
        u = draw.random()
        first[str(i)] = u < both + only_first
        second[str(i)] = u < both or both + only_first <= u < both + only_first + only_second
    return first, second


def test_paired_difference_holds_the_true_difference_about_95_times_in_100():
    draw = random.Random(2)
    for n, both, more, fewer in [(100, 0.6, 0.1, 0.1), (200, 0.7, 0.08, 0.02), (400, 0.2, 0.01, 0.01)]:
        found = [paired_proportions(*_pair(draw, n, both, more, fewer)) for _ in range(400)]
        covered = sum(i.low <= more - fewer <= i.high for i in found) / len(found)
        assert 0.925 < covered <= 0.995, (n, covered)


def test_paired_difference_is_antisymmetric_and_of_the_shared_questions_only():
    first, second = _pair(random.Random(3), 300, 0.5, 0.2, 0.1)
    second["only here"] = True
    there, back = paired_proportions(first, second), paired_proportions(second, first)
    assert there.n == 300
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    wins = sum(first[q] and not second[q] for q in first) - sum(second[q] and not first[q] for q in first)
    assert there.value == wins / 300


def test_pairing_is_sharper_than_two_separate_intervals():
    first, second = _pair(random.Random(4), 1000, 0.7, 0.04, 0.01)
    found = paired_proportions(first, second)
    assert found.decided
    separate = [wilson(sum(x.values()), len(x)) for x in (first, second)]
    assert found.high - found.low < sum(i.high - i.low for i in separate) / 2


def test_two_equal_models_differ_by_nothing_that_is_decided():
    same = {str(i): i % 3 == 0 for i in range(50)}
    found = paired_proportions(same, same)
    assert found.value == 0
    assert found.low < 0 < found.high
    assert not found.decided


def test_differences_need_common_questions():
    with pytest.raises(ValueError, match="in common"):
        paired_proportions({"a": True}, {"b": True})
    with pytest.raises(ValueError, match="in common"):
        paired_ratios({"a": (1.0, 2.0)}, {"b": (1.0, 2.0)})


def _samples(draw, n, rate):
    """Conversations of 5 to 80 bytes, each with a rate of its own around `rate`."""
    sizes = [draw.randint(5, 80) for _ in range(n)]
    own = [rate * draw.uniform(0.5, 1.5) for _ in sizes]
    return [(sum(draw.expovariate(1 / r) for _ in range(s)), s) for s, r in zip(sizes, own, strict=True)]


def test_ratio_holds_the_true_rate_about_95_times_in_100():
    draw = random.Random(5)
    found = [ratio(_samples(draw, 60, 2.0)) for _ in range(300)]
    covered = sum(i.low <= 2.0 <= i.high for i in found) / len(found)
    assert 0.91 < covered < 0.985, covered


def test_ratio_is_sum_over_sum_and_one_sample_has_no_limits():
    assert ratio([(2.0, 1.0), (4.0, 5.0)]).value == 1.0
    alone = ratio([(3.0, 2.0)])
    assert (alone.value, alone.low, alone.high) == (1.5, -math.inf, math.inf)
    with pytest.raises(ValueError, match="positive"):
        ratio([(1.0, 0.0)])


def test_paired_ratios_see_a_small_constant_gain_under_large_noise():
    draw = random.Random(6)
    second = {str(i): part for i, part in enumerate(_samples(draw, 80, 3.0))}
    first = {k: (bits - 0.05 * size, size) for k, (bits, size) in second.items()}
    found = paired_ratios(first, second)
    assert found.value == pytest.approx(-0.05)
    assert found.decided
    assert not paired_ratios(second, second).decided
