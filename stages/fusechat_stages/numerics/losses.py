"""What a fusion step minimises, and its gradient, over the rows of one chunk of logits.

Called by fuse's training loop (`training/head.py`) with plain tensors. Knows no model, no store, no ranks: a
row is one supervised position, and the caller says by which scale its terms enter the global mean.

    loss = w * sum_R LM / rows  +  (1 - w) * sum_R weight_R * FUSE / distilled rows
    LM   = -log q[gold]
    FUSE = -sum_K p log q - p_tail log(1 - sum_K q)   (+ sum p log p for "kl")

with q the model's softmax over the whole vocabulary and p the teacher's kept probabilities (FuseChat, arXiv
2408.07990, equations 3 to 5). Profile Published has p_tail = 0 and p the bfloat16 softmax of the kept logits
at temperature T, as the release does. Shapes: R rows, V vocabulary, K kept tokens a row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

SMALLEST = 1e-30
"""Floor under the model's tail mass, so that a teacher's tail has a finite loss where the model's is zero."""


@dataclass(frozen=True)
class Teacher:
    """The distribution that every row is drawn to. `weight_R` 0 leaves a row out of the fusion term."""

    ids_RK: torch.Tensor  # int64, within the vocabulary, no two equal in a row where `kept_RK`
    kept_RK: torch.Tensor  # bool: False in a slot that holds nothing (its id is then ignored)
    probs_RK: torch.Tensor  # float32, 0 where not kept
    tail_R: torch.Tensor  # float32: probability of everything that was not kept
    negentropy_R: torch.Tensor  # float32: sum of p log p for "kl", 0 for "ce"
    weight_R: torch.Tensor  # float32

    def __getitem__(self, rows: slice) -> Teacher:
        return Teacher(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to(self, device: Any) -> Teacher:
        return Teacher(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def published_teacher(
    ids_RK: torch.Tensor, logits_RK: torch.Tensor, temperature: float, loss: str
) -> Teacher:
    """The release's target: bfloat16 softmax at T over the kept logits; p * log p is bfloat16 as well.

    An empty slot has id -1. With an fp32 softmax the release's losses are missed by 2e-4.
    """
    kept_RK = ids_RK >= 0
    scores_RK = logits_RK.to(torch.bfloat16).masked_fill(~kept_RK, -torch.inf) / temperature
    probs_RK = torch.softmax(scores_RK, dim=-1).masked_fill(~kept_RK, 0)
    return Teacher(
        *_slots(ids_RK, kept_RK),
        probs_RK.float(),
        _zeros(ids_RK),
        _negentropy(probs_RK).sum(-1) if loss == "kl" else _zeros(ids_RK),
        kept_RK.any(-1).float(),
    )


def corrected_teacher(
    ids_RK: torch.Tensor,
    scores_RK: torch.Tensor,
    tail_R: torch.Tensor,
    temperature: float,
    loss: str,
    vocabulary: int,
) -> Teacher:
    """Kept log-probabilities as they are, everything else in one tail; fp32 throughout.

    `tail_R` is the mass outside the kept ids (unmapped mass included); the mass of a kept id at or beyond
    `vocabulary` (padding rows of an embedding) joins it. A temperature other than 1 renormalises the kept
    ids, for a tail has no second temperature. A row with no kept id at all has weight 0.
    """
    stored_RK = ids_RK >= 0
    kept_RK = stored_RK & (ids_RK < vocabulary)
    logprobs_RK = scores_RK.float().masked_fill(~kept_RK, -torch.inf)
    if temperature == 1.0:
        probs_RK = logprobs_RK.exp()
        beyond_RK = scores_RK.float().masked_fill(~(stored_RK & ~kept_RK), -torch.inf).exp()
        tail_R = tail_R.float() + beyond_RK.sum(-1)
    else:
        probs_RK = torch.softmax(logprobs_RK / temperature, dim=-1).masked_fill(~kept_RK, 0)
        tail_R = _zeros(ids_RK)
    entropy_R = _zeros(ids_RK)
    if loss == "kl":
        entropy_R = _negentropy(probs_RK).sum(-1) + _negentropy(tail_R)
    weight_R = stored_RK.any(-1).float()
    return Teacher(*_slots(ids_RK, kept_RK), probs_RK, tail_R * weight_R, entropy_R, weight_R)


def _slots(ids_RK: torch.Tensor, kept_RK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids that may be used as indices: an empty slot repeats its row's first kept id.

    A row without any keeps id 0 with probability 0, so that the loss needs no special case for it.
    """
    first_R1 = kept_RK.int().argmax(-1, keepdim=True)
    none_R1 = ~kept_RK.any(-1, keepdim=True)
    fill_R1 = ids_RK.gather(-1, first_R1).masked_fill(none_R1, 0)
    used_RK = kept_RK.clone()
    used_RK[:, :1] |= none_R1
    return torch.where(kept_RK, ids_RK, fill_R1).long(), used_RK


def _zeros(ids_RK: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(ids_RK), device=ids_RK.device)


def _negentropy(probs: torch.Tensor) -> torch.Tensor:
    """p log p, in the dtype of p, summands in float32; 0 at p = 0."""
    return torch.where(probs > 0, probs * probs.log(), torch.zeros_like(probs)).float()


def lm_loss_(logits_RV: torch.Tensor, gold_R: torch.Tensor, lm_scale: float) -> torch.Tensor:
    """Sum over rows of -log q[gold]; `logits_RV` (float32) becomes the gradient of `lm_scale` times it."""
    gold_R1 = gold_R.unsqueeze(-1)
    max_R1 = logits_RV.amax(-1, keepdim=True)
    at_gold_R1 = logits_RV.gather(-1, gold_R1) - max_R1
    total_R1 = logits_RV.sub_(max_R1).exp_().sum(-1, keepdim=True)
    logits_RV.mul_(lm_scale / total_R1)
    logits_RV.scatter_add_(-1, gold_R1, torch.full_like(at_gold_R1, -lm_scale))
    return (total_R1.log() - at_gold_R1).sum()


def fusion_loss_(
    logits_RV: torch.Tensor, gold_R: torch.Tensor, teacher: Teacher, lm_scale: float, fuse_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over rows of the two terms; `logits_RV` becomes their scaled sum's gradient, in place.

    One pass over V more than `lm_loss_` would be too many: the kept entries are taken out, what is left is
    summed (the model's tail, exactly, with no cancellation), and the normaliser is that plus what was taken.
    """
    gold_R1, ids_RK = gold_R.unsqueeze(-1), teacher.ids_RK
    max_R1 = logits_RV.amax(-1, keepdim=True)
    at_gold_R1 = logits_RV.gather(-1, gold_R1) - max_R1
    at_kept_RK = logits_RV.gather(-1, ids_RK) - max_R1
    logits_RV.sub_(max_R1).exp_().scatter_(-1, ids_RK, 0.0)
    kept_RK = at_kept_RK.exp() * teacher.kept_RK
    tail_R1 = logits_RV.sum(-1, keepdim=True)
    total_R1 = tail_R1 + kept_RK.sum(-1, keepdim=True)
    tail_R1 = tail_R1.clamp_min(SMALLEST)

    weight_R1, p_tail_R1 = teacher.weight_R.unsqueeze(-1), teacher.tail_R.unsqueeze(-1)
    mass_R1 = teacher.probs_RK.sum(-1, keepdim=True) + p_tail_R1
    log_total_R1 = total_R1.log()
    fuse_R1 = mass_R1 * log_total_R1 - (teacher.probs_RK * at_kept_RK).sum(-1, keepdim=True)
    fuse_R1 = fuse_R1 - p_tail_R1 * tail_R1.log() + teacher.negentropy_R.unsqueeze(-1)

    pull_R1 = fuse_scale * weight_R1
    q_slope_R1 = (lm_scale + pull_R1 * mass_R1) / total_R1
    logits_RV.mul_(q_slope_R1 - pull_R1 * p_tail_R1 / tail_R1)
    logits_RV.scatter_add_(-1, ids_RK, kept_RK * q_slope_R1 - pull_R1 * teacher.probs_RK)
    logits_RV.scatter_add_(-1, gold_R1, torch.full_like(at_gold_R1, -lm_scale))
    return (log_total_R1 - at_gold_R1).sum(), (fuse_R1 * weight_R1).sum()
