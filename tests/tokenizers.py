"""Tokenizers for tests: small ones trained on the spot, of every kind that chat models have.

`byte_level()` (GPT-2, Llama 3, Qwen) and `sentencepiece()` (Llama 2, Mistral, Gemma: a word marker, byte
fallback) are cheap (some 10 ms) and deterministic. `KINDS` names the variants whose quirks have broken chat
masks before. Published vocabularies: `tests.real_tokenizers`, for tests/pipeline only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "The quick brown fox jumps over the lazy dog. How are you today? I am fine, thank you!",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n",
    "Hello there, what does this mean? It means that the answer is forty-two.",
    "user assistant system GPT4 Correct User: Assistant: [INST] [/INST]",
    "你好，世界。今天天气很好。 こんにちは 안녕하세요 Привет, как дела? naïve café",
    "  leading spaces\n\n\nand line breaks\n   1234567890 + 3 * (4 - 5) / 6 = x",
)
CONTROL = (
    "<|im_start|>", "<|im_end|>", "<|end_of_turn|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|user|>",
    "<|assistant|>",
)  # fmt: skip
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def byte_level(
    vocab_size: int = 512,
    *,
    texts: Sequence[str] = TEXTS,
    control: Sequence[str] = CONTROL,
    bos: str | None = None,
    eos: str = "<|im_end|>",
    normalizer: Any = None,
    add_prefix_space: bool = False,
    chat_template: str | None = CHATML,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as Llama 3's and Qwen's. With `bos`, it is put before every text."""
    backend = Tokenizer(models.BPE())
    if normalizer is not None:
        backend.normalizer = normalizer
    if add_prefix_space:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    else:
        split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return _finish(backend, control, bos=bos, eos=eos, unk=None, chat_template=chat_template)


def sentencepiece(
    vocab_size: int = 640,
    *,
    texts: Sequence[str] = TEXTS,
    control: Sequence[str] = CONTROL,
    bos: str | None = "<s>",
    eos: str = "</s>",
    prefix: str = "always",
    byte_fallback: bool = True,
    rstrip: bool = False,
    chat_template: str | None = CHATML,
) -> PreTrainedTokenizerFast:
    """A BPE tokenizer with a word marker, as converted from SentencePiece.

    `prefix`: "always" puts a marker before every stretch between control tokens (Llama 2, Mistral v1),
    "first" at the start of the text only, "never" nowhere (Gemma). `rstrip`: control tokens swallow the
    whitespace behind them (Phi-3). Without `byte_fallback`, unknown characters become <unk>.
    """
    specials = ["<unk>", *([bos] if bos else []), eos]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁\n]+|▁+|\n"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*specials, *fallback], show_progress=False, limit_alphabet=120
    )
    trained.train_from_iterator([" " + text.replace("\n", "") for text in texts], trainer)
    backend = Tokenizer(
        models.BPE(*_learned(trained), unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback)
    )
    if prefix == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        before = [normalizers.Prepend("▁")] if prefix == "always" else []
        backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    strip = [] if prefix == "never" else [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return _finish(
        backend,
        [*specials, *control],
        bos=bos,
        eos=eos,
        unk="<unk>",
        chat_template=chat_template,
        rstrip=rstrip,
    )


KINDS: dict[str, Any] = {
    "byte-level": byte_level,
    "byte-level with bos": lambda: byte_level(bos="<|begin_of_text|>", eos="<|eot_id|>"),
    "byte-level, prefixed": lambda: byte_level(add_prefix_space=True),
    "byte-level, NFC": lambda: byte_level(normalizer=normalizers.NFC()),
    "marker always": sentencepiece,
    "marker first": lambda: sentencepiece(prefix="first"),
    "marker never": lambda: sentencepiece(prefix="never"),
    "marker, swallowing": lambda: sentencepiece(rstrip=True),
    "marker, no bytes": lambda: sentencepiece(byte_fallback=False),
    "no control tokens": lambda: sentencepiece(control=(), bos=None, chat_template=None),
}
"""Variants by what sets them apart; each is a function without arguments."""


def _learned(trained: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def _finish(
    backend: Tokenizer,
    control: Sequence[str],
    *,
    bos: str | None,
    eos: str,
    unk: str | None,
    chat_template: str | None,
    rstrip: bool = False,
) -> PreTrainedTokenizerFast:
    named = [token for token in (bos, eos) if token and token not in control]
    backend.add_special_tokens(
        [AddedToken(text, normalized=False, special=True, rstrip=rstrip) for text in [*control, *named]]
    )
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, backend.token_to_id(bos))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer
