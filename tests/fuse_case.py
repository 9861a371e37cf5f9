"""A small fusion to test with: a pivot, its extract, sources aligned to it, and their selections, as folders.

The rows are random but consistent (a distribution's kept part and tail sum to one), the models real and tiny.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from fusechat_stages.shards import (
    EMPTY,
    MAPPED,
    Aligned,
    Rows,
    RowsWriter,
    Turn,
    block_name,
    read_rows,
    write_aligned,
)

V, K = 48, 5

RECIPE = {
    "profile": "Corrected", "strategy": "Pairwise", "loss": "ce", "lmWeight": 0.9, "temperature": 1.0,
    "choice": "MinCE", "withPivot": True, "epochs": 1, "learningRate": 1e-2, "scheduler": "cosine",
    "warmupRatio": 0.1, "weightDecay": 0.0, "globalBatch": 8, "maxLength": 64, "seed": 7, "dtype": "float32",
    "maxGradNorm": 1.0,
}  # fmt: skip
RUNTIME = {"microBatch": 4, "processes": 1, "gradientCheckpointing": False, "checkpointSeconds": 600}


@dataclass(frozen=True)
class Case:
    """Input folders by role, as `run_local` takes them."""

    root: Path
    sources: int

    @property
    def control(self) -> dict[str, Path]:
        return {"model": self.root / "model", "pivot": self.root / "pivot"}

    def inputs(self, *sources: int) -> dict[str, Path]:
        found = self.control
        for n, source in enumerate(sources or range(self.sources)):
            found[f"aligned.{n}"] = self.root / f"aligned{source}"
            found[f"selection.{n}"] = self.root / f"selection{source}"
        return found


def make_case(
    root: Path,
    *,
    samples: int = 24,
    block: int = 16,
    sources: int = 1,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    scores: str = "logprobs",
    seed: int = 0,
) -> Case:
    """Build it all under `root`; blocks of `block` samples, so that there is more than one."""
    make_pivot(root / "model", tied=tied, dtype=dtype, seed=seed)
    rng = np.random.default_rng(seed)
    for number, first in enumerate(range(0, samples, block)):
        count = min(block, samples - first)
        rows = make_rows(root / "pivot", number, first, count, rng, scores)
        for source in range(sources):
            make_aligned(root, source, number, rows, rng, scores)
    return Case(root, sources)


def make_pivot(
    folder: Path, *, tied: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> None:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=V + 4, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied, max_position_embeddings=128,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(V)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w3"))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "w2", "bos_token": "w1"}))
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")


def make_rows(
    folder: Path, number: int, first: int, count: int, rng: np.random.Generator, scores: str
) -> Rows:
    """A block of conversations of 8 to 30 tokens with one or two supervised turns."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / block_name(number)
    writer = RowsWriter(path, k=K, meta={"scores": scores, "vocab": V, "profile": "test"})
    for s in range(first, first + count):
        length = int(rng.integers(8, 31))
        turns = [Turn(4, length, 0, 10)]
        if length > 20:
            turns = [Turn(4, 9, 0, 10), Turn(14, length, 1, 10)]
        rows = sum(t.end - t.start for t in turns)
        ids, values, tail = distribution(rows, rng, scores)
        writer.append(
            f"s{s}", s, rng.integers(3, V, length), turns,
            topk_ids=ids, scores=values, tail=tail, ce=np.ones(rows), end_byte=np.arange(rows),
        )  # fmt: skip
    writer.close()
    return read_rows(path)


def distribution(
    rows: int, rng: np.random.Generator, scores: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits = torch.from_numpy(3 * rng.standard_normal((rows, V)))
    logprobs, ids = torch.log_softmax(logits, -1).topk(K)
    kept = logprobs if scores == "logprobs" else logits.gather(-1, ids)
    return ids.numpy(), kept.numpy(), (1 - logprobs.exp().sum(-1)).numpy()


def make_aligned(
    root: Path, source: int, number: int, rows: Rows, rng: np.random.Generator, scores: str
) -> None:
    """A source's block: one row in six empty, one slot in five free, its mass among the unmapped."""
    count = len(rows.topk_ids)
    ids, values, tail = (a.copy() for a in distribution(count, rng, scores))
    free = rng.random(ids.shape) < 0.2
    unmapped = np.where(free, np.exp(values), 0).sum(1) if scores == "logprobs" else np.zeros(count)
    kind = np.where(rng.random(count) < 1 / 6, EMPTY, MAPPED).astype(np.uint8)
    free |= (kind == EMPTY)[:, None]
    ids[free], values[free] = -1, -np.inf
    samples = rows.samples
    block = Aligned(
        rows.ids, rows.index, rows.row_offsets, ids.astype(np.int32), values.astype(np.float16),
        tail.astype(np.float32), unmapped.astype(np.float32), kind,
        rng.random(samples).astype(np.float32), rng.random(samples).astype(np.float32), dict(rows.meta),
    )  # fmt: skip
    for name in (f"aligned{source}", f"selection{source}"):
        (root / name).mkdir(parents=True, exist_ok=True)
    write_aligned(root / f"aligned{source}" / block_name(number), block)
    kept = [s for s in range(samples) if (s + source) % 7]
    selection = {"kept": kept, "dropped": {"noRows": [s for s in range(samples) if s not in kept]}}
    (root / f"selection{source}" / block_name(number, "json")).write_text(json.dumps(selection))
