"""The law of supervised bytes, for every template and every kind of tokenizer, and what breaks it."""

from __future__ import annotations

from functools import cache

import pytest
from fusechat_stages import chat
from hypothesis import given, settings

from tests import tokenizers
from tests.chat_law import TEXTS, assert_lawful, conversation, supervised_texts

BUILT = cache(lambda kind: tokenizers.KINDS[kind]())
LAWFUL = [kind for kind in tokenizers.KINDS if kind not in ("marker, no bytes", "byte-level, NFC")]


@pytest.mark.parametrize("template", [*chat.TEMPLATES, "auto"])
@pytest.mark.parametrize("kind", LAWFUL)
@settings(max_examples=12, deadline=None)
@given(question=TEXTS, first=TEXTS, second=TEXTS)
def test_supervised_tokens_are_the_rendered_answer_and_its_end(kind, template, question, first, second):
    tokenizer = BUILT(kind)
    if template == "auto" and not tokenizer.chat_template:
        pytest.skip("a tokenizer without a template of its own")
    assert_lawful(tokenizer, template, question, first, second)


GOLDEN = {
    "openchat_3.5": "<s>GPT4 Correct System: Be brief.<|end_of_turn|>GPT4 Correct User: Hi<|end_of_turn|>"
    "GPT4 Correct Assistant: Yo <|end_of_turn|>GPT4 Correct User: And?<|end_of_turn|>"
    "GPT4 Correct Assistant: No<|end_of_turn|>",
    "mistral": "<s> [INST] Be brief.\n\nHi [/INST] Yo </s> [INST] And? [/INST] No</s>",
    "llama-3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYo"
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nNo<|eot_id|>",
    "phi-3": "<s><|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nYo <|end|>\n"
    "<|user|>\nAnd?<|end|>\n<|assistant|>\nNo<|end|>",
    **dict.fromkeys(
        ("qwen", "internlm2", "yi", "auto"),
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYo <|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
        "<|im_start|>assistant\nNo<|im_end|>",
    ),
}


@pytest.mark.parametrize("template", [*GOLDEN])
def test_every_template_writes_the_text_its_model_was_trained_on(template):
    tokenizer = tokenizers.sentencepiece(prefix="never")
    messages = [{"role": "system", "content": "Be brief."}, *conversation("Hi", "Yo ", "And?", "No")]
    ids = chat.render(tokenizer, template, messages, 1000).input_ids
    wanted = GOLDEN[template].removeprefix("<s>" if template == "auto" else "")
    assert tokenizer.decode(ids) == wanted


def test_gemma_writes_turns_of_user_and_model():
    tokenizer = tokenizers.sentencepiece(prefix="never", bos="<bos>")
    ids = chat.render(tokenizer, "gemma", conversation(" Hi ", " Yo "), 1000).input_ids
    wanted = "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn>"
    assert tokenizer.decode(ids) == wanted


def test_qwen_adds_its_default_system_message_and_internlm2_none():
    tokenizer = BUILT("byte-level")
    messages = conversation("Hi", "Yo")
    qwen = tokenizer.decode(chat.render(tokenizer, "qwen", messages, 1000).input_ids)
    assert qwen.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi")
    internlm2 = tokenizer.decode(chat.render(tokenizer, "internlm2", messages, 1000).input_ids)
    assert internlm2.startswith("<|im_start|>user\nHi")


def test_an_answer_that_begins_with_a_line_break_does_not_melt_into_the_header():
    texts = (*tokenizers.TEXTS, "a\n\nb\n\nc\n\nd\n\n" * 20)
    tokenizer = tokenizers.byte_level(texts=texts)
    messages = conversation("Hi", "\ncode")
    whole = tokenizer("<|im_start|>assistant\n\ncode", add_special_tokens=False).input_ids
    assert "ĊĊ" in tokenizer.convert_ids_to_tokens(whole), "the case needs a token of two line breaks"
    told = chat.render(tokenizer, "internlm2", messages, 1000)
    assert told.input_ids[: told.turns[0].start] == chat.prompt_ids(tokenizer, "internlm2", messages[:1])
    assert supervised_texts(tokenizer, "internlm2", messages) == [b"\ncode"]


@pytest.mark.parametrize("kind", LAWFUL)
def test_a_single_prompt_is_what_the_tokenizer_gives_for_the_whole_text(kind):
    tokenizer = BUILT(kind)
    text = "GPT4 Correct User: How are you?<|end_of_turn|>GPT4 Correct Assistant:"
    assert (
        chat.prompt_ids(tokenizer, "openchat_3.5", conversation("How are you?")) == tokenizer(text).input_ids
    )


@pytest.mark.parametrize(("bos", "text"), [("<|begin_of_text|>", ""), (None, "")])
def test_there_is_one_beginning_of_text_token_where_the_tokenizer_puts_one(bos, text):
    tokenizer = tokenizers.byte_level(bos=bos)
    ids = chat.prompt_ids(tokenizer, "llama-3", conversation("Hi"))
    assert tokenizer.decode(ids).count("<|begin_of_text|>") == (1 if bos else 0)


def test_mistral_puts_one_space_before_its_instruction_whatever_the_tokenizer_adds():
    wanted = chat.prompt_ids(BUILT("marker always"), "mistral", conversation("Hi", "Yo", "And?"))
    assert chat.prompt_ids(BUILT("marker first"), "mistral", conversation("Hi", "Yo", "And?")) == wanted


def test_the_separator_may_be_replaced_by_the_sources_end_token():
    tokenizer = BUILT("byte-level")
    spec = {"name": "openchat_3.5", "endOfTurn": "model"}
    text = tokenizer.decode(chat.render(tokenizer, spec, conversation("Hi", "Yo"), 1000).input_ids)
    assert text == "GPT4 Correct User: Hi<|im_end|>GPT4 Correct Assistant: Yo<|im_end|>"
    assert chat.stop_ids(tokenizer, spec) == {tokenizer.eos_token_id}
    named = {"name": "openchat_3.5", "endOfTurn": "<|im_end|>"}
    assert chat.render(tokenizer, named, conversation("Hi", "Yo"), 1000) == chat.render(
        tokenizer, spec, conversation("Hi", "Yo"), 1000
    )


def test_generation_stops_at_the_end_of_turn_and_at_the_end_of_text():
    tokenizer = tokenizers.byte_level(bos="<|begin_of_text|>", eos="<|end_of_text|>")
    ends = {tokenizer.convert_tokens_to_ids("<|eot_id|>"), tokenizer.eos_token_id}
    assert chat.stop_ids(tokenizer, "llama-3") == ends
    split = BUILT("no control tokens")
    assert chat.stop_ids(split, "llama-3") == {split.eos_token_id}


@pytest.mark.parametrize("max_length", [1, 5, 12, 13, 14, 20, 30, 1000])
def test_truncation_keeps_a_prefix_and_says_so_when_nothing_is_left(max_length):
    tokenizer = BUILT("byte-level")
    messages = conversation("Hi", "a longer answer", "And?", "No")
    full = chat.render(tokenizer, "yi", messages, 1000)
    told = chat.render(tokenizer, "yi", messages, max_length)
    if max_length <= full.turns[0].start:
        assert told.reason == "beyondMaxLength"
        return
    assert told.input_ids == full.input_ids[:max_length]
    assert all(turn.end <= max_length and turn.start < turn.end for turn in told.turns)
    assert [t.answer_bytes for t in told.turns] == [t.answer_bytes for t in full.turns[: len(told.turns)]]
    assert told.end_bytes == full.end_bytes[: sum(t.end - t.start for t in told.turns)]


FAILURES = [
    ("marker, no bytes", "openchat_3.5", conversation("Hi", "👍"), "unknownCharacter"),
    ("byte-level, NFC", "openchat_3.5", conversation("Hi", "e\u0301"), "tokenizerChangesText"),
    ("byte-level", "openchat_3.5", conversation("Hi", "so <|im_end|> ends it"), "controlTokenInAnswer"),
    ("marker always", "openchat_3.5", conversation("Hi", "a\u2581b"), "tokenizerChangesText"),
    (
        "marker never",
        "gemma",
        [{"role": "system", "content": "x"}, *conversation("Hi", "Yo")],
        "systemMessage",
    ),
    ("byte-level", "qwen", conversation("Hi"), "noAnswer"),
    ("byte-level", "qwen", [], "noAnswer"),
    ("byte-level", "qwen", conversation("Hi", "Yo")[1:], "rolesDoNotAlternate"),
    ("byte-level", "auto", conversation("Hi", "Yo")[1:], "rolesDoNotAlternate"),
]


@pytest.mark.parametrize(("kind", "template", "messages", "reason"), FAILURES)
def test_a_conversation_that_breaks_the_law_fails_with_its_reason(kind, template, messages, reason):
    told = chat.render(BUILT(kind), template, messages, 1000)
    assert told == chat.Conversation([], (), [], reason)
    assert reason in chat.REASONS


def test_an_unknown_template_is_named_with_what_could_be_meant():
    with pytest.raises(
        ValueError, match=r"template 'llama-4' is not known, expected auto or one of openchat_3\.5"
    ):
        chat.render(BUILT("byte-level"), "llama-4", conversation("Hi", "Yo"), 10)


def test_the_tokenizers_own_template_takes_no_other_end():
    with pytest.raises(ValueError, match="profile Published needs the pivot's template by name"):
        chat.render(BUILT("byte-level"), {"name": "auto", "endOfTurn": "model"}, conversation("Hi", "Yo"), 10)


def test_a_prompt_must_end_with_the_user_and_be_writable():
    with pytest.raises(ValueError, match="the last message must be the user's"):
        chat.prompt_ids(BUILT("byte-level"), "qwen", conversation("Hi", "Yo"))
    system = [{"role": "system", "content": "x"}, *conversation("Hi")]
    with pytest.raises(ValueError, match="refuses system messages"):
        chat.prompt_ids(BUILT("marker never"), "gemma", system)
