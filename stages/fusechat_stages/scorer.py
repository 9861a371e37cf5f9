"""A model's rows for rendered conversations: top-k, tail and loss at every supervised token.

Used by extract. Knows models and numbers; no templates, no files and no artifacts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusechat_stages import chat, models, shards
from fusechat_stages.numerics.topk import top_rows

TOKENS_PER_BATCH = 16384
CPU_TOKENS_PER_BATCH = 2048
"""On a CPU larger batches are no faster and only take memory."""
CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
"""float32 logits of one chunk of rows: with a working copy, what the head needs at any vocabulary."""


@dataclass(frozen=True)
class Recipe:
    """The params that change the bytes."""

    profile: str
    template: Any
    top_k: int
    max_length: int
    dtype: str
    scores: str

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Recipe:
        scores = params["scores"]
        if scores not in ("logits", "logprobs"):
            raise ValueError(f"scores is {scores!r}, expected logits or logprobs")
        return cls(
            profile=params["profile"],
            template=params["template"],
            top_k=int(params["topK"]),
            max_length=int(params["maxLength"]),
            dtype=params["dtype"],
            scores=scores,
        )


@dataclass(frozen=True)
class Sample:
    """One conversation, rendered: ids [n], turns, and for each supervised token the end byte [r]."""

    id: str
    index: int  # position in the dataset
    input_ids: np.ndarray  # int32[n]
    turns: tuple[chat.Turn, ...]
    end_bytes: np.ndarray  # int32[r]

    @classmethod
    def of(cls, id: str, index: int, told: chat.Conversation) -> Sample:
        """Arrays of a rendered conversation: a block of lists of Python integers takes 10 times as much."""
        ids, ends = np.array(told.input_ids, dtype=np.int32), np.array(told.end_bytes, dtype=np.int32)
        return cls(id, index, ids, told.turns, ends)

    @property
    def positions(self) -> np.ndarray:
        """int64[r]: input positions whose next token is supervised."""
        spans = [np.arange(turn.start - 1, turn.end - 1, dtype=np.int64) for turn in self.turns]
        return np.concatenate(spans)


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Samples grouped so that count * longest <= budget (at least one a group), longest first.

    Depends on the lengths alone; equal lengths keep their order.
    """
    groups: list[list[int]] = []
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(n)
        else:
            groups.append([n])
    return groups


class Scorer:
    """A loaded model that gives rows. Runtime: tokensPerBatch."""

    def __init__(self, model: Any, recipe: Recipe, runtime: Mapping[str, Any]) -> None:
        self._model, self._recipe = model, recipe
        embedding = model.get_input_embeddings().weight
        self.device, self._readable = embedding.device, embedding.shape[0]
        config = model.config.get_text_config()
        self._vocab, self._positions = config.vocab_size, getattr(config, "max_position_embeddings", None)
        budget = int(runtime.get("tokensPerBatch") or TOKENS_PER_BATCH)
        self._budget = min(budget, CPU_TOKENS_PER_BATCH) if self.device.type == "cpu" else budget
        self._chunk = max(1, CHUNK_BYTES.get(self.device.type, 64 << 20) // (4 * self._vocab))

    @classmethod
    def load(cls, folder: Path, tokenizer: Any, recipe: Recipe, runtime: Mapping[str, Any]) -> Scorer:
        """The scorer of a model folder. ValueError if the model cannot be used (`models.load_model`)."""
        model = models.load_model(folder, recipe.dtype, runtime.get("device"), tokenizer=tokenizer)
        return cls(model, recipe, runtime)

    def can_read(self, sample: Sample) -> bool:
        """False for a sample with a control token that the model has no embedding for."""
        return int(sample.input_ids.max()) < self._readable

    @torch.inference_mode()
    def score(self, samples: Sequence[Sample], report: Callable[[int, int], object]) -> shards.Rows:
        """The rows of a block, in the samples' order; `report(samples, tokens)` after each batch."""
        self._check_lengths(samples)
        rows = self._empty(samples)
        for group in batches([len(sample.input_ids) for sample in samples], self._budget):
            self._fill(rows, samples, group)
            report(len(group), sum(len(samples[n].input_ids) for n in group))
        return rows

    def _check_lengths(self, samples: Sequence[Sample]) -> None:
        longest = max((len(sample.input_ids) for sample in samples), default=0)
        if self._positions and longest > self._positions:
            raise ValueError(
                f"a conversation has {longest} tokens, but the model reads at most {self._positions}; "
                f"set extract.maxLength to {self._positions} or less (it is {self._recipe.max_length})"
            )

    def _fill(self, rows: shards.Rows, samples: Sequence[Sample], group: list[int]) -> None:
        """Compute the rows of one batch and put them where they belong in the block."""
        found, at = self._batch([samples[n] for n in group]), 0
        for n in group:
            first, last = int(rows.row_offsets[n]), int(rows.row_offsets[n + 1])
            for name, values in found.items():
                getattr(rows, name)[first:last] = values[at : at + last - first]
            at += last - first

    def _batch(self, group: list[Sample]) -> dict[str, np.ndarray]:
        """topk_ids, scores, tail and ce of the supervised rows of a batch, sample after sample."""
        ids_BT = np.zeros((len(group), len(group[0].input_ids)), dtype=np.int64)
        for b, sample in enumerate(group):
            ids_BT[b, : len(sample.input_ids)] = sample.input_ids
        at_R = np.concatenate([b * ids_BT.shape[1] + sample.positions for b, sample in enumerate(group)])
        gold_R = torch.from_numpy(ids_BT.reshape(-1)[at_R + 1])
        hidden_BTH = models.hidden_states(self._model, torch.from_numpy(ids_BT).to(self.device))
        hidden_RH = hidden_BTH.flatten(0, 1)[torch.from_numpy(at_R).to(hidden_BTH.device)]
        del hidden_BTH
        chunks = zip(hidden_RH.split(self._chunk), gold_R.split(self._chunk), strict=True)
        parts = [self._summary(hidden_CH, gold_C) for hidden_CH, gold_C in chunks]
        return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}

    def _summary(self, hidden_CH: Tensor, gold_C: Tensor) -> dict[str, Tensor]:
        logits_CV = models.head_logits(self._model, hidden_CH).float()
        top = top_rows(logits_CV, gold_C.to(logits_CV.device), self._recipe.top_k)
        scores_CK = top.logits_RK if self._recipe.scores == "logits" else top.logprobs_RK
        ce_C = top.ce_R.half().float() if self._recipe.profile == "Published" else top.ce_R
        return {"topk_ids": top.ids_RK.int(), "scores": scores_CK.half(), "tail": top.tail_R, "ce": ce_C}

    def _empty(self, samples: Sequence[Sample]) -> shards.Rows:
        """The block without the model's values, which are filled in place: it is in memory only once."""
        turns = [(t.start, t.end, t.ordinal, t.answer_bytes) for sample in samples for t in sample.turns]
        turns_U4 = np.array(turns, dtype=np.int32).reshape(-1, 4)
        end_byte = _join([sample.end_bytes for sample in samples])
        count, k = len(end_byte), self._recipe.top_k
        return shards.Rows(
            ids=[sample.id for sample in samples],
            index=np.array([sample.index for sample in samples], dtype=np.int64),
            input_ids=_join([sample.input_ids for sample in samples]),
            input_offsets=_offsets([len(sample.input_ids) for sample in samples]),
            turn_start=turns_U4[:, 0],
            turn_end=turns_U4[:, 1],
            turn_ordinal=turns_U4[:, 2],
            turn_bytes=turns_U4[:, 3],
            turn_offsets=_offsets([len(sample.turns) for sample in samples]),
            row_offsets=_offsets([len(sample.end_bytes) for sample in samples]),
            topk_ids=np.zeros((count, k), dtype=np.int32),
            scores=np.zeros((count, k), dtype=np.float16),
            tail=np.zeros(count, dtype=np.float32),
            ce=np.zeros(count, dtype=np.float32),
            end_byte=end_byte,
            meta={"scores": self._recipe.scores, "vocab": str(self._vocab), "profile": self._recipe.profile},
        )


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int32), *arrays])


def _offsets(counts: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.array(counts, dtype=np.int64))]).astype(np.int64)
