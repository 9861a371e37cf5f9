"""Evaluation: our greedy decoding against transformers' `generate`, and the whole stage on 4,000 questions.

    python benchmarks/evaluate.py [--quick] [--write]

Model: a random Llama of 1.1 M parameters with 4,096 ids, as the examples use; its answers are as long as they
are allowed to be (16 tokens). The peer decodes the same prompts in batches of 64 in their own order, which is
how `generate` is commonly called, and, as the fairer comparison, in our batches.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fusechat_stages import chat
from fusechat_stages.entry import run_local
from fusechat_stages.generation import batches, greedy
from fusechat_stages.models import load_model, load_tokenizer
from harness import Row, measure, publish, quick
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

QUESTIONS, NEW_TOKENS, BUDGET, PEER_BATCH = 4000, 16, 16384, 64
BAR_SECONDS = 8.0
TEMPLATE = "qwen"
SENTENCE = "add reverse sort count the words letters numbers of in a b c please what is how many and then"
WORDS = SENTENCE.split()


def main() -> None:
    count = 200 if quick() else QUESTIONS
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_model(folder / "model")
        records = make_questions(folder / "questions", count)
        rows = [*decoding(folder / "model", records), stage(folder, count)]
    publish("evaluate", rows, [
        f"{count} questions of 20 to 60 prompt tokens, {NEW_TOKENS} new tokens each, float32, "
        f"{torch.get_num_threads()} threads; medians of three runs.",
        "Both sides gave the same answers (compared before anything was timed).",
    ])  # fmt: skip


def decoding(model_folder: Path, records: Sequence[dict[str, Any]]) -> list[Row]:
    """Tokens per second of the two, on one set of prompts."""
    tokenizer, model = load_tokenizer(model_folder), load_model(model_folder, "float32")
    prompts = [chat.prompt_ids(tokenizer, TEMPLATE, record["messages"]) for record in records]
    stop = chat.stop_ids(tokenizer, TEMPLATE)
    order = list(range(len(prompts)))
    common = [order[i : i + PEER_BATCH] for i in range(0, len(order), PEER_BATCH)]
    sorted_ = list(batches([len(p) for p in prompts], NEW_TOKENS, BUDGET))

    def ours() -> list[list[int]]:
        found = greedy(model, prompts, stop_ids=stop, max_new_tokens=NEW_TOKENS, tokens_per_batch=BUDGET)
        return [answer.ids for answer in found]

    want = ours()
    new = sum(len(ids) for ids in want)
    assert generate(model, prompts, stop, sorted_) == want, "the peer answers otherwise"
    mine = measure(ours)
    rows = []
    for what, cut in (("batches of 64 in the data's order", common), ("in our own batches", sorted_)):
        theirs = measure(lambda cut=cut: generate(model, prompts, stop, cut))
        rows.append(
            Row(
                f"greedy decoding against generate, {what}",
                f"{new / theirs.median:,.0f} tokens/s ({theirs})",
                f"{new / mine.median:,.0f} tokens/s ({mine})",
                f"{theirs.median / mine.median:.2f}x",
                ">= 1x",
                theirs.median >= mine.median,
            )
        )
    return rows


def generate(
    model: Any, prompts: Sequence[list[int]], stop: set[int], cut: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The peer: transformers' generate with left padding and its cache."""
    found: list[list[int]] = [[]] * len(prompts)
    for batch in cut:
        longest = max(len(prompts[i]) for i in batch)
        ids = torch.tensor([[0] * (longest - len(prompts[i])) + prompts[i] for i in batch])
        mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in batch])
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=sorted(stop),
            pad_token_id=0,
        )
        for i, row in zip(batch, out[:, longest:].tolist(), strict=True):
            found[i] = row[: next((t for t, token in enumerate(row) if token in stop), len(row))]
    return found


def stage(folder: Path, count: int) -> Row:
    """The stage as the runner starts it, imports aside: loading, prompts, decoding, scoring, writing."""
    params = {"benchmark": "exactMatch", "template": TEMPLATE, "dtype": "float32", "maxNewTokens": NEW_TOKENS}
    inputs = {"model": folder / "model", "questions": folder / "questions"}
    numbers = iter(range(100))
    took = measure(lambda: run_local("evaluate", params, inputs, folder / f"out{next(numbers)}"))
    met = None if quick() else took.median < BAR_SECONDS
    return Row(f"stage evaluate, {count} questions", "-", str(took), "-", f"< {BAR_SECONDS:g} s", met)


def make_model(folder: Path) -> None:
    """A byte-level tokenizer of 4,096 ids and a random model over it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    draw = random.Random(0)
    texts = ["".join(draw.choice("etaoinshrdlu ") for _ in range(400)) for _ in range(200)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *WORDS], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[0])
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=112, intermediate_size=304, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=512,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(fast)} ids")
    model.save_pretrained(folder)


def make_questions(folder: Path, count: int) -> list[dict[str, Any]]:
    draw = random.Random(1)
    records = []
    for i in range(count):
        text = " ".join(draw.choice(WORDS) for _ in range(draw.randint(2, 16)))
        record = {"id": str(i), "messages": [{"role": "user", "content": text}], "answer": "x"}
        records.append({**record, "category": "abcd"[i % 4]})
    folder.mkdir()
    (folder / "block-00000.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"({time.perf_counter() - started:.0f} s in all)")
