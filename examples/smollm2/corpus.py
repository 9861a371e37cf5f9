"""Questions and answers of the English chatterbot-corpus (PyPI, BSD), in four parts that share no question.

Used by make_smollm2.py. A pair's part is a hash of its question, so that what is held out is never trained
on. Knows no model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

PARTS = (("test", 20), ("dev", 30), ("lessons", 55), ("fusion", 100))
"""Part and the hundredth up to which its hashes go."""


@dataclass(frozen=True)
class Pair:
    """One question and one answer, as the corpus has them."""

    name: str
    question: str
    answer: str


def read(folder: Path) -> list[Pair]:
    """Every sentence with the one that follows it; the first answer only where a question comes again."""
    found: dict[str, Pair] = {}
    for path in sorted(folder.glob("*.yml")):
        for conversation in yaml.safe_load(path.read_text("utf-8"))["conversations"]:
            said = [str(sentence).strip() for sentence in conversation]
            for question, answer in pairwise(said):
                if question and answer:
                    pair = Pair(f"{path.stem}-{len(found)}", question, answer)
                    found.setdefault(" ".join(question.lower().split()), pair)
    return list(found.values())


def part(pair: Pair) -> str:
    """`test` (held out), `dev` (to tune on), `lessons` (the pivot's own) or `fusion`."""
    question = " ".join(pair.question.lower().split())
    number = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 100
    return next(name for name, end in PARTS if number < end)
