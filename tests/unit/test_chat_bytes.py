"""The canonical bytes of tokens: joined, they are the text again."""

from __future__ import annotations

from functools import cache

import pytest
from fusechat_stages.token_bytes import special_ids, token_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from tests import tokenizers

BUILT = cache(lambda kind: tokenizers.KINDS[kind]())
WHOLE = [kind for kind in tokenizers.KINDS if kind not in ("marker, no bytes", "byte-level, NFC")]


@pytest.mark.parametrize("kind", WHOLE)
@settings(max_examples=25, deadline=None)
@given(
    text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=30)
)
def test_the_bytes_of_a_texts_tokens_are_the_text(kind, text):
    tokenizer = BUILT(kind)
    known = token_bytes(tokenizer)
    found = b"".join(known[i] for i in tokenizer(text, add_special_tokens=False).input_ids)
    assert found in (text.encode(), b" " + text.encode())


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_control_tokens_have_no_bytes_and_every_other_token_has_some(kind):
    tokenizer = BUILT(kind)
    known, special = token_bytes(tokenizer), special_ids(tokenizer)
    assert len(known) == len(tokenizer)
    assert tokenizer.eos_token_id in special
    assert {i for i, piece in enumerate(known) if piece == b""} == special


def test_a_text_token_that_was_added_stands_for_its_text():
    tokenizer = tokenizers.byte_level()
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("two words", special=False)])
    known = token_bytes(tokenizer)
    assert known[tokenizer.convert_tokens_to_ids("<think>")] == b"<think>"
    assert known[tokenizer.convert_tokens_to_ids("two words")] == b"two words"


def test_a_byte_fallback_token_is_its_byte_and_the_marker_a_space():
    tokenizer = tokenizers.sentencepiece()
    known = token_bytes(tokenizer)
    assert known[tokenizer.convert_tokens_to_ids("<0xF0>")] == b"\xf0"
    assert known[tokenizer.convert_tokens_to_ids("▁▁")] == b"  "


def test_ids_that_no_token_has_are_empty():
    tokenizer = tokenizers.byte_level()
    holes = set(range(len(token_bytes(tokenizer)))) - set(tokenizer.get_vocab().values())
    assert all(token_bytes(tokenizer)[i] == b"" for i in holes)
