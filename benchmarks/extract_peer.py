"""FuseChat's extractor restated from its published flags, as the peer of benchmarks/extract.py.

Every text is padded to the maximum length; whole logits of every position, top-k and loss of all of them;
nested lists into Arrow. It is given float32 logits: fewer conversions than the release makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from fusechat_stages import chat


def original(
    model: Any, tokenizer: Any, records: list[dict], length: int, path: Path, batch: int = 4
) -> None:
    """The release's extraction: pad to the maximum, all logits, top-k and loss of every position, lists."""
    schema, loss = None, torch.nn.CrossEntropyLoss(reduction="none")
    sink = writer = None
    for first in range(0, len(records), batch):
        told = [
            chat.render(tokenizer, "openchat_3.5", r["messages"], length)
            for r in records[first : first + batch]
        ]
        ids_BT, labels_BT, mask_BT = padded(told, length)
        values, ids, ce = original_batch(model, loss, ids_BT, labels_BT, mask_BT)
        table = pa.table({
            "input_ids": ids_BT.tolist(), "labels": labels_BT.tolist(), "attention_mask": mask_BT.tolist(),
            "per_step_logits": nested(values.half().numpy()), "per_step_indices": nested(ids.int().numpy()),
            "metric_ce": ce.tolist(),
        })  # fmt: skip
        if writer is None:
            schema, sink = table.schema, pa.OSFile(str(path), "wb")
            writer = pa.ipc.new_stream(sink, schema)
        writer.write_table(table.cast(schema))
    assert writer is not None
    assert sink is not None
    writer.close()
    sink.close()


def original_batch(
    model: Any, loss: Any, ids_BT: torch.Tensor, labels_BT: torch.Tensor, mask_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits
        ce = loss(logits_BTV[:, :-1].reshape(-1, logits_BTV.shape[-1]), labels_BT[:, 1:].reshape(-1))
        ce = ce.view(len(ids_BT), -1).sum(1) / (labels_BT[:, 1:] >= 0).sum(1)
        values, ids = logits_BTV.topk(10)
    return values, ids, ce


def padded(told: list[chat.Conversation], length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids_BT, labels_BT = (
        torch.zeros((len(told), length), dtype=torch.long),
        torch.full((len(told), length), -100),
    )
    mask_BT = torch.zeros_like(ids_BT)
    for b, c in enumerate(told):
        ids_BT[b, : len(c.input_ids)] = torch.tensor(c.input_ids)
        mask_BT[b, : len(c.input_ids)] = 1
        for turn in c.turns:
            labels_BT[b, turn.start : turn.end] = ids_BT[b, turn.start : turn.end]
    return ids_BT, labels_BT, mask_BT


def nested(values: np.ndarray) -> list[list[np.ndarray]]:
    """[B, T, K] as lists of lists, what `datasets` is handed."""
    return [list(sample) for sample in values]
