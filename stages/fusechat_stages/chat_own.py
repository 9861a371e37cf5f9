"""A tokenizer's own chat template (jinja), taken apart at the answers; and the choice of a template.

Used by chat. Knows no ids; knows of the tokenizer its template and the texts of its control tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fusechat_stages.chat_templates import (
    TEMPLATES,
    Messages,
    Piece,
    Script,
    Template,
    Unrenderable,
    check_turns,
    split_system,
)

AUTO = "auto"
MODELS_OWN = "model"
SEPARATORS = ("", " ")
PROBE = "Sixty-four"


def find(template: str | Mapping[str, str], tokenizer: Any) -> Template | OwnTemplate:
    """The template of a name ("auto": the tokenizer's own) or of {"name": ..., "endOfTurn": ...}.

    `endOfTurn` replaces the template's separator, as profile Published does for sources under the pivot's
    template: a text, or "model" for the tokenizer's own end token.
    """
    spec = {"name": template} if isinstance(template, str) else template
    name, end = spec["name"], spec.get("endOfTurn")
    if name == AUTO and end:
        raise ValueError(
            "template auto is the tokenizer's own and takes no endOfTurn; profile Published needs the "
            f"pivot's template by name: one of {', '.join(TEMPLATES)}"
        )
    if name == AUTO:
        return OwnTemplate.of(tokenizer)
    if name not in TEMPLATES:
        raise ValueError(f"template {name!r} is not known, expected {AUTO} or one of {', '.join(TEMPLATES)}")
    if end == MODELS_OWN:
        end = tokenizer.eos_token
        if not end:
            raise ValueError("endOfTurn is model, but the tokenizer names no end token; give its text")
    return replace(TEMPLATES[name], end=end) if end else TEMPLATES[name]


@dataclass(frozen=True)
class OwnTemplate:
    """The tokenizer's own chat template (jinja), whose text is taken apart at the answers.

    What stands round an answer is learned from one probe. Where a template rewrites what came before (as
    those that drop earlier reasoning), only the answers since the last rewriting are kept: the others would
    condition on a text that the model never sees.
    """

    tokenizer: Any
    end: str
    behind: str  # what it puts after the end-of-turn of the last answer
    separator: str

    @classmethod
    def of(cls, tokenizer: Any) -> OwnTemplate:
        """Learn the template's ends from a probe. ValueError if it cannot be used, with what to do."""
        if not tokenizer.chat_template:
            raise ValueError(
                "template auto needs the tokenizer's own chat_template, and it has none; "
                f"name one of {', '.join(TEMPLATES)}"
            )
        asked = [{"role": "user", "content": "How many?"}]
        try:
            prompt = _text(tokenizer, asked, True)
            full = _text(tokenizer, [*asked, {"role": "assistant", "content": PROBE}], False)
        except Unrenderable as error:
            raise ValueError(
                f"the tokenizer's chat_template cannot be rendered: {error.__cause__}"
            ) from error
        rest = full.removeprefix(prompt)
        separator, found, suffix = rest.partition(PROBE)
        if rest is full or not found or separator not in SEPARATORS:
            raise ValueError(
                "the tokenizer's chat_template does not continue its own generation prompt with the answer "
                f"(prompt ends {prompt[-40:]!r}, answer stands in {full[-80:]!r}); name a template instead"
            )
        return cls(tokenizer, *_ends(tokenizer, suffix), separator=separator)

    @property
    def bos(self) -> bool:
        """The template writes the beginning-of-text token itself, where the model wants one."""
        return False

    def script(self, messages: Messages) -> Script:
        """Write `messages` by the tokenizer's template."""
        check_turns(split_system(messages)[1])
        pieces: list[Piece] = []
        told, ordinal, asked = "", 0, ""
        for n, message in enumerate(messages):
            if message["role"] == "user":
                asked = message["content"].strip()
            if message["role"] != "assistant":
                continue
            prompt = _text(self.tokenizer, messages[:n], True)
            if not prompt.startswith(told):
                told, pieces = "", []
            answer = self._answer(prompt, messages[: n + 1])
            segment = prompt[len(told) :]
            pieces.append(Piece(segment, _behind(segment, asked), answer, ordinal))
            told = prompt + self.separator + answer + self.end
            ordinal += 1
        if not messages or messages[-1]["role"] != "user":
            return Script(tuple(pieces), "")
        prompt = _text(self.tokenizer, messages, True)
        if not prompt.startswith(told):
            told, pieces = "", []
        return Script(tuple(pieces), prompt[len(told) :])

    def _answer(self, prompt: str, messages: Messages) -> str:
        full, end = _text(self.tokenizer, messages, False), self.end + self.behind
        if not full.startswith(prompt + self.separator) or not full.endswith(end):
            raise Unrenderable("promptIsNoPrefix")
        answer = full[len(prompt) + len(self.separator) : len(full) - len(end)]
        if answer.strip() != messages[-1]["content"].strip():
            raise Unrenderable("templateChangesAnswer")
        return answer


def _text(tokenizer: Any, messages: Messages, ask: bool) -> str:
    import jinja2

    try:
        # The flag asks models that can reason for an answer without reasoning; other templates ignore it.
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=ask,
                enable_thinking=False,
            )
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
        raise Unrenderable("templateRefuses") from error


def _ends(tokenizer: Any, suffix: str) -> tuple[str, str]:
    """(end-of-turn, text behind it) of what a template writes after an answer."""
    control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    places = [(suffix.find(text), -len(text), text) for text in control if text and text in suffix]
    if not places:
        raise ValueError(
            f"the tokenizer's chat_template ends an answer with {suffix!r}, in which is no control token; "
            "name a template whose end-of-turn the model knows"
        )
    at, _, end = min(places)
    return end, suffix[at + len(end) :]


def _behind(segment: str, asked: str) -> str:
    """The end of a segment that stands behind the user's words; all of it where they cannot be found."""
    at = segment.rfind(asked) if asked else -1
    return segment[at + len(asked) :] or segment if at >= 0 else segment
