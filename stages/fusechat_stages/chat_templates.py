"""How a conversation becomes text: FuseChat's eight templates, as data.

Used by chat, which turns the text into ids, and by chat_own. Knows no ids. A template gives a `Script`: the
answers, and the text that stands before each of them since the end of the answer before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Messages = Sequence[Mapping[str, str]]


class Unrenderable(Exception):
    """This conversation cannot be written in this template; the argument is the reason it is counted by."""


@dataclass(frozen=True)
class Piece:
    """One answer and the text before it (since the previous answer's end-of-turn, the header included).

    `header` is the end of `prompt` that stands behind the user's words.
    """

    prompt: str
    header: str
    answer: str
    ordinal: int


@dataclass(frozen=True)
class Script:
    """A conversation in a template. `tail` asks for the next answer ("" where none is asked for)."""

    pieces: tuple[Piece, ...]
    tail: str


@dataclass(frozen=True)
class Template:
    """A chat format as data. `{end}` in a text is the end-of-turn; pairs stand before and behind the content.

    `system` None with `system_in_user` None: the real model's template refuses system messages, so do we.
    """

    name: str
    end: str
    user: tuple[str, str]
    header: str
    separator: str = ""
    after_end: str = ""
    system: tuple[str, str] | None = None
    system_in_user: str | None = None
    default_system: str = ""
    strip: bool = False

    @property
    def bos(self) -> bool:
        """The text has no beginning-of-text token in it: the tokenizer's own is put before it."""
        return True

    def script(self, messages: Messages) -> Script:
        """Write `messages` (an optional system message, then user and assistant in turn)."""
        system, turns = split_system(messages)
        check_turns(turns)
        text, prefix = self._opening(system)
        pieces: list[Piece] = []
        for n, message in enumerate(turns):
            content = message["content"].strip() if self.strip else message["content"]
            if message["role"] == "user":
                text += self._put(self.user, prefix + content) + self._fill(self.header)
                prefix = ""
            else:
                pieces.append(Piece(text, self._context(), content, n // 2))
                text = self._fill(self.after_end)
        return Script(tuple(pieces), text if turns and turns[-1]["role"] == "user" else "")

    def _opening(self, system: str | None) -> tuple[str, str]:
        """(text before the first user's turn, text before the first user's words)."""
        if system is None:
            default = self._put(self.system, self.default_system) if self.default_system else ""
            return default, ""
        system = system.strip() if self.strip else system
        if self.system_in_user is not None:
            return "", system + self.system_in_user
        if self.system is None:
            raise Unrenderable("systemMessage")
        return self._put(self.system, system), ""

    def _context(self) -> str:
        return self._fill(self.user[1] + self.header)

    def _put(self, around: tuple[str, str] | None, content: str) -> str:
        before, behind = around or ("", "")
        return self._fill(before) + content + self._fill(behind)

    def _fill(self, text: str) -> str:
        return text.replace("{end}", self.end)


def _chatml(name: str, default_system: str = "") -> Template:
    return Template(
        name,
        end="<|im_end|>",
        user=("<|im_start|>user\n", "{end}\n"),
        header="<|im_start|>assistant\n",
        after_end="\n",
        system=("<|im_start|>system\n", "{end}\n"),
        default_system=default_system,
    )


_LLAMA3 = "<|start_header_id|>{role}<|end_header_id|>\n\n"

_ALL = (
    Template(
        "openchat_3.5",
        end="<|end_of_turn|>",
        user=("GPT4 Correct User: ", "{end}"),
        header="GPT4 Correct Assistant:",
        separator=" ",
        system=("GPT4 Correct System: ", "{end}"),
    ),
    # Mixtral-8x7B-Instruct-v0.1: the system message is the beginning of the first user's words.
    Template(
        "mistral", end="</s>", user=(" [INST] ", " [/INST]"), header="", separator=" ", system_in_user="\n\n"
    ),
    Template(
        "llama-3",
        end="<|eot_id|>",
        user=(_LLAMA3.format(role="user"), "{end}"),
        header=_LLAMA3.format(role="assistant"),
        system=(_LLAMA3.format(role="system"), "{end}"),
        strip=True,
    ),
    # Gemma and Gemma 2 refuse system messages.
    Template(
        "gemma",
        end="<end_of_turn>",
        user=("<start_of_turn>user\n", "{end}\n"),
        header="<start_of_turn>model\n",
        after_end="\n",
        strip=True,
    ),
    Template(
        "phi-3",
        end="<|end|>",
        user=("<|user|>\n", "{end}\n"),
        header="<|assistant|>\n",
        after_end="\n",
        system=("<|system|>\n", "{end}\n"),
    ),
    _chatml("qwen", "You are a helpful assistant."),
    _chatml("internlm2"),
    _chatml("yi"),
)

TEMPLATES: dict[str, Template] = {template.name: template for template in _ALL}


def split_system(messages: Messages) -> tuple[str | None, Messages]:
    """(system message or None, the turns)."""
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages


def check_turns(turns: Messages) -> None:
    """Unrenderable unless user and assistant take turns, the user first."""
    if any(turn["role"] != ("user", "assistant")[n % 2] for n, turn in enumerate(turns)):
        raise Unrenderable("rolesDoNotAlternate")
