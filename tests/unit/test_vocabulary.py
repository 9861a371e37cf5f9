"""Vocabulary maps of profile Published: counting, the release's tie rules, and nearest pieces."""

from itertools import pairwise

import numpy as np
import pytest
from fusechat_stages.numerics import vocabulary
from fusechat_stages.numerics.vocabulary import PairCounts
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

MARKERS = {"source_marker": "Ġ", "pivot_marker": "▁"}


def counts(pairs: dict[tuple[int, int], int], pivots: int) -> PairCounts:
    """{(source id, pivot id): count}."""
    keys = sorted((s * pivots + p, c) for (s, p), c in pairs.items())
    return PairCounts(np.array([k for k, _ in keys]), np.array([c for _, c in keys]), pivots)


def best(source: str | None, pivot: list[str | None], met: dict[int, int], **options) -> int:
    """Where one source token goes that met these pivot tokens this often."""
    table = counts({(0, p): c for p, c in met.items()}, len(pivot))
    return int(vocabulary.surface_map([table], [source], pivot, default=0, **MARKERS, **options)[0])


@pytest.mark.parametrize(
    ("name", "source", "pivot", "met", "want"),
    [
        ("the nearest string", "cat", ["<unk>", "dog", "car"], {1: 5, 2: 5}, 2),
        ("markers do not count", "Ġcat", ["<unk>", "cats", "▁cat"], {1: 9, 2: 1}, 2),
        ("equal scores: the lowest pivot id", "ab", ["<unk>", "ac", "ad"], {2: 4, 1: 4}, 1),
        (
            "equal strings: the lowest pivot id, whatever the counts",
            "a",
            ["<unk>", "▁a", "a"],
            {1: 1, 2: 900},
            1,
        ),
        ("contained: a tenth of the distance", "going", ["<unk>", "goinq", "go"], {1: 3, 2: 3}, 2),
        ("containing, too", "go", ["<unk>", "gx", "goings"], {1: 3, 2: 3}, 2),
        ("more often met is farther: times sigmoid(count)", "ab", ["<unk>", "ac", "ad"], {1: 30, 2: 1}, 2),
        ("counts beyond 40 are the same", "ab", ["<unk>", "ac", "ad"], {1: 90, 2: 45}, 1),
        ("a lone marker keeps it: equal to the other's", "Ġ", ["<unk>", "xyz", "▁"], {1: 1, 2: 1}, 2),
        ("a lone marker against a word", "Ġ", ["<unk>", "abc", "▁a"], {1: 1, 2: 1}, 2),
        ("an id without a piece stays", None, ["<unk>", "a"], {1: 1}, 0),
        ("a pivot id without a piece is no choice", "a", ["<unk>", None, "abc"], {1: 1, 2: 1}, 2),
        ("nothing met", "cat", ["<unk>", "cat"], {}, 0),
    ],
)
def test_where_a_source_token_goes(name, source, pivot, met, want):
    assert best(source, pivot, met) == want, name


def test_begin_and_end_are_forced_only_where_both_sides_have_them():
    assert best("</s>", ["<unk>", "</s>", "<end>"], {1: 5}, forced=[(None, 2), (0, 2)]) == 2
    assert best("</s>", ["<unk>", "</s>"], {1: 5}, forced=[(0, None)]) == 1


def one_by_one(source: list[str], pivot: list[str], met: dict[tuple[int, int], int]) -> list[int]:
    """The release's loop: a score for every pair, the first least one in order of pivot ids."""
    found = [0] * len(source)
    for s, piece in enumerate(source):
        scores = []
        for p in sorted(p for t, p in met if t == s):
            a, b = piece.replace("Ġ", ""), pivot[p].replace("▁", "")
            if not a or not b:
                a, b = piece.replace("Ġ", "▁"), pivot[p]
            weight = 0.1 if a in b or b in a else 1
            scores.append((Levenshtein.distance(a, b) * weight / (1 + np.exp(-met[s, p])), p))
        if scores:
            found[s] = min(scores, key=lambda score: score[0])[1]
    return found


PIECES = st.text("ab▁Ġé", max_size=4)


@settings(max_examples=80, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=5), st.lists(PIECES, min_size=1, max_size=6), st.data())
def test_it_is_the_releases_loop(source, pivot, data):
    pairs = st.tuples(st.integers(0, len(source) - 1), st.integers(0, len(pivot) - 1))
    met = data.draw(st.dictionaries(pairs, st.integers(1, 60)))
    found = vocabulary.surface_map([counts(met, len(pivot))], source, pivot, default=0, **MARKERS)
    assert found.tolist() == one_by_one(source, pivot, met)


def test_a_source_token_counts_once_at_a_pivot_position():
    """As the release's fancy indexing does: pivot position 1 is matched with source tokens 7, 7 and 8."""
    found = vocabulary.count_pairs(
        np.array([3, 4]), np.array([6, 7, 7, 8]), np.array([0, 1]), np.array([0, 3]), 10
    )
    got = dict(
        zip(zip(found.source_P.tolist(), found.pivot_P.tolist(), strict=True), found.counts_P, strict=True)
    )
    assert got == {(6, 3): 1, (7, 4): 1, (8, 4): 1}


def random_counts(rng: np.random.Generator, sources: int, pivots: int, n: int) -> PairCounts:
    keys = np.unique(rng.integers(0, sources * pivots, n))
    return PairCounts(keys, rng.integers(1, 9, len(keys)), pivots)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 400))
def test_the_sum_does_not_depend_on_order_or_slices(seed, parts, pairs):
    rng = np.random.default_rng(seed)
    made = [random_counts(rng, 30, 20, 100) for _ in range(parts)]
    whole, turned = vocabulary.merge_counts(made), vocabulary.merge_counts(made[::-1])
    sliced = list(vocabulary.merge_ranges(made, 30, pairs=pairs))
    for keys, sums in (
        (turned.keys_P, turned.counts_P),
        (np.concatenate([s.keys_P for s in sliced]), np.concatenate([s.counts_P for s in sliced])),
    ):
        np.testing.assert_array_equal(keys, whole.keys_P)
        np.testing.assert_array_equal(sums, whole.counts_P)
    assert whole.counts_P.sum() == sum(part.counts_P.sum() for part in made)
    assert all(a.source_P.max() < b.source_P.min() for a, b in pairwise(s for s in sliced if len(s.keys_P)))


def test_counts_over_other_vocabularies_are_refused():
    parts = [counts({(0, 0): 1}, 4), counts({(0, 0): 1}, 5)]
    with pytest.raises(ValueError, match=r"\[4, 5\] tokens"):
        vocabulary.merge_counts(parts)


def test_equal_pieces_have_their_marker_mapped():
    source = ["Ġcat", "cat", "Ċ", None, "▁"]
    found = vocabulary.equal_map(source, ["cat", "▁cat", None, "dog", "▁", "▁cat"], **MARKERS)
    assert found.tolist() == [1, 0, -1, -1, 4]


@pytest.mark.parametrize(
    ("source", "want"),
    [("Ġcat", 2), ("Ġcats", 2), ("dot", 3), ("x", 1), (None, 0), ("aaaa" * 100, 4)],
)
def test_the_nearest_piece_lowest_id_first(source, want):
    pivot = ["<unk>", "a", "▁cat", "dog", "aaa" * 100, "b"]
    assert vocabulary.nearest_map([source], pivot, default=0, **MARKERS).tolist() == [want]


def test_nearest_is_the_brute_force_argmin(monkeypatch):
    monkeypatch.setattr(vocabulary, "NEAREST_CHUNK", 7)
    rng = np.random.default_rng(1)
    words = ["".join(rng.choice(list("abcd"), rng.integers(1, 7))) for _ in range(60)]
    strings, choices = words[:25], words[25:]
    found = vocabulary.nearest(strings, choices)
    want = [min(range(len(choices)), key=lambda i: Levenshtein.distance(s, choices[i])) for s in strings]
    assert found.tolist() == want


@pytest.mark.parametrize(("pieces", "want"), [(["▁a", "▁b", "Ġ"], "▁"), (["Ġa", None, "b"], "Ġ")])
def test_the_marker_is_told_by_the_pieces(pieces, want):
    assert vocabulary.space_marker(pieces) == want
