"""From source tokens to pivot tokens by their bytes: profile Corrected.

Called by align. Tables are filled for the ids that occur, so that a 150k vocabulary costs what it uses. Knows
bytes and integers; how the pivot's tokenizer encodes is a function that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fusechat_stages.numerics.alignment import PLAIN, SPACED, STRIPPED

UNKNOWN, NONE = -2, -1


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer says of its ids. `special` ones have no bytes; an id without token has piece None."""

    bytes: Sequence[bytes]
    pieces: Sequence[str | None]
    special: Sequence[bool]
    end: int  # the first token of the template's end-of-turn
    stops: frozenset[int]  # tokens that end an answer by themselves

    @property
    def size(self) -> int:
        return len(self.pieces)


class ByteMap:
    """int32 tables source id -> pivot id, one for each of PLAIN, SPACED and STRIPPED.

    A token goes to the pivot token of equal bytes (the one of equal piece if several; otherwise one that is
    not a byte-fallback token, then the lowest id), else to the first pivot token of its bytes as the pivot's
    tokenizer encodes them (`first_tokens`: one id for each bytes string, NONE where it has none). End-of-turn
    goes to end-of-turn; another special token to the special token of equal piece, or nowhere.
    With `same`, the vocabularies are equal and every id but the end-of-turn goes to itself.
    """

    def __init__(
        self,
        source: Vocabulary,
        pivot: Vocabulary,
        first_tokens: Callable[[Sequence[bytes]], Sequence[int]],
        *,
        same: bool = False,
    ) -> None:
        self._source, self._pivot, self._first = source, pivot, first_tokens
        self._same = same
        self._equal = _by_bytes(pivot)
        self._pieces = {p: i for i, p in reversed(list(enumerate(pivot.pieces))) if p is not None}
        self._target = np.full((3, source.size), UNKNOWN, dtype=np.int32)
        self._exact = np.zeros((3, source.size), dtype=bool)

    def lookup(self, ids: np.ndarray, variant: int) -> tuple[np.ndarray, np.ndarray]:
        """(int32 pivot ids or NONE, bool whether the bytes are equal), in the shape of `ids`.

        Ids beyond the tokenizer (padding rows of an embedding) have no token and go to NONE.
        """
        inside = (ids >= 0) & (ids < self._source.size)
        safe = np.where(inside, ids, 0)
        target, exact = self._target[variant], self._exact[variant]
        unknown = np.unique(safe[(target[safe] == UNKNOWN) & inside])
        if len(unknown):
            self._resolve(unknown, variant)
        if inside.all():
            return target[ids], exact[ids]
        return np.where(inside, target[safe], NONE).astype(np.int32), inside & exact[safe]

    def _resolve(self, ids: np.ndarray, variant: int) -> None:
        target, exact = self._target[variant], self._exact[variant]
        waiting: list[tuple[int, bytes]] = []
        for i in ids.tolist():
            target[i] = self._known(i, variant)
            exact[i] = target[i] >= 0
            if target[i] == UNKNOWN:
                waiting.append((i, _read(self._source.bytes[i], variant)))
        for (i, _), first in zip(waiting, self._first([text for _, text in waiting]), strict=True):
            target[i] = first

    def _known(self, i: int, variant: int) -> int:
        """The pivot id that needs no encoding; NONE; or UNKNOWN if the bytes must be encoded."""
        source, pivot = self._source, self._pivot
        if i == source.end and i in source.stops:
            return pivot.end
        if variant == PLAIN and self._same:
            return i
        piece = source.pieces[i]
        if piece is None or source.special[i]:
            return self._special(i, piece)
        text = _read(source.bytes[i], variant)
        if not text:
            return NONE
        twin = self._pieces.get(piece)
        if twin is not None and pivot.bytes[twin] == text and not pivot.special[twin]:
            return twin
        return self._equal.get(text, UNKNOWN)

    def _special(self, i: int, piece: str | None) -> int:
        twin = self._pieces.get(piece) if piece is not None else None
        if i in self._source.stops:
            return twin if twin in self._pivot.stops else self._pivot.end
        return twin if twin is not None and self._pivot.special[twin] else NONE


def longest_prefix(vocabulary: Vocabulary) -> Callable[[bytes], int]:
    """The token with the longest bytes that the given bytes begin with, NONE if there is none.

    Stands in for the tokenizer where bytes are no text of their own, for example half a character.
    """
    equal = _by_bytes(vocabulary)
    longest = max(map(len, equal), default=0)

    def find(text: bytes) -> int:
        lengths = range(min(len(text), longest), 0, -1)
        return next((equal[text[:n]] for n in lengths if text[:n] in equal), NONE)

    return find


def is_byte_piece(piece: str | None) -> bool:
    """Whether a piece is a byte-fallback token, `<0x41>`."""
    return piece is not None and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _by_bytes(vocabulary: Vocabulary) -> dict[bytes, int]:
    """Token of each bytes string: byte-fallback tokens only where nothing else has the bytes; lowest id."""
    found: dict[bytes, int] = {}
    plain = [i for i in range(vocabulary.size) if vocabulary.bytes[i] and not vocabulary.special[i]]
    for i in sorted(plain, key=lambda i: is_byte_piece(vocabulary.pieces[i])):
        found.setdefault(vocabulary.bytes[i], i)
    return found


def _read(text: bytes, variant: int) -> bytes:
    if variant == SPACED:
        return b" " + text
    if variant == STRIPPED:
        return text.removeprefix(b" ")
    return text
