"""Which source position feeds a pivot position, method by method (profile Published)."""

import numpy as np
import pytest
from fusechat_stages.numerics.matching import agreement, choose_positions

SOURCE = {0: " Correct", 1: "Cor", 2: "rect", 3: "", 4: "x", 5: "ab"}
PIVOT = {0: "Correct", 1: " Correct", 2: "rect", 3: "", 4: "y", 5: "b"}


@pytest.mark.parametrize(
    ("name", "method", "pivot", "source", "want"),
    [
        ("one, the pivot's string at its end", "MS", 0, [0], 0),
        ("one, the source's string at its end", "MS", 1, [2], 0),
        ("one, neither", "MS", 4, [4], -1),
        ("one, nothing is a suffix of everything", "MS", 4, [3], 0),
        ("one against an empty pivot string", "MS", 3, [4], 0),
        ("several: the first piece that agrees", "MS", 0, [1, 2, 0], 1),
        ("several: none agrees", "MS", 4, [1, 4, 5], -1),
        ("equal strings", "EM", 2, [2], 0),
        ("a suffix is not equal", "EM", 0, [0], -1),
        ("equal among several is none", "EM", 2, [1, 2], -1),
        ("mapped to this pivot token", "MinED", 4, [4], 0),
        ("equal, though mapped elsewhere", "MinED", 2, [2], 0),
        ("neither equal nor mapped here", "MinED", 5, [5], -1),
        ("mapped, but among several", "MinED", 4, [4, 4], -1),
    ],
)
def test_the_rules(name, method, pivot, source, want):
    target = np.array([9, 9, 9, 9, 4, 9])
    agrees = agreement(method, SOURCE, PIVOT, target)
    last = np.array([len(source) - 1])
    got = choose_positions(method, np.array([pivot]), np.array(source), np.array([0]), last, agrees)
    assert got.tolist() == [want], name
