"""Train one tiny chat model from nothing and save it as any chat model is: safetensors, tokenizer, template.

Called by make_tiny.py, one process a model. The conversations are written by `fusechat_stages.chat`, as they
are when the model is asked. One thread, one seed: the same bytes on the same machine.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import vocab
from fusechat_stages import chat
from recipes import HEADS, Recipe
from tasks import known, mixture
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

WARM_UP_STEPS = 50
REPORT_STEPS = 500


def make(recipe: Recipe, folder: Path, seed: int) -> str:
    """Train `recipe` into `folder`; a line that says how it went."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    started = time.monotonic()
    scope = {skill: known(skill, share, f"{seed} {recipe.name}") for skill, share in recipe.met.items()}
    examples = mixture(recipe.lessons, "train", f"{seed} {recipe.name}", scope)
    tokenizer = _tokenizer(recipe, seed)
    line = teach(recipe, tokenizer, [(x.question, x.answer) for x in examples], folder, seed)
    return f"{line}, {time.monotonic() - started:.0f} s"


def teach(recipe: Recipe, tokenizer: Any, lessons: Sequence[tuple[str, str]], folder: Path, seed: int) -> str:
    """A new model of the recipe's shape learns to answer `lessons` (question, answer) and is saved."""
    model = _model(recipe, tokenizer, seed)
    loss = fit(model, encode(tokenizer, recipe, lessons), recipe, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    return (
        f"{recipe.name}: {recipe.model_type}, {size:.2f} M parameters, {len(tokenizer)} ids, "
        f"{recipe.steps} steps, loss {loss:.3f}"
    )


def fit(model: Any, encoded: Sequence[tuple[list[int], int]], recipe: Recipe, seed: int) -> float:
    """AdamW on the answers' tokens, cosine from `recipe.learning_rate`; mean loss of the last 50 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01, betas=(0.9, 0.98))
    batches, losses = _batches(encoded, recipe.batch, random.Random(seed)), []
    model.train()
    for step in range(recipe.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1, (step + 1) / WARM_UP_STEPS) * cosine
        loss = _loss(model, *_pad(next(batches)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % REPORT_STEPS == 0 and step + 1 < recipe.steps:
            print(f"{recipe.name}: step {step + 1} of {recipe.steps}, loss {losses[-1]:.3f}", flush=True)
    return sum(losses[-50:]) / 50


def _tokenizer(recipe: Recipe, seed: int) -> Any:
    """Trained on questions and answers about all words, as a vocabulary made for everyone's text would be."""
    shown = mixture(dict.fromkeys(recipe.lessons, 600), "train", f"{seed} vocabulary")
    texts = [*recipe.headers * 100, *(text for x in shown for text in (x.question, x.answer, " " + x.answer))]
    if recipe.control:
        return vocab.byte_level(texts, recipe.vocabulary, recipe.control, recipe.chat_template)
    return vocab.sentencepiece(texts, recipe.vocabulary, recipe.chat_template)


def _model(recipe: Recipe, tokenizer: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        recipe.model_type,
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=HEADS,
        max_position_embeddings=4 * recipe.max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        **recipe.config,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float()


def encode(tokenizer: Any, recipe: Recipe, lessons: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """(ids, where the answer begins) of every lesson. ValueError for one that the template cannot write."""
    encoded = []
    for question, answer in lessons:
        said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        told = chat.render(tokenizer, recipe.template, said, recipe.max_length)
        if told.reason:
            raise ValueError(
                f"{question!r} cannot be written in template {recipe.template}: {told.reason}; leave it out"
            )
        (turn,) = told.turns
        encoded.append((told.input_ids[: turn.end], turn.start))
    return encoded


def _batches(encoded: Sequence[Any], size: int, rng: random.Random) -> Iterator[list[Any]]:
    order = list(range(len(encoded)))
    while True:
        rng.shuffle(order)
        for begin in range(0, len(order) - size + 1, size):
            yield [encoded[i] for i in order[begin : begin + size]]


def _pad(batch: Sequence[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    """ids_BT padded with 0, and which of them are answers."""
    longest = max(len(ids) for ids, _ in batch)
    ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    answer_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, (ids, start) in enumerate(batch):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        answer_BT[row, start : len(ids)] = True
    return ids_BT, answer_BT


def _loss(model: Any, ids_BT: Tensor, answer_BT: Tensor) -> Tensor:
    hidden_BTH = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    hidden_RH = hidden_BTH[:, :-1][answer_BT[:, 1:]]
    return functional.cross_entropy(model.get_output_embeddings()(hidden_RH), ids_BT[answer_BT])
