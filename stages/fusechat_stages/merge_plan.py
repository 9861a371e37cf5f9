"""What a merge does with each tensor of the pivot: pure decisions, made from the models' headers.

Used by stage merge. Pairs the pivot's tensors with the targets', says which are only copied, refuses what
does not fit, and packs the output's files. Reads no weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fusechat_stages.merge_source import Stored
from fusechat_stages.merge_tensors import SINGLE, Place, Weights

BUFFER = re.compile(
    r"(^|\.)(inv_freq|masked_bias|position_ids|num_batches_tracked)$|\.(attn|attention)\.bias$"
)
"""What older checkpoints store and training does not change."""

HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|embed_in|wte|tok_embeddings|word_embeddings)\.weight$")

SMALLEST_SHARD, LARGEST_SHARD = 64 << 20, 1 << 30
"""Bytes of an output file: an eighth of the model between these, so that a stopped merge repeats little."""


@dataclass(frozen=True)
class Task:
    """One tensor of the output. `targets`: None where a target's does not fit; empty: copy the pivot's."""

    base: Stored
    targets: tuple[Stored | None, ...]

    @property
    def place(self) -> Place:
        return self.base.place

    @property
    def stored(self) -> list[Stored]:
        """The pivot's tensor and the targets' that fit."""
        return [self.base, *(target for target in self.targets if target is not None)]

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(one.place.size for one in self.stored)


@dataclass(frozen=True)
class Shard:
    """One output file."""

    name: str
    tasks: tuple[Task, ...]

    def batches(self, limit: int) -> list[tuple[Task, ...]]:
        """Neighbours that are fetched and merged together, of up to `limit` bytes in all models.

        A larger tensor goes alone. The largest come first, so that no thread ends late.
        """
        found = _grouped(self.tasks, [task.size for task in self.tasks], limit)
        return sorted((tuple(group) for group in found), key=lambda group: -sum(task.size for task in group))


def tasks(base: Weights, targets: Sequence[Weights], published: bool) -> list[Task]:
    """A task per tensor of the pivot, in the order of its files.

    ValueError names the first tensor that a target lacks, has in another shape, or (Corrected) has too many.
    """
    for target in targets:
        if not published:
            _no_strangers(base, target)
    places = sorted(base.tensors.values(), key=lambda place: (place.file, place.start))
    return [_task(Stored(base, place), targets, published) for place in places]


def _task(base: Stored, targets: Sequence[Weights], published: bool) -> Task:
    place = base.place
    if not place.numel or not place.dtype.is_floating_point or BUFFER.search(place.name):
        return Task(base, ())
    return Task(base, tuple(_counterpart(place, target, published) for target in targets))


def _counterpart(place: Place, target: Weights, published: bool) -> Stored | None:
    found = target.tensors.get(place.name) or _tied_embedding(place, target)
    if found is None:
        raise ValueError(
            f"{target.label} has no tensor {place.name}, which the pivot has; merge models of one shape"
        )
    if found.shape == place.shape and found.dtype.is_floating_point:
        return Stored(target, found)
    if published:
        return Stored(target, found) if _can_be_cut(place, found) else None
    raise ValueError(
        f"tensor {place.name} of {target.label} is {list(found.shape)} and the pivot's {list(place.shape)}; "
        "merge models of one shape (profile Published cuts larger embeddings and skips the rest)"
    )


def _tied_embedding(place: Place, target: Weights) -> Place | None:
    """A tied head absent from a target is its embedding."""
    if not HEAD.search(place.name):
        return None
    return next((found for name, found in target.tensors.items() if EMBEDDING.search(name)), None)


def _can_be_cut(place: Place, found: Place) -> bool:
    """Whether the release takes its upper left part: an embedding or head that is larger than the pivot's."""
    if not (HEAD.search(place.name) or EMBEDDING.search(place.name)) or len(found.shape) != len(place.shape):
        return False
    return all(theirs >= ours for theirs, ours in zip(found.shape, place.shape, strict=True))


def _no_strangers(base: Weights, target: Weights) -> None:
    for name in sorted(target.tensors.keys() - base.tensors.keys()):
        if BUFFER.search(name) or (HEAD.search(name) and target.tied()):
            continue
        raise ValueError(
            f"{target.label} has a tensor {name}, which the pivot has not; merge models of one shape"
        )


def shards(found: Sequence[Task]) -> list[Shard]:
    """The output's files: whole tensors in order, each file within the limit unless one tensor exceeds it."""
    total = sum(task.place.size for task in found)
    limit = max(SMALLEST_SHARD, min(LARGEST_SHARD, total // 8))
    groups = _grouped(found, [task.place.size for task in found], limit)
    if len(groups) == 1:
        return [Shard(SINGLE, tuple(groups[0]))]
    count = len(groups)
    return [
        Shard(f"model-{number:05d}-of-{count:05d}.safetensors", tuple(group))
        for number, group in enumerate(groups, 1)
    ]


def _grouped(found: Sequence[Task], sizes: Sequence[int], limit: int) -> list[list[Task]]:
    """Neighbours together, as long as their sizes stay within the limit."""
    groups: list[list[Task]] = [[]]
    filled = 0
    for task, size in zip(found, sizes, strict=True):
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(task)
        filled += size
    return groups
