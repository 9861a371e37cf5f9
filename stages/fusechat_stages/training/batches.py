"""Which samples make up a step, how they are split, and their tensors.

Called by the training loop. The order is a function of seed and epoch, and a step of the order and the global
batch: neither knows the world size or the memory of a device. Only the split into micro-batches does, and
under profile Corrected it changes nothing but rounding, because every row's scale comes from the whole step.

Shapes: B samples of a micro-batch, T padded input positions, R supervised rows, K kept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from fusechat_stages.numerics.losses import Teacher, corrected_teacher, published_teacher
from fusechat_stages.training.examples import Examples, ranges
from fusechat_stages.training.recipe import Recipe


@dataclass(frozen=True)
class Schedule:
    """Optimiser steps of a run: `epochs` passes over `samples`, `batch` samples a step."""

    samples: int
    batch: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.samples // self.batch)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def order(self, epoch: int) -> np.ndarray:
        """A permutation of the samples: int64[S], the same on every machine."""
        return np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.samples)

    def at(self, step: int) -> np.ndarray:
        """The samples of optimiser step `step` (from 0)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[within * self.batch : (within + 1) * self.batch]


@dataclass(frozen=True)
class Micro:
    """One forward and backward of one rank. `lm` and `fuse`: what a row's loss is multiplied by."""

    samples: np.ndarray
    lm: float
    fuse: float


def split(
    examples: Examples, samples: np.ndarray, recipe: Recipe, *, world: int, tokens: int
) -> list[list[Micro]]:
    """Per rank the micro-batches of one step, equally many on each: a rank with fewer repeats an empty one.

    Corrected: scales are 1 / supervised rows and 1 / distilled rows of the whole step. Published: of the
    micro-batch, divided by the number of micro-batches, as accumulation and data parallelism average.
    """
    if recipe.published:
        parts = [samples[i : i + recipe.microBatch] for i in range(0, len(samples), recipe.microBatch)]
        micros = [Micro(part, *_means(examples, part, len(parts))) for part in parts]
        ranks = [micros[rank::world] for rank in range(world)]
    else:
        means = _means(examples, samples, 1)
        lengths = examples.inputs[samples]
        longest_first = samples[np.lexsort((samples, -lengths))]
        ranks = [
            [Micro(part, *means) for part in _bucketed(examples, longest_first[rank::world], tokens)]
            for rank in range(world)
        ]
    most = max(len(micros) for micros in ranks)
    shortest = samples[[int(np.argmin(examples.inputs[samples]))]]
    return [micros + [Micro(shortest, 0.0, 0.0)] * (most - len(micros)) for micros in ranks]


def _means(examples: Examples, samples: np.ndarray, parts: int) -> tuple[float, float]:
    rows, distilled = int(examples.rows[samples].sum()), int(examples.distilled[samples].sum())
    return 1 / (rows * parts), (1 / (distilled * parts) if distilled else 0.0)


def _bucketed(examples: Examples, longest_first: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Cut samples sorted by length where padding would cost more than one more micro-batch, or memory ends.

    One more pass of the model costs about what a sixteenth of a full micro-batch costs.
    """
    lengths, cuts, waste = examples.inputs[longest_first].tolist(), [0], 0
    for i, length in enumerate(lengths):
        widest = lengths[cuts[-1]]
        waste += widest - length
        if i > cuts[-1] and (waste > tokens // 16 or widest * (i + 1 - cuts[-1]) > tokens):
            cuts.append(i)
            waste = 0
    return [longest_first[a:b] for a, b in pairwise([*cuts, len(lengths)]) if b > a]


@dataclass(frozen=True)
class Batch:
    """A micro-batch on its device. Pads stand at the end, where a causal model never looks back from."""

    input_ids_BT: torch.Tensor  # int64
    rows_R: torch.Tensor  # int64, flat position b * T + t
    gold_R: torch.Tensor  # int64
    teacher: Teacher | None
    lm_scale: float
    fuse_scale: float
    tokens: int  # without padding


def build(examples: Examples, micro: Micro, recipe: Recipe, vocabulary: int, device: Any = "cpu") -> Batch:
    """The tensors of one micro-batch; `vocabulary`: the tokenizer's size, ids at or beyond it are tail."""
    samples = micro.samples
    lengths = examples.inputs[samples].astype(np.int64)
    width = int(lengths.max())
    first_N = examples.token_offsets[samples]
    ids_BT = np.zeros((len(samples), width), np.int64)
    start_B = np.arange(len(samples), dtype=np.int64) * width
    ids_BT.reshape(-1)[ranges(start_B, lengths)] = examples.tokens[ranges(first_N, lengths)]

    counts = np.diff(examples.row_offsets)[samples]
    row_index = ranges(examples.row_offsets[samples], counts)
    position = examples.position[row_index].astype(np.int64)
    gold = examples.tokens[np.repeat(first_N, counts) + position + 1].astype(np.int64)
    lm_weight = recipe.lmWeight if recipe.distils else 1.0
    return Batch(
        _on(ids_BT, device),
        _on(np.repeat(start_B, counts) + position, device),
        _on(gold, device),
        _teacher(examples, row_index, recipe, vocabulary, device) if recipe.distils else None,
        lm_weight * micro.lm,
        (1 - lm_weight) * micro.fuse,
        int(lengths.sum()),
    )


def _on(array: np.ndarray, device: Any) -> torch.Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def _teacher(
    examples: Examples, row_index: np.ndarray, recipe: Recipe, vocabulary: int, device: Any
) -> Teacher:
    ids_RK = _on(examples.topk_ids[row_index].astype(np.int64), device)
    scores_RK = _on(examples.scores[row_index], device)
    if recipe.published:
        return published_teacher(ids_RK, scores_RK, recipe.temperature, recipe.loss)
    tail_R = _on(examples.tail[row_index], device)
    return corrected_teacher(ids_RK, scores_RK, tail_R, recipe.temperature, recipe.loss, vocabulary)


def rate(step: int, steps: int, warmup_ratio: float, scheduler: str = "cosine") -> float:
    """Share of the peak learning rate at step `step` (from 0).

    Linear warm-up, then half a cosine or a line to 0, or the peak: as transformers' schedules with warm-up,
    whose first step has rate 0.
    """
    warmup = int(np.ceil(steps * warmup_ratio))
    if step < warmup:
        return step / max(1, warmup)
    done = (step - warmup) / max(1, steps - warmup)
    if scheduler == "constant":
        return 1.0
    return 1.0 - done if scheduler == "linear" else max(0.0, 0.5 * (1.0 + float(np.cos(np.pi * done))))


def tokens_of(examples: Examples, samples: Sequence[int] | np.ndarray) -> int:
    """Input positions without padding."""
    return int(examples.inputs[samples].sum())
