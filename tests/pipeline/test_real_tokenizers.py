"""The published vocabularies under every template: the law, the ids others assert, and the release's own."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fusechat_stages import chat
from hypothesis import assume, given, settings

from tests import real_tokenizers
from tests.chat_law import TEXTS, assert_lawful, conversation

TEMPLATES = [*chat.TEMPLATES, "auto"]
NORMALISE = ("qwen2", "qwen3")
"""Vocabularies whose tokenizer changes text (NFC): such an answer fails, and must."""


@cache
def built(name: str) -> Any:
    try:
        return real_tokenizers.REAL[name]()
    except real_tokenizers.Unavailable as error:
        return error


def real(name: str) -> Any:
    found = built(name)
    if isinstance(found, Exception):
        pytest.skip(str(found))
    return found


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", real_tokenizers.REAL)
def test_supervised_tokens_are_the_rendered_answer_and_its_end(name, template):
    tokenizer = real(name)
    if template == "auto" and not tokenizer.chat_template:
        pytest.skip("this vocabulary's package has no chat template")

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(question=TEXTS, first=TEXTS, second=TEXTS)
    def law(question, first, second):
        told = chat.render(tokenizer, template, conversation(question, first, "and then?", second), 100_000)
        if name in NORMALISE:
            assume(told.reason != "tokenizerChangesText")
        assert_lawful(tokenizer, template, question, first, second)

    law()


@pytest.mark.parametrize("name", real_tokenizers.REAL)
def test_the_bytes_of_all_tokens_are_known(name):
    tokenizer = real(name)
    known, special = chat.token_bytes(tokenizer), chat.special_ids(tokenizer)
    assert len(known) == max(tokenizer.get_vocab().values()) + 1
    assert {i for i, piece in enumerate(known) if not piece} == special
    text = "Hello, wörld!  你好 👍🏽\n\n\tdef f(x): return x\n"
    assert (
        b"".join(known[i] for i in tokenizer(text, add_special_tokens=False).input_ids).strip()
        == text.strip().encode()
    )


_USER, _BOT = [420, 6316, 28781, 3198, 3123, 1247, 28747], [420, 6316, 28781, 3198, 3123, 21631, 28747]
HELLO = [1, *_USER, 22557, 32000, *_BOT]
TODAY = [*HELLO, 15359, 32000, *_USER, 1602, 460, 368, 3154, 28804, 32000, *_BOT]


@pytest.mark.parametrize("template", ["openchat_3.5", "auto"])
def test_openchat_gives_the_ids_that_fusechats_readme_asserts(template):
    tokenizer = real("openchat")
    messages = conversation("Hello", "Hi", "How are you today?")
    assert chat.prompt_ids(tokenizer, template, messages[:1]) == HELLO
    assert chat.prompt_ids(tokenizer, template, messages) == TODAY
    told = chat.render(tokenizer, template, messages, 1000)
    assert told.input_ids == [*HELLO, 15359, 32000]
    assert (told.turns, told.end_bytes) == ((chat.Turn(17, 19, 0, 2),), [2, 3])


def test_mixtral_gives_the_ids_of_mistrals_own_encoder():
    messages = conversation("Hello", "Hi", "And you?")
    wanted = [1, 733, 16289, 28793, 22557, 733, 28748, 16289, 28793, 15359, 2]
    assert chat.render(real("mistral v1"), "mistral", messages[:2], 100).input_ids == wanted
    assert chat.prompt_ids(real("mistral v1"), "mistral", messages)[:14] == [*wanted, 733, 16289, 28793]


IDS = {
    ("llama3.1", "llama-3"): [
        128000, 128006, 882, 128007, 271, 9906, 128009, 128006, 78191, 128007, 271, 13347, 128009,
    ],
    ("gemma3", "gemma"): [2, 105, 2364, 107, 9259, 106, 107, 105, 4368, 107, 10979, 106],
    ("qwen2", "yi"): [151644, 872, 198, 9707, 151645, 198, 151644, 77091, 198, 13048, 151645],
}  # fmt: skip


@pytest.mark.parametrize(("name", "template"), IDS)
def test_a_model_under_its_own_template_gives_the_ids_it_was_trained_on(name, template):
    told = chat.render(real(name), template, conversation("Hello", "Hi"), 1000)
    assert told.input_ids == IDS[name, template]


@pytest.mark.parametrize(
    ("name", "template"), [("llama3.1", "llama-3"), ("gemma3", "gemma"), ("openchat", "openchat_3.5")]
)
def test_a_named_template_is_the_models_own(name, template):
    messages = conversation("Hi there ", "  Hello\n", "你好?", "Fine.")
    assert chat.render(real(name), template, messages, 1000) == chat.render(
        real(name), "auto", messages, 1000
    )


GOLDEN = {"openchat_qwen": "qwen2", "openchat_solar": None}
SPOKEN = re.compile(r"GPT4 Correct (User|Assistant): ?(.*?)(?=<\|end_of_turn\|>|$)", re.DOTALL)


@pytest.mark.parametrize("case", GOLDEN)
def test_published_gives_the_ids_of_the_release(case, shared: Path):
    pivot, source = real("openchat"), GOLDEN[case] and real(GOLDEN[case])
    samples = json.loads((shared / "golden" / "align" / f"{case}.json").read_text())["samples"]
    for sample in samples:
        messages = spoken(pivot.decode(sample["base_ids"]))
        whole = sample["base_ids"][-1] == pivot.eos_token_id
        found = chat.render(pivot, "openchat_3.5", messages, 512).input_ids
        assert_same(found, sample["base_ids"], whole)
        if source is not None:
            spec = {"name": "openchat_3.5", "endOfTurn": "model"}
            found = chat.render(source, spec, messages, 512).input_ids
            assert_same(found, sample["blend_ids"], whole)


def spoken(text: str) -> list[dict[str, str]]:
    turns = SPOKEN.findall(text.removeprefix("<s>"))
    return [{"role": role.lower(), "content": content} for role, content in turns]


def assert_same(found: list[int], wanted: list[int], whole: bool) -> None:
    """The same ids; where the release cut the pivot's text, only up to about where that cut lies."""
    length = len(wanted) if whole else min(len(found), len(wanted)) - 2
    assert length > 50
    assert found[:length] == wanted[:length]
    assert not whole or len(found) == len(wanted)
