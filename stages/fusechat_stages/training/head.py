"""The model's own head and the loss, in chunks of rows, inside one module's forward.

`Fusion` is what the loop trains and what FSDP shards at its root: backbone, head and loss run in its forward,
for a head called from outside of it would see sharded parameters. The [rows, V] logits never exist whole:
each gradient is computed where its loss is (in closed form, by `numerics.losses`), then the chunk is freed.

Knows no family of models: soft-caps and logit scales are kept because the model's own forward computes every
chunk (`models.head_logits`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fusechat_stages import models
from fusechat_stages.numerics.losses import fusion_loss_, lm_loss_
from fusechat_stages.training.batches import Batch

CHUNK_ELEMENTS = 1 << 24
"""Logits of one chunk (rows * V): 64 MiB in float32."""

Head = Callable[[torch.Tensor], torch.Tensor]


class Fusion(nn.Module):
    """A causal language model whose forward takes a `Batch` and gives (loss, sums of both terms)."""

    def __init__(self, model: nn.Module, chunk_elements: int = CHUNK_ELEMENTS) -> None:
        super().__init__()
        self.model = model
        self.chunk_elements = chunk_elements

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """loss: float32 scalar, already scaled; sums: float32[2], LM and fusion summed over the rows."""
        hidden_BTH = models.hidden_states(self.model, batch.input_ids_BT)
        hidden_RH = hidden_BTH.flatten(0, 1).index_select(0, batch.rows_R)
        chunk = max(1, self.chunk_elements // self.model.config.get_text_config().vocab_size)
        parameters = head_parameters(self.model, models.backbone(self.model))
        return _HeadLoss.apply(hidden_RH, self._head, batch, chunk, *parameters)

    def _head(self, hidden_CH: torch.Tensor) -> torch.Tensor:
        return models.head_logits(self.model, hidden_CH)


def head_parameters(model: nn.Module, backbone: nn.Module) -> list[nn.Parameter]:
    """Parameters the head may use: those outside of the backbone, a tied embedding included."""
    found: dict[int, nn.Parameter] = {}
    for child in model.children():
        if child is not backbone:
            found |= {id(p): p for p in child.parameters()}
    found |= {id(p): p for p in model.parameters(recurse=False)}
    return list(found.values())


class _HeadLoss(torch.autograd.Function):
    """Loss over all rows; the gradients of hidden states and head are computed in the forward, by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden_RH: torch.Tensor, head: Head, batch: Batch, chunk: int, *parameters: nn.Parameter
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sums = torch.zeros(2, device=hidden_RH.device)
        grad_RH = torch.empty_like(hidden_RH)
        totals: list[torch.Tensor | None] = [None] * len(parameters)
        for start in range(0, len(hidden_RH), chunk):
            rows = slice(start, start + chunk)
            with torch.enable_grad():
                hidden_CH = hidden_RH[rows].detach().requires_grad_()
                logits_CV = head(hidden_CH)
            sums += _terms_(gradient_CV := logits_CV.detach().float(), batch, rows)
            grad_RH[rows], *grads = torch.autograd.grad(
                logits_CV, [hidden_CH, *parameters], gradient_CV.to(logits_CV.dtype), allow_unused=True
            )
            totals = [_added(t, g, chunk < len(hidden_RH)) for t, g in zip(totals, grads, strict=True)]
        ctx.grads = [
            grad_RH,
            *(t if t is None else t.to(p.dtype) for t, p in zip(totals, parameters, strict=True)),
        ]
        loss = batch.lm_scale * sums[0] + batch.fuse_scale * sums[1]
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, _: Any) -> tuple[Any, ...]:
        # Let go of our references: autograd then takes the tensors over instead of copying them.
        grads, ctx.grads = ctx.grads, None
        if grad_loss.device.type != "cpu" or grad_loss.item() != 1.0:
            grads = [g if g is None else g.mul_(grad_loss) for g in grads]
        return (grads[0], None, None, None, *grads[1:])


def _terms_(logits_CV: torch.Tensor, batch: Batch, rows: slice) -> torch.Tensor:
    """float32[2]; `logits_CV` becomes the gradient. In place even where it is the head's own output: autograd
    counts versions and raises, should a head ever save its last result for the backward."""
    gold_C = batch.gold_R[rows]
    if batch.teacher is None:
        lm = lm_loss_(logits_CV, gold_C, batch.lm_scale)
        return torch.stack([lm, torch.zeros_like(lm)])
    return torch.stack(fusion_loss_(logits_CV, gold_C, batch.teacher[rows], batch.lm_scale, batch.fuse_scale))


def _added(total: torch.Tensor | None, more: torch.Tensor | None, again: bool) -> torch.Tensor | None:
    """Sum over chunks, in float32 where there is more than one."""
    if more is None:
        return total
    if total is None:
        return more.float() if again else more
    return total.add_(more)
