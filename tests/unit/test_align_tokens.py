"""What align learns from a tokenizer: pieces, end-of-turn, first tokens of bytes, decoded strings."""

import pytest
from fusechat_stages import align_tokens
from fusechat_stages.numerics.bytemap import NONE

from tests.tokenizers import KINDS, byte_level, sentencepiece


@pytest.mark.parametrize("kind", KINDS)
def test_first_tokens_are_what_the_tokenizer_makes_of_the_bytes_inside_a_text(kind):
    """Told by encoding them behind a word: the token after the word is the first of the bytes."""
    tokenizer = KINDS[kind]()
    known = align_tokens.vocabulary(tokenizer, "openchat_3.5" if kind == "no control tokens" else "qwen")
    find = align_tokens.first_tokens(tokenizer, known)
    for text in (" brown fox", " the", "\nprint", " 1234", " quick"):
        ids = tokenizer.backend_tokenizer.encode("x" + text, add_special_tokens=False).ids
        read = [b"".join(known.bytes[i] for i in ids[: n + 1]).lstrip(b" ") for n in range(len(ids))]
        if b"x" in read and b"".join(known.bytes[i] for i in ids).endswith(text.encode()):
            assert find([text.encode()]) == [ids[read.index(b"x") + 1]], text


@pytest.mark.parametrize(
    ("name", "make", "text", "want"),
    [
        ("half a character", sentencepiece, b"\xe4\xbd", b"\xe4"),
        ("half a character behind a space", sentencepiece, b" \xe4\xbd", b" "),
        ("a whole one that has no piece", sentencepiece, "\N{PILE OF POO}".encode(), b"\xf0"),
        ("half a character, by bytes", byte_level, b"\xf0\x9f", b"\xf0"),
    ],
)
def test_bytes_that_are_no_text_go_to_their_longest_prefix(name, make, text, want):
    tokenizer = make()
    known = align_tokens.vocabulary(tokenizer, "qwen")
    found = align_tokens.first_tokens(tokenizer, known)([text])[0]
    assert known.bytes[found] == want, name


def test_bytes_that_the_vocabulary_cannot_begin_go_nowhere():
    tokenizer = sentencepiece(byte_fallback=False)
    known = align_tokens.vocabulary(tokenizer, "qwen")
    assert align_tokens.first_tokens(tokenizer, known)([b"\x07"]) == [NONE]


@pytest.mark.parametrize("kind", ["marker always", "byte-level"])
@pytest.mark.parametrize(
    ("template", "end"), [("openchat_3.5", "<|end_of_turn|>"), ("qwen", "<|im_end|>"), ("auto", "<|im_end|>")]
)
def test_the_end_of_turn_is_the_templates(kind, template, end):
    tokenizer = KINDS[kind]()
    known = align_tokens.vocabulary(tokenizer, template)
    assert known.pieces[known.end] == end
    assert known.end in known.stops
    assert known.special[known.end]


def test_an_end_of_turn_of_several_tokens_is_not_a_stop():
    known = align_tokens.vocabulary(KINDS["no control tokens"](), "openchat_3.5")
    assert known.end not in known.stops
    assert known.bytes[known.end].startswith(b"<")


def test_equal_vocabularies_are_told_by_ids_and_control_tokens():
    assert align_tokens.same_vocabulary(byte_level(), byte_level())
    assert not align_tokens.same_vocabulary(byte_level(), sentencepiece())
    assert not align_tokens.same_vocabulary(byte_level(), byte_level(eos="<|end|>"))


def test_strings_are_those_of_decode():
    tokenizer = sentencepiece()
    ids = [i for i in range(len(tokenizer)) if i % 7 == 0]
    found = align_tokens.decoded(tokenizer, ids)
    assert found == {i: tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids}


def test_ids_without_a_token_have_no_piece():
    tokenizer = byte_level()
    assert None not in align_tokens.pieces(tokenizer)
    assert len(align_tokens.pieces(tokenizer)) == len(tokenizer)
