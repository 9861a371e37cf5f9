"""Text, tokenizers and extract blocks for the benchmarks of align. Not a benchmark itself.

Real vocabularies (OpenChat-3.5's 32,002 and Qwen's 151,669) are read from the folder $FUSECHAT_TOKENIZERS
with `openchat/` and `qwen3/`, each with a tokenizer.json; the shared folder's README says where to get them.
Without it small tokenizers are trained on the spot, and rows whose bar is about the size are not judged.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fusechat_stages import chat, models  # noqa: E402
from fusechat_stages.shards import Rows, RowsWriter, Turn  # noqa: E402

from tests.conftest import find_shared  # noqa: E402
from tests.tokenizers import TEXTS, byte_level, sentencepiece  # noqa: E402

TOP_K = 10
ANY_END = {"name": "openchat_3.5", "endOfTurn": "model"}


@dataclass(frozen=True)
class Pair:
    """A pivot's and a source's tokenizer; `real` where they are published ones."""

    pivot: Any
    source: Any
    real: bool


def tokenizers() -> Pair:
    """OpenChat's and Qwen's if the machine has them."""
    folder = os.environ.get("FUSECHAT_TOKENIZERS")
    if folder:
        return Pair(*(models.load_tokenizer(Path(folder) / name) for name in ("openchat", "qwen3")), True)
    return Pair(sentencepiece(2000, texts=_texts()), byte_level(4000, texts=_texts()), False)


def _texts() -> list[str]:
    return [*TEXTS, *(answer for _, answer in conversations()[:200])]


def conversations() -> list[tuple[str, str]]:
    """(instruction, answer) pairs: AlpacaEval's 805 with GPT-4's answers, else invented sentences."""
    shared = find_shared()
    if shared is not None:
        rows = json.loads((shared / "alpaca_eval" / "alpaca_eval_gpt4_baseline.json").read_text())
        return [(row["instruction"], row["output"]) for row in rows]
    rng = np.random.default_rng(0)
    words = " ".join(TEXTS).split()
    return [(" ".join(rng.choice(words, 20)), " ".join(rng.choice(words, 300))) for _ in range(400)]


def block(path: Path, tokenizer: Any, template: Any, talks: list[tuple[str, str]], *, scores: str) -> Rows:
    """One block as extract writes it (max length 2048): kept tokens drawn from the text's own, gold first."""
    writer = RowsWriter(path, k=TOP_K, meta={"scores": scores, "vocab": len(tokenizer), "profile": "-"})
    rng = np.random.default_rng(0)
    falling = np.log(np.array([0.55, 0.15, 0.08, 0.05, 0.03, 0.02, 0.015, 0.01, 0.008, 0.007]))
    rendered = [chat.render(tokenizer, template, _messages(*talk), 2048) for talk in talks]
    common = np.concatenate([np.array(talk.input_ids) for talk in rendered if talk.turns])
    for index, talk in enumerate(rendered):
        if not talk.turns:
            continue
        ids = np.array(talk.input_ids)
        turns = [Turn(turn.start, turn.end, turn.ordinal, turn.answer_bytes) for turn in talk.turns]
        gold = np.concatenate([ids[turn.start : turn.end] for turn in turns])
        kept = rng.choice(common, (len(gold), TOP_K))
        kept[:, 0] = gold
        writer.append(
            f"sample-{index}", index, ids, turns, topk_ids=kept,
            scores=np.broadcast_to(falling, kept.shape), tail=np.full(len(gold), 0.08),
            ce=np.full(len(gold), 0.6), end_byte=np.array(talk.end_bytes),
        )  # fmt: skip
    return writer.close()


def _messages(instruction: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": instruction}, {"role": "assistant", "content": answer}]
