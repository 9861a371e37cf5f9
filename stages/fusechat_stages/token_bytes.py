"""The canonical bytes of every id of a tokenizer: what each token stands for in a text.

Used by chat (the law of supervised bytes) and align (the same text under two vocabularies). Everything is
derived from the tokenizer's own components; it knows no class names and no model names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any) -> list[bytes]:
    """Bytes of every id from 0 to the highest one, added tokens included.

    A control token (see `special_ids`) and an id that no token has are b"". A word-initial marker is the
    space that it stands for; a byte-fallback token is its byte; a byte-level piece is decoded by the table.
    """
    backend = tokenizer.backend_tokenizer
    decode = _decoder(backend)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    found = [b""] * (max(vocabulary.values(), default=-1) + 1)
    added, special = tokenizer.added_tokens_decoder, special_ids(tokenizer)
    for piece, i in vocabulary.items():
        if i not in special:
            found[i] = decode(piece, i in added)
    return found


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that stand for no text: control tokens and the unknown token."""
    named = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    unknown = getattr(tokenizer.backend_tokenizer.model, "unk_token", None)
    if unknown is not None and (i := tokenizer.backend_tokenizer.token_to_id(unknown)) is not None:
        named.add(i)
    return frozenset(named | set(tokenizer.all_special_ids))


def _decoder(backend: Any) -> Any:
    """(piece, is it an added token) -> bytes, by the components the tokenizer has."""
    parts = [
        part for part in (backend.normalizer, backend.pre_tokenizer, backend.decoder) if part is not None
    ]
    components = [component for part in parts for component in _flat(json.loads(part.__getstate__()))]
    kinds = {component["type"] for component in components}
    if "ByteLevel" in kinds:
        return _byte_level
    marker = next(filter(None, map(_marker, components)), "")
    fallback = "ByteFallback" in kinds or getattr(backend.model, "byte_fallback", False)

    def decode(piece: str, added: bool) -> bytes:
        if fallback and not added and (match := BYTE_FALLBACK.fullmatch(piece)):
            return bytes.fromhex(match[1])
        return (piece.replace(marker, " ") if marker else piece).encode()

    return decode


def _flat(component: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield component
    for key in ("normalizers", "pretokenizers", "decoders"):
        for inner in component.get(key) or ():
            yield from _flat(inner)


def _marker(component: dict[str, Any]) -> str:
    """The character that stands for a space, if this component says so."""
    if component["type"] == "Metaspace":
        return str(component["replacement"])
    if component["type"] == "Replace":
        pattern = component["pattern"].get("String")
        if component["content"] == " ":
            return pattern or ""
        if pattern == " ":
            return str(component["content"])
    return ""


def _table() -> dict[str, int]:
    """The character that byte-level BPE writes for every byte (GPT-2's table), turned round."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


_BYTE_OF = _table()


def _byte_level(piece: str, added: bool) -> bytes:
    if added:
        return piece.encode()
    try:
        return bytes([_BYTE_OF[character] for character in piece])
    except KeyError:
        return piece.encode()
