"""Which samples, turns and rows of two blocks belong together. Called by both profiles of align."""

from __future__ import annotations

import numpy as np

from fusechat_stages.shards import Rows


def join_samples(pivot: Rows, source: Rows) -> tuple[np.ndarray, np.ndarray]:
    """int64[S], int64[S']: a number for every sample, equal on both sides where it is the same sample.

    Samples are known by their position in the dataset. ValueError if their ids then differ: the blocks come
    from different datasets.
    """
    both = np.concatenate([pivot.index, source.index])
    _, slots = np.unique(both, return_inverse=True)
    pivot_slots, source_slots = slots[: pivot.samples], slots[pivot.samples :]
    named = dict(zip(pivot_slots.tolist(), pivot.ids, strict=True))
    for slot, index, id in zip(source_slots.tolist(), source.index.tolist(), source.ids, strict=True):
        if named.get(slot, id) != id:
            raise ValueError(
                f"sample {index} is {named[slot]!r} in the pivot's block and {id!r} in the source's; "
                "expected blocks of one dataset: extract both models on the same one"
            )
    return pivot_slots.astype(np.int64), source_slots.astype(np.int64)


def partners(pivot: Rows, source: Rows) -> np.ndarray:
    """int64[S of the pivot]: the same sample's place in the source's block, -1 where it has none."""
    pivot_slots, source_slots = join_samples(pivot, source)
    place = np.full(pivot.samples + source.samples, -1, dtype=np.int64)
    place[source_slots] = np.arange(source.samples)
    return place[pivot_slots]


def row_turns(block: Rows) -> np.ndarray:
    """int64[R]: the turn (of the block's U turns) that each row belongs to."""
    return np.repeat(np.arange(len(block.turn_start)), block.turn_end - block.turn_start)


def row_samples(block: Rows) -> np.ndarray:
    """int64[R]: the sample that each row belongs to."""
    return np.repeat(np.arange(block.samples), np.diff(block.row_offsets))
