"""Evaluation: our greedy decoding against transformers' `generate`, and the whole stage on 4,000 questions.

    python benchmarks/evaluate.py [--quick] [--write]

Model: a random Llama of 1 M parameters with 4,096 ids, as the examples use; at most 16 new tokens. The peer
decodes the same prompts in batches of 64 in their own order, which is how `generate` is commonly called, and,
as the fairer comparison, in our batches.
"""

from __future__ import annotations

import json
import os
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
from harness import Row, measure, publish, quick, ratio
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

QUESTIONS, COMPARED, NEW_TOKENS, BUDGET, PEER_BATCH = 4000, 1000, 16, 16384, 64
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
        load = os.getloadavg()[0]
        rows, lengths = decoding(folder / "model", records[:COMPARED])
        rows.append(stage(folder, count))
    publish("evaluate", rows, [
        f"Questions of {min(lengths)} to {max(lengths)} prompt tokens (mean "
        f"{sum(lengths) / len(lengths):.0f}), float32, {torch.get_num_threads()} thread(s), medians of 3.",
        f"Load average of the machine before the first run: {load:.1f}.",
        f"Compared on {len(lengths)} of them; both sides gave the same answers.",
    ])  # fmt: skip


def decoding(model_folder: Path, records: Sequence[dict[str, Any]]) -> tuple[list[Row], list[int]]:
    """Tokens per second of the two on one set of prompts, and the prompts' lengths."""
    tokenizer, model = load_tokenizer(model_folder), load_model(model_folder, "float32")
    prompts = [chat.prompt_ids(tokenizer, TEMPLATE, record["messages"]) for record in records]
    lengths = [len(prompt) for prompt in prompts]
    order = list(range(len(prompts)))
    common = [order[i : i + PEER_BATCH] for i in range(0, len(order), PEER_BATCH)]
    own = list(batches(lengths, NEW_TOKENS, BUDGET))
    stop = chat.stop_ids(tokenizer, TEMPLATE)
    # A random model never ends its answers: with one id in eight as a stop they end after 7 tokens or so.
    often = stop | set(random.Random(2).sample(range(len(tokenizer)), len(tokenizer) // 8))
    cases = [
        ("answers that end, batches of 64 in the data's order", often, common),
        ("answers that end, our batches", often, own),
        (f"all answers {NEW_TOKENS} tokens, our batches", stop, own),
    ]
    return [_compared(model, prompts, *case) for case in cases], lengths


def _compared(
    model: Any, prompts: list[list[int]], what: str, stop: set[int], cut: Sequence[Sequence[int]]
) -> Row:
    def ours() -> list[list[int]]:
        found = greedy(model, prompts, stop_ids=stop, max_new_tokens=NEW_TOKENS, tokens_per_batch=BUDGET)
        return [answer.ids for answer in found]

    want = ours()
    new = sum(map(len, want))
    assert generate(model, prompts, stop, cut) == want, "the peer answers otherwise"
    mine, theirs = measure(ours), measure(lambda: generate(model, prompts, stop, cut))
    speeds = [f"{new / took.median:,.0f} tokens/s ({took})" for took in (theirs, mine)]
    met = theirs.median >= mine.median
    return Row(
        f"greedy decoding against generate: {what}", *speeds, ratio(mine.median, theirs.median), ">= 1x", met
    )


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
    began = time.process_time()
    took = measure(lambda: run_local("evaluate", params, inputs, folder / f"out{next(numbers)}"))
    cpu = (time.process_time() - began) / 3
    met = None if quick() else took.median < BAR_SECONDS
    ours = f"{took}, {cpu:.1f} CPU s"
    return Row(f"stage evaluate, {count} questions", "-", ours, "-", f"< {BAR_SECONDS:g} s", met)


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
