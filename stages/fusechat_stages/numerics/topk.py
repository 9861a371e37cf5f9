"""The largest next-token scores of every row, the probability outside of them, and the gold token's loss.

Used by extract, on the device the logits are on; arrays in, arrays out. Exact, and the same on every device:
of equal scores the lowest id comes first (torch.topk leaves that open, and bf16 logits tie often).

Shapes: R rows, V vocabulary, K kept, B blocks of BLOCK ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64
"""Ids a block holds. The k largest scores lie in the k blocks with the largest maxima: one pass of maxima
over the row, then a selection among k * BLOCK ids, in place of a selection among V."""


@dataclass(frozen=True)
class TopRows:
    """What is kept of R rows. All float32 but the ids."""

    ids_RK: Tensor  # int64, by falling score, lower id first among equals
    logits_RK: Tensor
    logprobs_RK: Tensor
    tail_R: Tensor  # probability outside the kept ids
    ce_R: Tensor  # nats, of the gold id


def top_rows(logits_RV: Tensor, gold_R: Tensor, k: int) -> TopRows:
    """Summaries of R rows of float32 logits; takes as much memory again as they do. ValueError if V < k.

    The tail is the sum of the probabilities outside the kept ids, never 1 minus the kept ones: in float32
    that difference has no correct digit left below 1e-7. So with the loss of a token that is nearly sure.
    """
    assert logits_RV.dtype == torch.float32
    if logits_RV.shape[1] < k:
        raise ValueError(f"topK is {k}, but the model has {logits_RV.shape[1]} tokens; lower topK")
    values_RK, ids_RK = top_k(logits_RV, k)
    top_R = values_RK[:, 0]
    weights_RV = logits_RV.softmax(1)
    kept_RK = weights_RV.gather(1, ids_RK)
    tail_R = weights_RV.scatter_(1, ids_RK, 0.0).sum(1)
    others_R = kept_RK[:, 1:].sum(1) + tail_R
    # Minus the log of the largest probability, from whichever of it and its complement has the digits.
    beyond_R = torch.where(others_R < 0.5, -torch.log1p(-others_R), -kept_RK[:, 0].log())
    return TopRows(
        ids_RK=ids_RK,
        logits_RK=values_RK,
        logprobs_RK=(values_RK - top_R[:, None]) - beyond_R[:, None],
        tail_R=tail_R,
        ce_R=beyond_R + (top_R - logits_RV.gather(1, gold_R[:, None])[:, 0]),
    )


def top_k(scores_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values [R, k], ids int64 [R, k]) of the k largest float32 scores, lower id first among equals."""
    size_V = scores_RV.shape[1]
    blocks = size_V // BLOCK
    if blocks <= k:
        ids_RC = torch.arange(size_V, device=scores_RV.device).expand(scores_RV.shape)
        return _select(scores_RV, ids_RC, k)
    whole = blocks * BLOCK
    maxima_RB = scores_RV[:, :whole].unflatten(1, (blocks, BLOCK)).amax(2)
    _, chosen_Rk = _select(
        maxima_RB, torch.arange(blocks, device=scores_RV.device).expand(maxima_RB.shape), k
    )
    within = torch.arange(BLOCK, device=scores_RV.device)
    ids_RC = (chosen_Rk[:, :, None] * BLOCK + within).flatten(1)
    remainder = torch.arange(whole, size_V, device=scores_RV.device).expand(len(scores_RV), -1)
    ids_RC = torch.cat([ids_RC, remainder], dim=1)
    return _select(scores_RV.gather(1, ids_RC), ids_RC, k)


def _select(scores_RC: Tensor, ids_RC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of R x C candidates by (score, lower id): one integer key orders both."""
    bits_RC = scores_RC.contiguous().view(torch.int32).to(torch.int64)
    # IEEE 754: the bits of non-negative floats are ordered as the floats, of negative ones the other way.
    ordered_RC = torch.where(bits_RC >= 0, bits_RC, -(bits_RC & 0x7FFFFFFF))
    places_Rk = (ordered_RC * (1 << 31) - ids_RC).topk(k, dim=1).indices
    return scores_RC.gather(1, places_Rk), ids_RC.gather(1, places_Rk)
