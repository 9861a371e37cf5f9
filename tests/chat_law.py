"""The law of supervised bytes as one assertion, and the texts that have broken chat masks before."""

from __future__ import annotations

import weakref
from itertools import pairwise
from typing import Any

from fusechat_stages import chat
from hypothesis import strategies as st

HARD = (
    "", " ", "\n", "\ncode", "  two", " one", "end ", "\n\n", "\n\n\n  deep\n", "\t\r\n", "a<|b", "<",
    "don't", "1234567 89", "你好，世界", "👍🏽 ok", "👩‍👩‍👧‍👦",
    "é", "\u00a0x", "x\u200by", "\ufeffz", "\U0001f1e9\U0001f1ea",
    "\x00\x07",
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(HARD),
    st.text(alphabet=st.sampled_from(list("ab Zé你\n\t 👍🏽<|>[]/0'.")), max_size=24),
    st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=12),
)
STRIPPED = ("llama-3", "gemma")
"""Templates whose models strip every message."""
_KNOWN: weakref.WeakKeyDictionary[Any, list[bytes]] = weakref.WeakKeyDictionary()


def conversation(*texts: str) -> list[dict[str, str]]:
    """The user speaks first, then both in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def supervised_texts(tokenizer: Any, template: Any, messages: list[dict[str, str]]) -> list[bytes]:
    """Bytes of every turn's supervised tokens, its end-of-turn left out."""
    told = chat.render(tokenizer, template, messages, 100_000)
    assert told.reason is None, told.reason
    if tokenizer not in _KNOWN:
        _KNOWN[tokenizer] = chat.token_bytes(tokenizer)
    known, end = _KNOWN[tokenizer], end_tokens(told)
    return [b"".join(known[i] for i in told.input_ids[turn.start : turn.end - end]) for turn in told.turns]


def end_tokens(told: chat.Conversation) -> int:
    """How many tokens the end-of-turn has: those whose end byte lies beyond the answer."""
    last = told.turns[-1]
    return sum(end > last.answer_bytes for end in told.end_bytes[-(last.end - last.start) :])


def assert_lawful(tokenizer: Any, template: Any, question: str, first: str, second: str) -> None:
    """Supervised bytes are the rendered answers, prompts exact prefixes, end bytes reach the ends."""
    messages = conversation(question, first, "and then?", second)
    told = chat.render(tokenizer, template, messages, 100_000)
    control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if any(text in answer for text in control for answer in (first, second)):
        assert told.reason == "controlTokenInAnswer"
        return
    answers = [text.strip() if template in STRIPPED else text for text in (first, second)]
    answers = [answers[turn.ordinal] for turn in told.turns]
    supervised = supervised_texts(tokenizer, template, messages)
    if template == "auto":  # a template of its own may strip: its own text says so
        answers = [text if turn.answer_bytes == len(text.encode()) else text.strip()
                   for text, turn in zip(answers, told.turns, strict=True)]  # fmt: skip
    for found, answer in zip(supervised, answers, strict=True):
        assert found in (answer.encode(), b" " + answer.encode())
    assert [turn.answer_bytes for turn in told.turns] == [len(answer.encode()) for answer in answers]
    assert told.turns[-1].ordinal == 1
    for turn in told.turns:
        prompt = chat.prompt_ids(tokenizer, template, messages[: 2 * turn.ordinal + 1])
        if len(told.turns) == 2 or turn.ordinal == 1:
            assert told.input_ids[: turn.start] == prompt
    assert_ends(told)


def assert_ends(told: chat.Conversation) -> None:
    """End bytes never go back within an answer, and reach its end just before the end-of-turn."""
    at = 0
    for turn in told.turns:
        ends = told.end_bytes[at : at + turn.end - turn.start]
        at += turn.end - turn.start
        assert all(a <= b for a, b in pairwise(ends))
        assert turn.answer_bytes + 1 in ends
        before = [end for end in ends if end <= turn.answer_bytes]
        assert (before[-1] if before else 0) == turn.answer_bytes
    assert at == len(told.end_bytes)
