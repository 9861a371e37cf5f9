"""A tokenizer's own template, taken apart at the answers, in all the shapes such templates have."""

from __future__ import annotations

import pytest
from fusechat_stages import chat

from tests import tokenizers
from tests.chat_law import conversation, supervised_texts

TURNS = "{% for m in messages %}"
END = "{% endfor %}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TALK = conversation("Hi", " Hello ", "And?", "No")

STRIPS = TURNS + "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n" + END + ASK
SPACED = (  # Mixtral: no generation prompt, a space before and the end after the answer
    TURNS
    + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% endif %}"
    + "{% if m.role == 'assistant' %} {{ m.content }}<|im_end|>{% endif %}"
    + END
)
REASONING = (  # Qwen 3: an empty reasoning in the last answer only, and in the prompt
    TURNS + "<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n" + END + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
DATED = "{{ '<|user|>Today is Monday.\n' }}" + STRIPS
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + STRIPS
SHOUTS = TURNS + "<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>\n" + END + ASK
PLAIN = (
    TURNS + "{{ m.role }}: {{ m.content }}\n" + END + "{% if add_generation_prompt %}assistant: {% endif %}"
)
SHOUTS_LATER = SHOUTS.replace("| upper", "| replace('No', 'NO')")


def own(template: str):
    return tokenizers.byte_level(chat_template=template)


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (tokenizers.CHATML, [b" Hello ", b"No"]),
        (STRIPS, [b"Hello", b"No"]),
        (DATED, [b"Hello", b"No"]),
        (SPACED, [b"  Hello ", b" No"]),
        (REASONING, [b"No"]),
    ],
)
def test_the_answers_are_found_in_the_templates_text(template, answers):
    tokenizer = own(template)
    assert supervised_texts(tokenizer, "auto", TALK) == answers
    told = chat.render(tokenizer, "auto", TALK, 1000)
    assert told.input_ids[: told.turns[-1].start] == chat.prompt_ids(tokenizer, "auto", TALK[:3])
    assert told.turns[-1].ordinal == 1


@pytest.mark.parametrize("template", [tokenizers.CHATML, STRIPS, DATED, SPACED, REASONING])
def test_the_ids_are_those_of_the_templates_whole_text(template):
    tokenizer = own(template)
    whole = tokenizer.apply_chat_template(TALK, tokenize=False, enable_thinking=False).rstrip("\n")
    assert tokenizer.decode(chat.render(tokenizer, "auto", TALK, 1000).input_ids) == whole


def test_a_template_that_rewrites_the_past_leaves_only_the_last_answer_supervised():
    tokenizer = own(REASONING)
    told = chat.render(tokenizer, "auto", TALK, 1000)
    assert [turn.ordinal for turn in told.turns] == [1]
    assert "</think>\n\nNo<|im_end|>" in tokenizer.decode(told.input_ids)
    assert tokenizer.decode(told.input_ids).count("<think>") == 1


def test_a_conversation_that_the_template_refuses_fails_alone():
    tokenizer = own(REFUSES)
    assert chat.render(tokenizer, "auto", TALK, 1000).reason is None
    system = [{"role": "system", "content": "x"}, *TALK]
    assert chat.render(tokenizer, "auto", system, 1000).reason == "templateRefuses"


def test_an_answer_that_the_template_changes_fails():
    assert chat.render(own(SHOUTS_LATER), "auto", TALK, 1000).reason == "templateChangesAnswer"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "template auto needs the tokenizer's own chat_template, and it has none"),
        (SHOUTS, "does not continue its own generation prompt"),
        ("{{ nothing.at.all }}", "chat_template cannot be rendered"),
        (PLAIN, "in which is no control token"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_refused_with_what_to_do(template, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        chat.render(own(template), "auto", TALK, 1000)
    assert "name" in str(raised.value) or "rendered" in str(raised.value)
