"""Exact top-k of a stream: which of a tensor's elements are among its k largest, without holding them.

Used by merging. Two passes over the values: a histogram of the upper half of each float's bits finds the bin
of the k-th largest, a histogram of the lower half within that bin finds the value itself. Knows nothing of
what the values mean. Memory: two histograms, whatever the tensor's size.

A caller that wants to be done with the second pass splits each tile by that bin itself (`split`): what is
above it is kept, and of the few inside it those that `best` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

HALF = 16
COARSE_BINS = 1 << 15  # the sign bit of a value that is not negative is 0
FINE_BINS = 1 << HALF


@dataclass(frozen=True)
class Threshold:
    """Kept are the elements greater than `value` and, of those equal to it, the first `ties` by index."""

    value: float
    ties: int
    count: int

    @classmethod
    def everything(cls, count: int) -> Threshold:
        return cls(-1.0, 0, count)

    @classmethod
    def nothing(cls) -> Threshold:
        return cls(float("inf"), 0, 0)


class TopK:
    """Finds the Threshold of the k largest: `count` every value, `aim(k)`, `refine` every value, `threshold`.

    Values are float32 and not negative; for those the order of the bits is the order of the values.
    """

    def __init__(self) -> None:
        self._coarse = np.zeros(COARSE_BINS, np.int64)
        self._fine = np.zeros(FINE_BINS, np.int64)
        self.seen = self.nonzero = 0
        self._k = self._above = 0
        self._bin: int | None = None

    def count(self, values_N: torch.Tensor) -> None:
        """First pass. The next tile in any order."""
        upper = torch.bitwise_right_shift(values_N.view(torch.int32), HALF)
        self._coarse += torch.bincount(upper, minlength=COARSE_BINS).numpy()
        self.seen += values_N.numel()
        self.nonzero += int(torch.count_nonzero(values_N))

    def aim(self, k: int) -> bool:
        """Choose k, at most the values seen; whether the second pass is needed."""
        self._k = min(k, self.seen)
        if self._k in (0, self.seen):
            return False
        at_least = np.cumsum(self._coarse[::-1])[::-1]
        self._bin = int(np.flatnonzero(at_least >= self._k)[-1])
        self._above = int(at_least[self._bin] - self._coarse[self._bin])
        return True

    @property
    def inside(self) -> int:
        """Values in the bin that the k-th largest is in."""
        assert self._bin is not None, "aim said that nothing is left to find"
        return int(self._coarse[self._bin])

    def split(self, values_N: torch.Tensor) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Indices of the values above that bin, and of those inside."""
        assert self._bin is not None, "aim said that nothing is left to find"
        upper = values_N.view(torch.int32).numpy() >> HALF
        return np.flatnonzero(upper > self._bin), np.flatnonzero(upper == self._bin)

    def best(self, inside: NDArray[np.float32]) -> tuple[NDArray[np.intp], Threshold]:
        """Which of all values inside the bin, in order of their indices, are kept; and the threshold."""
        wanted = self._k - self._above
        order = np.argsort(-inside, kind="stable")[:wanted]
        value = inside[order[-1]]
        return order, Threshold(float(value), int((inside[order] == value).sum()), self._k)

    def refine(self, values_N: torch.Tensor) -> None:
        """Second pass, over the same values as the first."""
        bits = values_N.view(torch.int32).numpy()
        inside = bits[(bits >> HALF) == self._bin] & (FINE_BINS - 1)
        self._fine += np.bincount(inside, minlength=FINE_BINS)

    def threshold(self) -> Threshold:
        if self._k == 0:
            return Threshold.nothing()
        if self._bin is None:
            return Threshold.everything(self._k)
        wanted = self._k - self._above
        at_least = np.cumsum(self._fine[::-1])[::-1]
        low = int(np.flatnonzero(at_least >= wanted)[-1])
        ties = wanted - int(at_least[low] - self._fine[low])
        bits = np.array([self._bin << HALF | low], np.int32)
        return Threshold(float(bits.view(np.float32)[0]), ties, self._k)


class Picker:
    """Applies a Threshold to the tiles of one pass, which must come in the order of their indices."""

    def __init__(self, threshold: Threshold) -> None:
        self._value = np.float32(threshold.value)
        self._ties = threshold.ties

    def mask(self, values_N: torch.Tensor) -> NDArray[np.bool_]:
        """Which of the next tile's elements are kept: bool[N]."""
        values = values_N.numpy()
        kept: NDArray[np.bool_] = values > self._value
        if self._ties:
            equal = np.flatnonzero(values == self._value)[: self._ties]
            kept[equal] = True
            self._ties -= len(equal)
        return kept
