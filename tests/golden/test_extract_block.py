"""The bytes of a block of rows: what other versions of this code will read.

If this fails on purpose, raise `shards.VERSION` (and extract's and align's), then write the file anew:
`python -m tests.golden.test_extract_block`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fusechat_stages import chat, shards

from tests import tokenizers

GOLDEN = Path(__file__).with_name("extract_block.arrow")
TALKS = (
    ("Hello", "Hi there"),
    ("1 + 1?", " 2\n"),
    ("你好", "👍🏽 好"),
    ("", ""),
    ("Say hello", "Hello", "Again", "\nHello"),
)


def write(path: Path) -> shards.Rows:
    """Conversations under a small tokenizer, with scores that every machine computes alike."""
    tokenizer = tokenizers.sentencepiece()
    writer = shards.RowsWriter(path, k=3, meta={"scores": "logprobs", "vocab": 603, "profile": "Corrected"})
    for n, texts in enumerate(TALKS):
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        told = chat.render(tokenizer, "openchat_3.5", messages, 40)
        ends = np.array(told.end_bytes, dtype=np.int32)
        gold_R = np.concatenate([told.input_ids[turn.start : turn.end] for turn in told.turns])
        writer.append(
            f"talk-{n}",
            n,
            np.array(told.input_ids),
            [shards.Turn(t.start, t.end, t.ordinal, t.answer_bytes) for t in told.turns],
            topk_ids=gold_R[:, None] + np.arange(3),
            scores=np.tile(np.float16([-0.5, -1.5, -3.25]), (len(ends), 1)),
            tail=np.full(len(ends), 0.125, np.float32),
            ce=np.float32(0.5) + ends.astype(np.float32) / 4,
            end_byte=ends,
        )
    return writer.close()


def test_a_block_has_the_bytes_it_always_had(tmp_path):
    write(tmp_path / "block.arrow")
    assert (tmp_path / "block.arrow").read_bytes() == GOLDEN.read_bytes()


def test_a_block_of_old_reads_as_it_was_written(tmp_path):
    read, written = shards.read_rows(GOLDEN), write(tmp_path / "block.arrow")
    assert read.ids == written.ids == [f"talk-{n}" for n in range(5)]
    for name in ("input_ids", "turn_start", "turn_end", "turn_bytes", "topk_ids", "scores", "ce", "end_byte"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert read.turn_ordinal.tolist() == [0, 0, 0, 0, 0, 1]
    assert read.turn_bytes.tolist() == [8, 3, 12, 0, 5, 6]
    assert read.end_byte[:4].tolist() == [1, 2, 7, 8]


if __name__ == "__main__":
    write(GOLDEN)
