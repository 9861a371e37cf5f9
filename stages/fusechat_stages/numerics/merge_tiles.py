"""One tensor of the base and of every target as a stream of tiles, however large the tensor is.

Used by merging; the stage hands in how to read. Knows arrays and the names to complain with, no files.
A tile is the unit of arithmetic: every partial sum is a tile's, so that results do not depend on how much
is read at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

TILE = 1 << 16
"""Elements of a tile: five targets of it in float32 and the temporaries fit a core's cache."""

Read = Callable[[int, int], Sequence[torch.Tensor]]
"""read(start, stop) -> elements [start, stop) of the base and of each target, flat, of any float type.

What it returns need hold until its next call only.
"""


class Workspace:
    """Buffers of one thread, made once: allocating them anew would cost more than the arithmetic."""

    def __init__(self, targets: int, tile: int = TILE) -> None:
        self.targets, self.tile = targets, tile
        self.x_TN = torch.empty(targets, tile)
        self.y_TN = torch.empty(targets, tile)
        self.base_N, self.a_N, self.b_N, self.c_N = (torch.empty(tile) for _ in range(4))
        self.one_N = torch.ones(tile)


class Tile:
    """N consecutive elements of all models. Its arrays are the workspace's: gone with the next tile."""

    def __init__(self, stream: Stream, index: int, raw: Sequence[torch.Tensor]) -> None:
        self.index, self.name, self._stream, self._raw = index, stream.name, stream, raw
        self.start, self.size = index * stream.space.tile, raw[0].numel()
        space = stream.space
        self.x_TN, self.y_TN = space.x_TN[:, : self.size], space.y_TN[:, : self.size]
        self.base_N, self.one_N = space.base_N[: self.size], space.one_N[: self.size]
        self.a_N, self.b_N, self.c_N = (t[: self.size] for t in (space.a_N, space.b_N, space.c_N))

    @property
    def raw_base(self) -> torch.Tensor:
        """[N]: the base's values in its own dtype."""
        return self._raw[0]

    def targets(self) -> torch.Tensor:
        """float32[T, N]: the targets' values, in `x_TN`. ValueError if one is not finite."""
        for row_N, raw_N in zip(self.x_TN, self._raw[1:], strict=True):
            row_N.copy_(raw_N)
        self._finite(self.x_TN)
        return self.x_TN

    def base(self) -> torch.Tensor:
        """float32[N]: the base's values, in `base_N`. ValueError if one is not finite."""
        self.base_N.copy_(self._raw[0])
        self._finite(self.base_N)
        return self.base_N

    def deltas(self) -> torch.Tensor:
        """float32[T, N]: target - base, in `x_TN`; `base_N` is set. ValueError if a value is not finite."""
        for row_N, raw_N in zip(self.x_TN, self._raw[1:], strict=True):
            row_N.copy_(raw_N)
        self.x_TN.sub_(self.base())
        self._finite(self.x_TN)
        return self.x_TN

    def deltas_at(self, indices: torch.Tensor) -> torch.Tensor:
        """float32[T, n]: target - base of n elements, of the values that `targets` has left in `x_TN`."""
        return self.x_TN.index_select(1, indices).sub_(self.base().index_select(0, indices))

    def _finite(self, values: torch.Tensor) -> None:
        # A sum may overflow without a fault: then there is nothing to complain of.
        if not math.isfinite(values.sum().item()):
            self._stream.complain(self.index, self._raw)


class Stream:
    """A tensor of `numel` elements; `tiles()` may be called once per pass, and passes follow one another.

    labels: what to call the base and each target in a complaint.
    """

    def __init__(
        self, name: str, labels: Sequence[str], numel: int, read: Read, space: Workspace, block: int = TILE
    ) -> None:
        if block % space.tile:
            raise ValueError(f"a block holds whole tiles of {space.tile} elements, got {block}")
        self.name, self.labels, self.numel, self.space = name, tuple(labels), numel, space
        self._read, self._block = read, block

    @property
    def targets(self) -> int:
        return self.space.targets

    def tiles(self) -> Iterator[Tile]:
        """All tiles in order of their indices."""
        tile = self.space.tile
        for start in range(0, self.numel, self._block):
            stop = min(start + self._block, self.numel)
            raw = self._read(start, stop)
            for at in range(start, stop, tile):
                cut = slice(at - start, min(at + tile, stop) - start)
                yield Tile(self, at // tile, raw if stop - start <= tile else [r[cut] for r in raw])

    def complain(self, index: int, raw: Sequence[torch.Tensor]) -> None:
        """ValueError naming the first model whose tile holds a NaN or an infinity; nothing if none does."""
        for label, values_N in zip(self.labels, raw, strict=True):
            bad = (~torch.isfinite(values_N.float())).nonzero()
            if len(bad):
                at = index * self.space.tile + int(bad[0])
                raise ValueError(
                    f"tensor {self.name} of {label} holds {float(values_N[bad[0]])} at element {at}, expected"
                    " finite weights; train that model again with a lower learning rate, or leave it out"
                )
