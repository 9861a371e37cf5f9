"""What a model makes of given answers: the cross-entropy of each conversation's supervised tokens.

Used by evaluate's perplexity. Knows a causal language model of transformers and conversations as
`chat.render` gives them; nothing of tokenizers, files or scores.

Shapes: B conversations of a batch, T positions, R supervised tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusechat_stages import models
from fusechat_stages.generation import batches

LOGITS_PER_CHUNK = 1 << 24
"""Logits that exist at one time: 64 MiB of float32."""


def conversation_nats(
    model: Any,
    conversations: Sequence[Any],
    *,
    tokens_per_batch: int,
    each: Callable[[int], object] = lambda done: None,
) -> list[float]:
    """Summed cross-entropy in nats of every conversation's supervised tokens, in the given order.

    Batches are of like lengths, padded on the right, at most `tokens_per_batch` positions; `each` is called
    with the number of conversations done after every one.
    """
    found = [0.0] * len(conversations)
    done = 0
    lengths = [len(conversation.input_ids) for conversation in conversations]
    for batch in batches(lengths, 0, tokens_per_batch):
        values = _batch_nats(model, [conversations[i] for i in batch])
        for i, value in zip(batch, values, strict=True):
            found[i] = value
        done += len(batch)
        each(done)
    return found


def _batch_nats(model: Any, conversations: Sequence[Any]) -> list[float]:
    ids_BT, supervised_BT = _padded(conversations)
    gold_R = ids_BT[supervised_BT].to(model.device)
    with torch.inference_mode():
        hidden_BTH = models.hidden_states(model, ids_BT.to(model.device))
        # The hidden state at t - 1 predicts token t; a prompt stands before every answer, so t is never 0.
        predicts_BT = supervised_BT.roll(-1, dims=1).to(hidden_BTH.device)
        ce_R = _cross_entropy(model, hidden_BTH[predicts_BT], gold_R).double().cpu()
    return [float(part.sum()) for part in ce_R.split(supervised_BT.sum(1).tolist())]


def _padded(conversations: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, T] and which of them are supervised [B, T]."""
    longest = max(len(conversation.input_ids) for conversation in conversations)
    ids_BT = torch.zeros(len(conversations), longest, dtype=torch.long)
    supervised_BT = torch.zeros(len(conversations), longest, dtype=torch.bool)
    for row, conversation in enumerate(conversations):
        ids_BT[row, : len(conversation.input_ids)] = torch.as_tensor(conversation.input_ids)
        for turn in conversation.turns:
            assert turn.start > 0, "a supervised token with nothing before it"
            supervised_BT[row, turn.start : turn.end] = True
    return ids_BT, supervised_BT


def _cross_entropy(model: Any, hidden_RH: torch.Tensor, gold_R: torch.Tensor) -> torch.Tensor:
    """Nats [R], the softmax in float32, a chunk of rows at a time."""
    rows = max(1, LOGITS_PER_CHUNK // model.config.get_text_config().vocab_size)
    parts = []
    for hidden_CH, gold_C in zip(hidden_RH.split(rows), gold_R.split(rows), strict=True):
        logits_CV = models.head_logits(model, hidden_CH).float()
        gold_C = gold_C.to(logits_CV.device)
        parts.append(torch.nn.functional.cross_entropy(logits_CV, gold_C, reduction="none"))
    return torch.cat(parts)
