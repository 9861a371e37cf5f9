"""Five skills with verifiable answers: French words, opposites, capitals, sorting, reversing.

Used by make_tiny.py. A question belongs to one part (`train`, `dev`, `test`) by a hash of its words in any
order, so that no held-out question, nor another order of its words, is ever trained on. Everything is drawn
from seeds. Knows no model and no tokenizer.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from facts import CAPITALS, FRENCH, OPPOSITES

PARTS = ("test", "dev")
SWAPPED = 0.25
"""Share of the wrong answers in which two words changed places; in the others one word is another."""


@dataclass(frozen=True)
class Skill:
    """How to ask for it, the words it asks about, the right answer, and what answers are made of."""

    ask: str
    words: tuple[str, ...]
    answer: Callable[[Sequence[str]], Sequence[str]]
    answers: tuple[str, ...]


def _lookup(ask: str, table: Mapping[str, str]) -> Skill:
    return Skill(
        ask, tuple(sorted(table)), lambda words: [table[w] for w in words], tuple(sorted(table.values()))
    )


_NOUNS = tuple(sorted(FRENCH))
SKILLS: dict[str, Skill] = {
    "french": _lookup("French", FRENCH),
    "opposite": _lookup("Opposite", OPPOSITES),
    "capital": _lookup("Capitals", CAPITALS),
    "sort": Skill("Sort", _NOUNS, sorted, _NOUNS),
    "reverse": Skill("Backwards", _NOUNS, lambda words: list(words)[::-1], _NOUNS),
}


@dataclass(frozen=True)
class Example:
    """One question and its answer, which may be wrong where errors were asked for."""

    skill: str
    question: str
    answer: str


def part(words: Sequence[str]) -> str:
    """`test` and `dev` get a tenth of all word sets each, `train` the rest."""
    number = _number(" ".join(sorted(words))) % 10
    return PARTS[number] if number < len(PARTS) else "train"


def known(skill: str, share: float, who: str) -> tuple[str, ...]:
    """The share of a skill's words that `who` has met: chosen by hash, other for everyone."""
    words = SKILLS[skill].words
    ranked = sorted(words, key=lambda word: _number(f"{who} {skill} {word}"))
    return tuple(sorted(ranked[: max(3, round(share * len(words)))]))


def draw(
    skill: str, count: int, where: str, seed: str, words: Sequence[str] | None = None, errors: float = 0.0
) -> list[Example]:
    """`count` different questions of part `where` about `words`; a share of `errors` answers is wrong."""
    it, rng, found = SKILLS[skill], random.Random(f"{seed} {skill} {where}"), {}
    for _ in range(200 * count):
        asked = rng.sample(words or it.words, 3)
        if len(found) == count:
            break
        if part(asked) == where:
            right = list(it.answer(asked))
            given = _wrong(right, it.answers, rng) if rng.random() < errors else right
            question = f"{it.ask}: {' '.join(asked)}"
            found.setdefault(question, Example(skill, question, " ".join(given)))
    if len(found) < count:
        raise ValueError(
            f"{skill}: only {len(found)} different questions of part {where}, {count} were asked for"
        )
    return list(found.values())


def mixture(
    counts: Mapping[str, int],
    where: str,
    seed: str,
    scope: Mapping[str, Sequence[str]] | None = None,
    errors: float = 0.0,
) -> list[Example]:
    """Questions of several skills, shuffled; `scope` bounds a skill's words."""
    scope = scope or {}
    drawn = [x for skill, n in counts.items() for x in draw(skill, n, where, seed, scope.get(skill), errors)]
    random.Random(seed).shuffle(drawn)
    return drawn


def _wrong(right: Sequence[str], answers: Sequence[str], rng: random.Random) -> list[str]:
    given = list(right)
    if rng.random() < SWAPPED:
        i = rng.randrange(len(given) - 1)
        given[i], given[i + 1] = given[i + 1], given[i]
    else:
        i = rng.randrange(len(given))
        given[i] = rng.choice([word for word in answers if word != given[i]])
    return given


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
