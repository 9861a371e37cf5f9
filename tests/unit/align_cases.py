"""Blocks for the tests of align: what extract would write, with invented distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fusechat_stages import chat
from fusechat_stages.shards import Rows, RowsWriter, Turn

ANSWERS = (
    ("How are you today?", "I am fine, thank you! The quick brown fox jumps over the lazy dog."),
    ("code?", "\ndef add(a, b):\n    return a + b\n"),
    ("zh", "你好，世界。naïve café 🙂🙃 done"),
    ("empty", ""),
    ("spaces", "  leading spaces  and   more \t tabs"),
    ("digits", "1234567890 + 3 * (4 - 5) / 6 = x"),
)


def conversations(answers: Sequence[tuple[str, str]] = ANSWERS) -> list[list[dict[str, str]]]:
    """One conversation for each answer, and one with all of them as turns."""
    single = [_messages([pair]) for pair in answers]
    return [*single, _messages(answers)]


def _messages(pairs: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    roles = [("user", "assistant")] * len(pairs)
    return [
        {"role": role, "content": text}
        for names, texts in zip(roles, pairs, strict=True)
        for role, text in zip(names, texts, strict=True)
    ]


def write_block(
    path: Path,
    tokenizer: Any,
    template: str,
    talks: Sequence[Sequence[Mapping[str, str]]],
    *,
    k: int = 6,
    seed: int = 0,
    scores: str = "logprobs",
    max_length: int = 4096,
    only: Sequence[int] | None = None,
) -> Rows:
    """A block of `talks` (or of those at the places `only`) with random kept tokens, mostly the gold one."""
    writer = RowsWriter(path, k=k, meta={"scores": scores, "vocab": len(tokenizer), "profile": "Corrected"})
    rng = np.random.default_rng(seed)
    for index, messages in enumerate(talks):
        found = chat.render(tokenizer, template, messages, max_length)
        if found.reason is not None or (only is not None and index not in only):
            continue
        ids = np.array(found.input_ids)
        turns = [Turn(turn.start, turn.end, turn.ordinal, turn.answer_bytes) for turn in found.turns]
        gold = np.concatenate([ids[turn.start : turn.end] for turn in turns])
        kept, masses, tail = random_rows(rng, gold, len(tokenizer), k)
        values = np.log(masses) if scores == "logprobs" else np.log(masses) + rng.normal(0, 3, (len(gold), 1))
        writer.append(
            f"sample-{index}",
            index,
            ids,
            turns,
            topk_ids=kept,
            scores=values,
            tail=tail,
            ce=rng.exponential(2.0, len(gold)),
            end_byte=np.array(found.end_bytes),
        )
    return writer.close()


def random_rows(
    rng: np.random.Generator, gold: np.ndarray, vocabulary: int, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids [R, k] distinct in a row, probabilities [R, k] falling, tail [R]); a row sums to 1."""
    kept = np.array([rng.permutation(vocabulary)[:k] for _ in gold])
    absent = ~(kept == gold[:, None]).any(axis=1) & (rng.random(len(gold)) < 0.9)
    kept[absent, 0] = gold[absent]
    parts = rng.dirichlet(np.full(k + 1, 0.7), len(gold)) + 1e-4
    parts /= parts.sum(axis=1, keepdims=True)
    masses = -np.sort(-parts[:, :k], axis=1)
    return kept, masses, parts[:, k]


def probabilities(aligned: Any, row: int) -> dict[int, float]:
    """{pivot id: probability} of one aligned row of log-probabilities."""
    ids, scores = aligned.topk_ids[row], aligned.scores[row].astype(np.float64)
    return {int(i): float(np.exp(score)) for i, score in zip(ids, scores, strict=True) if i >= 0}
