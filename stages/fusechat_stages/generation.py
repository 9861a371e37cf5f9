"""Batched greedy decoding: prompts in, new token ids out, the same whatever the batch.

Used by evaluate. Knows a causal language model of transformers and nothing of tokenizers, templates or
files. Greedy is the arg max of float32 logits with the lowest id winning ties, so an answer is a function of
the model and the prompt alone; padding is on the left, masked, and positions count real tokens only. What is
left of the batch is rounding: in float32 two logits within about 1e-6 of each other may change places.

Shapes: B rows of a batch, T positions, V logits.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

COMPACT_SHARE = 0.75
"""Finished rows leave the batch when the others are at most this share of it."""


@dataclass(frozen=True)
class Answer:
    """New ids without the stop id; `truncated` if the limit or the end of the context came before one."""

    ids: list[int]
    truncated: bool


def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Collection[int],
    max_new_tokens: int,
    tokens_per_batch: int,
    vocabulary: int | None = None,
    context: int | None = None,
    each: Callable[[int], object] = lambda answered: None,
) -> list[Answer]:
    """Answers in the order of `prompts`.

    A batch holds at most `tokens_per_batch` positions (prompt, answer, padding together), and at least a row.
    Ids at or above `vocabulary` (rows of the head that no token stands for) are never chosen. A
    prompt and its answer end at `context` positions; a prompt that fills them has an empty, truncated answer.
    `each` is called with the number of prompts answered so far after every batch. ValueError for an empty
    prompt.
    """
    if max_new_tokens < 1:
        raise ValueError(f"maxNewTokens must be at least 1, got {max_new_tokens}")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {i} has no token; the template must render at least one")
    limits = [min(max_new_tokens, (context or sys.maxsize) - len(prompt)) for prompt in prompts]
    asked = [i for i, limit in enumerate(limits) if limit > 0]
    answers = [Answer([], truncated=True)] * len(prompts)
    done = len(prompts) - len(asked)
    padded = "position_ids" in inspect.signature(model.forward).parameters
    stop = torch.tensor(sorted(stop_ids), dtype=torch.long, device=model.device)
    lengths = [len(prompts[i]) for i in asked]
    with torch.inference_mode():
        for batch in batches(lengths, max_new_tokens, tokens_per_batch, padded=padded):
            rows = [asked[i] for i in batch]
            found = _decode(model, [prompts[i] for i in rows], stop, [limits[i] for i in rows], vocabulary)
            for i, answer in zip(rows, found, strict=True):
                answers[i] = answer
            done += len(rows)
            each(done)
    return answers


def batches(
    lengths: Sequence[int], new_tokens: int, tokens_per_batch: int, *, padded: bool = True
) -> Iterator[list[int]]:
    """Indices of prompts, longest first, cut so that rows x (longest + new) stays within the budget.

    With `padded` False only prompts of equal length share a batch: for models that take no positions.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        if batch:
            longest = lengths[batch[0]]
            full = (len(batch) + 1) * (longest + new_tokens) > tokens_per_batch
            if full or (not padded and lengths[i] != longest):
                yield batch
                batch = []
        batch.append(i)
    if batch:
        yield batch


def _decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop: torch.Tensor,
    limits: Sequence[int],
    vocabulary: int | None,
) -> list[Answer]:
    """Answers of one batch. Rows that have ended leave the batch and its cache when enough have."""
    steps = max(limits)
    state = _Steps(model, prompts, limits)
    chosen = torch.zeros(len(prompts), steps, dtype=torch.long, device=model.device)
    limit_B = torch.tensor(limits, device=model.device)
    length = limit_B.clone()  # of every prompt's answer; the stop id shortens it
    row_B = torch.arange(len(prompts), device=model.device)  # which prompt each row of the batch answers
    open_B = torch.ones_like(row_B, dtype=torch.bool)
    logits_BV = state.first()
    for t in range(steps):
        next_B = logits_BV[:, :vocabulary].float().argmax(-1)
        chosen[row_B, t] = next_B
        stopped_B = open_B & torch.isin(next_B, stop)
        length[row_B[stopped_B]] = t
        open_B = open_B & ~stopped_B & (t + 1 < limit_B[row_B])
        remaining = int(open_B.sum())
        if not remaining:
            break
        if remaining <= COMPACT_SHARE * len(row_B) and state.can_shrink:
            kept = open_B.nonzero().flatten()
            row_B, next_B, open_B = row_B[kept], next_B[kept], open_B[kept]
            state.keep(kept)
        logits_BV = state.next(next_B)
    ends = zip(chosen.tolist(), length.tolist(), limits, strict=True)
    return [Answer(ids[:n], n == limit) for ids, n, limit in ends]


class _Steps:
    """The model's forward over one shrinking, left-padded batch: its cache, mask and positions."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> None:
        self._model = model
        lengths = torch.tensor([len(p) for p in prompts], device=model.device)
        longest = int(lengths.max())
        rows = [[0] * (longest - len(p)) + list(p) for p in prompts]
        self._ids_BT = torch.tensor(rows, dtype=torch.long, device=model.device)
        places_T = torch.arange(longest + max(limits), device=model.device)
        self._mask_BT = (places_T >= (longest - lengths)[:, None]).long()
        self._padding_B = longest - lengths
        # A row that has ended may stay a while: its position must not leave a learned table.
        self._end_B = lengths + torch.tensor(limits, device=model.device) - 1
        self._at = longest
        self._cache: Any = None
        accepted = inspect.signature(model.forward).parameters
        self._positions = "position_ids" in accepted
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def first(self) -> torch.Tensor:
        """Logits [B, V] after the prompts."""
        places_T = torch.arange(self._at, device=self._ids_BT.device)
        return self._forward(self._ids_BT, (places_T - self._padding_B[:, None]).clamp(min=0))

    def next(self, ids_B: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after one more token in every row."""
        self._at += 1
        positions_B = torch.minimum(self._at - 1 - self._padding_B, self._end_B)
        return self._forward(ids_B[:, None], positions_B[:, None])

    @property
    def can_shrink(self) -> bool:
        """Whether the cache knows how to drop rows (a recurrent state may not)."""
        return hasattr(self._cache, "batch_select_indices")

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        self._cache.batch_select_indices(rows)
        self._mask_BT, self._padding_B = self._mask_BT[rows], self._padding_B[rows]
        self._end_B = self._end_B[rows]

    def _forward(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
        told = {"position_ids": positions_BT} if self._positions else {}
        out = self._model(
            input_ids=ids_BT,
            attention_mask=self._mask_BT[:, : self._at],
            past_key_values=self._cache,
            use_cache=True,
            **told,
            **self._last,
        )
        self._cache = out.past_key_values
        logits: torch.Tensor = out.logits[:, -1]
        return logits
