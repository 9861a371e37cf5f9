"""Small tokenizers of both kinds that chat models have, trained on the spot. Used by train.py.

`byte_level`: as GPT-2's, Qwen's, Llama 3's. `sentencepiece`: a word marker and byte fallback, as Llama 2's
and Mistral's. Same texts in, same tokenizer out. Knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


def byte_level(texts: Sequence[str], size: int, control: Sequence[str], chat_template: str) -> Any:
    """At most `size` ids; the last of the `control` tokens ends a turn and a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(control), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return _finish(backend, control, chat_template, eos=control[-1])


def sentencepiece(texts: Sequence[str], size: int, chat_template: str) -> Any:
    """At most `size` ids, <unk>, <s>, </s> and 256 bytes among them; <s> is put before every text."""
    control = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    words = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = words
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[*control, *fallback], show_progress=False)
    trained.train_from_iterator(texts, trainer)
    # Built anew from what was learned: the trainer makes control tokens of the 256 bytes, which are text.
    learned = json.loads(trained.to_str())["model"]
    merges = [(first, second) for first, second in learned["merges"]]
    backend = Tokenizer(
        models.BPE(learned["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.pre_tokenizer = words
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    begin = ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[begin]
    )
    return _finish(backend, control, chat_template, bos="<s>", eos="</s>", unk="<unk>")


def _finish(backend: Tokenizer, control: Sequence[str], chat_template: str, **named: str) -> Any:
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)
    tokenizer.chat_template = chat_template
    return tokenizer
