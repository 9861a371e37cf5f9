"""Conversations -> token ids with the answers' tokens marked, and prompts for generation.

Used by extract (what is supervised), evaluate (what a model is asked) and align (`token_bytes`). The prompt
through the assistant's header and the answer are encoded apart, each as inference does, so that prompt ids
are an exact prefix of the conversation's: encoding the whole text and cutting it by offsets is not, for an
answer that begins with a line break melts into the header.

The law, checked on token bytes for every answer: supervised == rendered answer + end-of-turn, less one
separator space. A conversation that breaks it fails with a reason and is never masked silently. Knows no
model and no store.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fusechat_stages.chat_own import AUTO, find
from fusechat_stages.chat_templates import TEMPLATES, Messages, Piece, Script, Unrenderable
from fusechat_stages.token_bytes import special_ids, token_bytes

__all__ = [
    "AUTO",
    "TEMPLATES",
    "Conversation",
    "Turn",
    "prompt_ids",
    "render",
    "special_ids",
    "stop_ids",
    "token_bytes",
]

REASONS = {
    "noAnswer": "no assistant message in it",
    "beyondMaxLength": "the prompt alone reaches the maximum length: no answer token is left",
    "rolesDoNotAlternate": "user and assistant do not take turns, the user first",
    "systemMessage": "the template's model refuses system messages",
    "templateRefuses": "the tokenizer's template raised an error",
    "templateChangesAnswer": "the tokenizer's template writes another answer than the message's",
    "promptIsNoPrefix": "the tokenizer's template does not continue its own generation prompt",
    "controlTokenInAnswer": "an answer contains the text of a control token",
    "unknownCharacter": "the tokenizer has no token for a character of an answer",
    "tokenBeyondModel": "it contains a control token that the model has no embedding for",
    "tokenizerChangesText": "the tokenizer normalises an answer to other bytes",
}
"""Why a conversation is not used: the keys under which `extract` counts what it dropped."""


@dataclass(frozen=True)
class Turn:
    """One supervised answer: tokens `[start, end)` of the conversation's ids, end-of-turn included.

    `ordinal` counts the conversation's answers from 0; `answer_bytes` is the length of the whole rendered
    answer (UTF-8), before truncation and without separator and end-of-turn.
    """

    start: int
    end: int
    ordinal: int
    answer_bytes: int


@dataclass(frozen=True)
class Conversation:
    """A conversation in ids. `end_bytes`: for each supervised token, in order of turns, the bytes of its
    answer that are consumed after it; the end-of-turn ends at answer_bytes + 1 (each further token of an
    end-of-turn that is no single token, one more). With a `reason` all else is empty.
    """

    input_ids: list[int]
    turns: tuple[Turn, ...]
    end_bytes: list[int]
    reason: str | None = None


def render(tokenizer: Any, template: Any, messages: Messages, max_length: int) -> Conversation:
    """`messages` as ids under `template` (a name, "auto", or {"name", "endOfTurn"}), cut at `max_length` ids.

    ValueError for a template that cannot be used with this tokenizer at all; a conversation that cannot be
    rendered comes back with its `reason` (a key of REASONS).
    """
    chat = _chat(tokenizer, template)
    try:
        script = chat.template.script(messages)
        if not script.pieces:
            raise Unrenderable("noAnswer")
        ids, turns, ends = chat.assemble(script)
    except Unrenderable as error:
        return Conversation([], (), [], str(error))
    return _cut(ids, turns, ends, max_length)


def prompt_ids(tokenizer: Any, template: Any, messages: Messages) -> list[int]:
    """What the model is given to answer the last of `messages` (the user's), through the assistant's header.

    An exact prefix of what `render` gives for the same messages with an answer. ValueError with the reason
    if they cannot be rendered.
    """
    chat = _chat(tokenizer, template)
    try:
        script = chat.template.script(messages)
        if not script.tail:
            raise ValueError("prompt_ids: the last message must be the user's")
        ids, _, _ = chat.assemble(script)
        return chat.prompt(ids, script.tail)
    except Unrenderable as error:
        reason = str(error)
        raise ValueError(
            f"the messages cannot be written in template {template!r}: {REASONS[reason]}"
        ) from error


def stop_ids(tokenizer: Any, template: Any) -> set[int]:
    """Ids that end an answer: the template's end-of-turn and the tokenizer's end of text.

    An end-of-turn that the tokenizer splits into several tokens is not among them.
    """
    chat = _chat(tokenizer, template)
    ends = {tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()
    return ends | (set(chat.end) if len(chat.end) == 1 else set())


def _cut(ids: list[int], turns: Sequence[Turn], ends: list[int], max_length: int) -> Conversation:
    kept = tuple(
        Turn(turn.start, min(turn.end, max_length), turn.ordinal, turn.answer_bytes)
        for turn in turns
        if turn.start < max_length
    )
    if not kept:
        return Conversation([], (), [], "beyondMaxLength")
    return Conversation(ids[:max_length], kept, ends[: sum(turn.end - turn.start for turn in kept)])


class _Chat:
    """One tokenizer under one template."""

    def __init__(self, coder: _Coder, template: Any) -> None:
        self.coder, self.template = coder, template
        whole = coder.encode(template.end)
        self.end = whole if len(whole) == 1 else coder.bare.encode(template.end)
        self._headers: dict[str, list[int]] = {}

    def assemble(self, script: Script) -> tuple[list[int], list[Turn], list[int]]:
        """(ids, turns, end bytes) of a script's pieces; Unrenderable if an answer breaks the law."""
        ids: list[int] = []
        turns: list[Turn] = []
        ends: list[int] = []
        for piece in script.pieces:
            ids = self.prompt(ids, piece.prompt)
            answer, answer_ends = self.answer(piece)
            size = len(piece.answer.encode())
            turns.append(Turn(len(ids), len(ids) + len(answer) + len(self.end), piece.ordinal, size))
            ids = [*ids, *answer, *self.end]
            ends += [*answer_ends, *range(size + 1, size + 1 + len(self.end))]
        return ids, turns, ends

    def prompt(self, ids: list[int], text: str) -> list[int]:
        """`ids` (a conversation through an end-of-turn, or nothing) and `text` after them."""
        if ids:
            return ids + self._after_end(text)
        found = self.coder.encode(text)
        if not self.template.bos:
            return found
        if self._doubled(text, found):
            found = self.coder.encode(text[1:])
        bos = self.coder.opening
        return found if bos and found[: len(bos)] == bos else bos + found

    def _after_end(self, text: str) -> list[int]:
        whole, size = self.coder.encode(self.template.end + text), len(self.end)
        if whole[:size] != self.end:
            return self.coder.bare.encode(text)
        if self.template.bos and self._doubled(text, whole[size:]):
            return self.coder.encode(self.template.end + text[1:])[size:]
        return whole[size:]

    def _doubled(self, text: str, ids: list[int]) -> bool:
        """The tokenizer put a space of its own before a text that begins with one already."""
        return text[:1] == " " != text[1:2] and self.coder.bytes_of(ids[:3])[:2] == b"  "

    def answer(self, piece: Piece) -> tuple[list[int], list[int]]:
        """(ids, end bytes) of an answer, encoded behind its header, or alone where the two would melt."""
        if not piece.answer:
            return [], []
        text, wanted = self.template.separator + piece.answer, piece.answer.encode()
        found: list[int] = []
        for found in self._tries(piece.header, text):
            given = self.coder.bytes_of(found)
            spaces = len(given) - len(wanted)
            if given == wanted or (given == b" " + wanted):
                lengths = [len(self.coder.bytes[i]) for i in found]
                return found, [max(0, end - spaces) for end in accumulate(lengths)]
        raise Unrenderable(self.coder.fault(piece.answer, found))

    def _tries(self, header: str, text: str) -> Any:
        context = self.template.end + header
        if context not in self._headers:
            if len(self._headers) > 1000:
                self._headers.clear()
            self._headers[context] = self.coder.encode(context)
        before = self._headers[context]
        whole = self.coder.encode(context + text)
        if whole[: len(before)] == before:
            yield whole[len(before) :]
        yield self.coder.bare.encode(text)


class _Coder:
    """A tokenizer's encoding without anything added, and what has to be known of it."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self.bytes, self.special = token_bytes(tokenizer), special_ids(tokenizer)
        self.unknown = tokenizer.unk_token_id
        self._bare: Any = None

    def encode(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    @property
    def opening(self) -> list[int]:
        """Ids that the tokenizer puts before every text (a beginning-of-text token, or nothing)."""
        plain, full = self.encode("a"), list(self._backend.encode("a", add_special_tokens=True).ids)
        starts = range(len(full) - len(plain) + 1)
        return next((full[:at] for at in starts if full[at : at + len(plain)] == plain), [])

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        return b"".join([self.bytes[i] for i in ids])

    @property
    def bare(self) -> Any:
        """The same encoding without a space of its own before a text: for text that continues another."""
        if self._bare is None:
            prefixed = self.bytes_of(self.encode("a")) != b"a"
            self._bare = _Bare(_without_prefix(self._backend)) if prefixed else self
        return self._bare

    def fault(self, answer: str, ids: Sequence[int]) -> str:
        """Why the ids of an answer do not give its bytes."""
        inside = self.special.intersection(ids)
        if inside - {self.unknown}:
            return "controlTokenInAnswer"
        return "unknownCharacter" if inside else "tokenizerChangesText"


class _Bare:
    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def encode(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)


def _without_prefix(backend: Any) -> Any:
    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    state["normalizer"] = _unprefixed(state["normalizer"])
    state["pre_tokenizer"] = _unprefixed(state["pre_tokenizer"])
    return Tokenizer.from_str(json.dumps(state))


def _unprefixed(component: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A tokenizer component without its leading space."""
    if component is None or component["type"] == "Prepend":
        return None
    changed = dict(component)
    for key in ("normalizers", "pretokenizers"):
        if key in changed:
            changed[key] = [inner for inner in map(_unprefixed, changed[key]) if inner is not None]
    if component["type"] == "Metaspace":
        changed["prepend_scheme"] = "never"
    if "add_prefix_space" in changed:
        changed["add_prefix_space"] = False
    return changed


_coders: weakref.WeakKeyDictionary[Any, _Coder] = weakref.WeakKeyDictionary()
_chats: weakref.WeakKeyDictionary[Any, dict[str, _Chat]] = weakref.WeakKeyDictionary()


def _chat(tokenizer: Any, template: Any) -> _Chat:
    """The chat of a tokenizer and a template, made once for as long as the tokenizer lives."""
    known = _chats.setdefault(tokenizer, {})
    key = json.dumps([template, tokenizer.chat_template if template == AUTO else None], sort_keys=True)
    if key not in known:
        if tokenizer not in _coders:
            _coders[tokenizer] = _Coder(tokenizer)
        known[key] = _Chat(_coders[tokenizer], find(template, tokenizer))
    return known[key]
