"""What align asks a tokenizer: the bytes, pieces and decoded strings of its ids, and how it encodes bytes.

Everything is derived from the tokenizer itself: no class names, no words of a path. Knows tokenizers and
chat; no block and no array of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fusechat_stages import chat
from fusechat_stages.numerics.bytemap import NONE, Vocabulary, longest_prefix

SENTINELS = ("\n", "a", ".", "0", "\t", "中")
"""Texts put before the bytes to be encoded, until one is found that the tokenizer does not join with them."""


def pieces(tokenizer: Any) -> list[str | None]:
    """The piece of every id as `convert_ids_to_tokens` gives it, None for an id without one."""
    vocab = tokenizer.get_vocab()
    found: list[str | None] = [None] * (max(vocab.values(), default=-1) + 1)
    for piece, i in vocab.items():
        found[i] = piece
    return found


def vocabulary(tokenizer: Any, template: Any) -> Vocabulary:
    """Bytes, pieces and end-of-turn of a tokenizer under a template."""
    named = pieces(tokenizer)
    table = chat.token_bytes(tokenizer)
    padded = [table[i] if i < len(table) else b"" for i in range(len(named))]
    stops = frozenset(chat.stop_ids(tokenizer, template))
    control = chat.special_ids(tokenizer)
    special = [i in control for i in range(len(named))]
    return Vocabulary(padded, named, special, end_of_turn(tokenizer, template), stops)


def end_of_turn(tokenizer: Any, template: Any) -> int:
    """The first id that the template puts after an answer (among `stop_ids` unless it is one of several)."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    seen = chat.render(tokenizer, template, messages, 1 << 20)
    if not seen.turns:
        raise ValueError(f"template {template!r} supervises no answer ({seen.reason}); take another template")
    turn = seen.turns[0]
    ids = seen.input_ids[turn.start : turn.end]
    closing = [i for i, end in zip(ids, seen.end_bytes, strict=False) if end > turn.answer_bytes]
    if not closing:
        raise ValueError(f"template {template!r} puts no end-of-turn after an answer; take another template")
    return int(closing[0])


def same_vocabulary(pivot: Any, source: Any) -> bool:
    """Whether both tokenizers have the same tokens at the same ids, control tokens included."""
    roles = ("bos_token_id", "eos_token_id", "unk_token_id")
    return (
        pivot.get_vocab() == source.get_vocab()
        and set(pivot.all_special_ids) == set(source.all_special_ids)
        and all(getattr(pivot, role) == getattr(source, role) for role in roles)
    )


def first_tokens(tokenizer: Any, known: Vocabulary) -> Callable[[Sequence[bytes]], list[int]]:
    """For each bytes string the first token that this tokenizer encodes it to, inside a text.

    The bytes are encoded behind a sentinel, so that no rule for the beginning of a text applies; only an
    encoding with a token boundary right behind the sentinel and whose tokens give the bytes back counts.
    Bytes that are no UTF-8 or that no sentinel stays apart from go to the token of their longest prefix.
    """
    prefix = longest_prefix(known)

    def find(texts: Sequence[bytes]) -> list[int]:
        found = [NONE] * len(texts)
        waiting = [n for n, text in enumerate(texts) if _is_text(text)]
        for sentinel in SENTINELS:
            encoded = _encode(tokenizer, [sentinel + texts[n].decode() for n in waiting])
            for n, ids in zip(waiting, encoded, strict=True):
                found[n] = _behind(sentinel.encode(), texts[n], ids, known)
            waiting = [n for n in waiting if found[n] == NONE]
        return [prefix(text) if i == NONE else i for i, text in zip(found, texts, strict=True)]

    return find


def decoded(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """decode([id]) of every id, as the release's DTW and suffix tests use it."""
    wanted = list(ids)
    texts = tokenizer.backend_tokenizer.decode_batch([[i] for i in wanted], skip_special_tokens=False)
    return dict(zip(wanted, texts, strict=True))


def _is_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return bool(text)


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encoded]


def _behind(sentinel: bytes, text: bytes, ids: Sequence[int], known: Vocabulary) -> int:
    """The first id behind the sentinel, NONE if there is no boundary or other bytes come out."""
    read = b""
    for at, i in enumerate(ids):
        read += known.bytes[i]
        if read in (sentinel, b" " + sentinel):
            rest = ids[at + 1 :]
            whole = b"".join(known.bytes[j] for j in rest)
            return int(rest[0]) if rest and whole == text and known.bytes[rest[0]] else NONE
    return NONE
