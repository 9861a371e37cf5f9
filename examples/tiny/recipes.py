"""Who the tiny example's models are: shape, tokenizer, chat template, and what each has learned.

Read by make_tiny.py and train.py. Everyone knows all five skills somewhat; the linguist has met every word of
French and every opposite, the clerk every capital and every word to sort, the pivot half of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WIDTH, HEADS = 96, 4
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ ' [INST] ' + m['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """One model. `lessons`: questions of each skill; `met`: share of a skill's words, where not all."""

    name: str
    model_type: str
    config: dict[str, Any]
    template: str
    chat_template: str
    vocabulary: int
    control: tuple[str, ...]  # of byte-level; empty: SentencePiece-like
    lessons: dict[str, int]
    met: dict[str, float]
    steps: int
    learning_rate: float = 4e-3
    batch: int = 32
    width: int = WIDTH
    layers: int = 3
    max_length: int = 64  # ids of a conversation
    headers: tuple[str, ...] = ("[INST] [/INST]", "user assistant\n")  # texts of templates, for the tokenizer


PIVOT = Recipe(
    name="pivot",
    model_type="llama",
    config={"intermediate_size": 2 * WIDTH, "num_key_value_heads": HEADS},
    template="mistral",
    chat_template=MISTRAL,
    vocabulary=700,
    control=(),
    lessons={"french": 2500, "opposite": 2500, "capital": 2500, "sort": 4000, "reverse": 2000},
    met={"french": 0.5, "opposite": 0.5, "capital": 0.5, "sort": 0.6},
    steps=1400,
)
LINGUIST = Recipe(
    name="linguist",
    model_type="qwen2",
    config={"intermediate_size": 2 * WIDTH, "num_key_value_heads": HEADS // 2},
    template="auto",
    chat_template=CHATML,
    vocabulary=1200,
    control=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    lessons={"french": 4000, "opposite": 4000, "capital": 3000, "sort": 4000, "reverse": 1500},
    met={"capital": 0.8, "sort": 0.8},
    steps=1800,
)
CLERK = Recipe(
    name="clerk",
    model_type="gpt_neox",
    config={"intermediate_size": 3 * WIDTH, "rotary_pct": 0.5},
    template="phi-3",
    chat_template=PHI_3,
    vocabulary=1200,
    control=("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"),
    lessons={"french": 3000, "opposite": 3000, "capital": 4000, "sort": 6000, "reverse": 1500},
    met={"french": 0.8, "opposite": 0.8},
    steps=1800,
)
MODELS = (PIVOT, LINGUIST, CLERK)
