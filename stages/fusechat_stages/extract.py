"""extract: one model's next-token distributions over the answers of a dataset, block by block.

Params: profile, template, topK, maxLength, dtype, scores ("logits" | "logprobs"). Inputs: model, dataset.
Runtime: tokensPerBatch, device. Block artifact: `block-XXXXX.arrow` (shards.Rows) for every dataset block.

Conversations become ids and supervised spans (chat), those without a supervised token are dropped before
the forward and counted by reason, the rest is batched by length under a token budget. The head runs in
chunks over the supervised rows only; what leaves the device is K ids and scores, tail and loss of a row.

Profile Published stores what the release does: scores are the logits in float16 (exact for a bf16 model
below 65,504) and a row's loss is rounded to float16, of which MinCE takes the mean over the model's own
tokens. Corrected stores log-probabilities and float32 losses.

Values do not depend on what a sample is batched with, beyond rounding: right padding under causal
attention needs no mask. Batches are made from the block alone, so the same host gives the same bytes for
the same tokensPerBatch; another one may change the last bits.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fusechat_stages import chat, models, shards
from fusechat_stages.artifacts import Input, Output, Stopped
from fusechat_stages.scorer import Recipe, Sample, Scorer

VERSION = 1


@dataclass
class Work:
    """A block on its way: its samples in the dataset's order, and what was dropped, by reason."""

    block: int
    samples: list[Sample]
    dropped: Counter[str] = field(default_factory=Counter)


def run(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Output) -> None:
    """Extract this shard's blocks. ValueError for a model, template or dataset that cannot be used."""
    recipe = Recipe.of(params)
    dataset = inputs["dataset"]
    names = sorted(name for name in dataset.names() if name.startswith("block-") and name.endswith(".jsonl"))
    if not names:
        raise ValueError("the dataset has no blocks (block-00000.jsonl ...); fetch it again")
    folder = inputs["model"].folder(models.needed)
    tokenizer = models.load_tokenizer(folder)

    def read(block: int) -> Work:
        return render_block(dataset.path(names[block]), block, tokenizer, recipe)

    progress = Progress(out, int(dataset.metrics.get("samples", len(names) * shards.BLOCK_SAMPLES)))
    scorer: Scorer | None = None
    for work in ahead(out.blocks(len(names)), read):
        if scorer is None:
            scorer = Scorer.load(folder, tokenizer, recipe, out.runtime)
            out.deterministic = scorer.device.type == "cpu"
        progress.start(work.block)
        path, metrics = score(scorer, work, progress, out.folder)
        out.publish_block(work.block, {path.name: path}, metrics)


def score(scorer: Scorer, work: Work, progress: Progress, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The block's file and metrics. What the block took in memory is free again when this returns."""
    readable = [sample for sample in work.samples if scorer.can_read(sample)]
    work.dropped["tokenBeyondModel"] += len(work.samples) - len(readable)
    work.samples.clear()
    rows = scorer.score(readable, progress)
    path = folder / shards.block_name(work.block)
    shards.write_rows(path, rows)
    return path, block_metrics(rows, work)


def summarise(sums: dict[str, Any]) -> dict[str, Any]:
    """The artifact's metrics. ValueError if no conversation of the whole dataset could be used."""
    if not sums.get("samples"):
        reasons = ", ".join(
            f"{count} {reason} ({chat.REASONS.get(reason, reason)})"
            for reason, count in sums.get("dropped", {}).items()
        )
        raise ValueError(
            "no conversation of the dataset has a supervised token under this template: "
            f"{reasons or 'it is empty'}; choose another template, a larger maxLength or another dataset"
        )
    return {**sums, "cePerToken": sums["ce"] / sums["rows"]}


def block_metrics(rows: shards.Rows, work: Work) -> dict[str, Any]:
    """What a block adds to the artifact's metrics."""
    return {
        "samples": rows.samples,
        "tokens": len(rows.input_ids),
        "rows": len(rows.ce),
        "nonFinite": int((~np.isfinite(rows.ce)).sum()),
        "ce": float(np.nansum(rows.ce, dtype=np.float64)),
        "dropped": {reason: n for reason, n in sorted(work.dropped.items()) if n},
    }


def render_block(path: Path, block: int, tokenizer: Any, recipe: Recipe) -> Work:
    """Read a dataset block and render its conversations."""
    work = Work(block, [])
    with path.open(encoding="utf-8") as lines:
        for n, line in enumerate(lines):
            record = json.loads(line)
            told = chat.render(tokenizer, recipe.template, record["messages"], recipe.max_length)
            if told.reason is None:
                work.samples.append(Sample.of(record["id"], block * shards.BLOCK_SAMPLES + n, told))
            else:
                work.dropped[told.reason] += 1
    return work


def ahead(blocks: Iterator[int], read: Callable[[int], Work]) -> Iterator[Work]:
    """Read each block while the one before it is computed."""
    with ThreadPoolExecutor(1) as pool:
        pending: Future[Work] | None = None
        for block in blocks:
            following = pool.submit(read, block)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


class Progress:
    """How far this shard is, in samples of the dataset."""

    def __init__(self, out: Output, samples: int) -> None:
        self._out, (self._index, self._shards) = out, out.shard
        blocks = range(self._index, -(-samples // shards.BLOCK_SAMPLES), self._shards)
        self._total = sum(min(shards.BLOCK_SAMPLES, samples - b * shards.BLOCK_SAMPLES) for b in blocks)
        self._block, self._done, self._tokens, self._started = 0, 0, 0, time.monotonic()
        self._from: int | None = None

    def start(self, block: int) -> None:
        self._block, self._done = block, block // self._shards * shards.BLOCK_SAMPLES
        self._from = self._done if self._from is None else self._from

    def __call__(self, samples: int, tokens: int) -> None:
        """A batch is done. Stopped if SIGTERM came."""
        if self._out.stopping:
            raise Stopped(f"stopped within block {self._block}; the finished blocks are kept")
        self._done += samples
        self._tokens += tokens
        rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
        facts = {"from": self._from, "tokensPerSecond": round(rate)}
        self._out.progress(min(self._done, self._total), self._total, "samples", **facts)
