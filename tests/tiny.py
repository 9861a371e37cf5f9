"""A whole fusion small enough for a test: real models, real tokenizers of both kinds, a few conversations.

Used by tests/pipeline. Random weights from seeds: nothing is learned from them but that every stage runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

WORDS = [
    "red",
    "blue",
    "green",
    "one",
    "two",
    "three",
    "cat",
    "dog",
    "bird",
    "sky",
    "sun",
    "ümlaut",
    "你好",
    "x=1",
]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SHAPES = {"num_key_value_heads": 2, "max_position_embeddings": 256}


def build(folder: Path, *, samples: int = 24, questions: int = 12) -> Path:
    """Models `pivot`, `a`, `b`, `c`, a dataset and questions below `folder`; returns run.yaml."""
    from tests import tokenizers

    spm, bpe = tokenizers.sentencepiece(), tokenizers.byte_level()
    _model(folder / "pivot", "llama", spm, 0)
    _model(folder / "a", "qwen2", bpe, 1)
    _model(folder / "b", "gpt_neox", bpe, 2)
    _model(folder / "c", "llama", spm, 3)
    conversations = [_conversation(i) for i in range(samples)]
    (folder / "data.jsonl").write_text("".join(json.dumps(c) + "\n" for c in conversations))
    asked = [
        {"id": f"q{i}", "question": f"say {WORDS[i % 9]}", "answer": WORDS[i % 9]} for i in range(questions)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in asked))
    return write_run(folder, ["a", "b"])


def write_run(folder: Path, sources: list[str], **spec: Any) -> Path:
    """A FusionRun of those sources; `spec` is laid over its fields."""
    run = {
        "apiVersion": "fusechat.io/v1alpha1",
        "kind": "FusionRun",
        "metadata": {"name": "small"},
        "spec": {
            "pivot": {"name": "pivot", "uri": "file://./pivot"},
            "sources": [{"name": name, "uri": f"file://./{name}"} for name in sources],
            "dataset": {"uri": "file://./data.jsonl"},
            "extract": {"maxLength": 96, "dtype": "float32"},
            "fuse": {"epochs": 1, "globalBatch": 8, "learningRate": 1e-3, "dtype": "float32"},
            "controls": ["SFT"],
            "evaluate": {"exactMatch": {"uri": "file://./questions.jsonl", "maxNewTokens": 8}},
            **spec,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run, sort_keys=False))
    return path


def _conversation(i: int) -> dict[str, Any]:
    said = [WORDS[(i * k) % len(WORDS)] for k in (1, 3, 5, 7)]
    turns = [("human", f"say {said[0]} and {said[1]}"), ("gpt", f"{said[0]}, then {said[1]}.\nDone")]
    turns += [("human", f"now {said[2]}"), ("gpt", f"{said[2]} {said[3]}")] if i % 2 else []
    return {"id": f"c{i}", "conversations": [{"from": who, "value": text} for who, text in turns]}


def _model(folder: Path, family: str, tokenizer: Any, seed: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    shapes = {} if family == "gpt_neox" else SHAPES
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **SIZES, **shapes)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = None
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
