"""Manifests' metrics -> the score table: who scored what, and how much the fused model is ahead of each.

Pure. The local runner prints it at the end of a run; the report draws the same table. Rows stand in a fixed
order (pivot, sources, controls, targets, fused); every difference is paired, question by question. Knows no
store: the caller reads `answers.jsonl` and `samples.jsonl` and hands their content over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusechat.intervals import Interval, paired_proportions, paired_ratios

ORDER = ("Pivot", "Source", "Control", "Target", "Fused")


@dataclass(frozen=True)
class Subject:
    """One model's results on one benchmark.

    `outcomes` by question id: True or False for exactMatch, (bits, bytes) for perplexity; empty if unknown,
    and then no difference is given.
    """

    kind: str
    name: str
    metrics: Mapping[str, Any]
    outcomes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line: the score with its limits, `parts` (by category), and the fused model's score minus this."""

    kind: str
    name: str
    score: Interval
    parts: Mapping[str, float]
    difference: Interval | None


@dataclass(frozen=True)
class ScoreTable:
    """`measure` says what the score column is; `lower_is_better` how to read it; `columns` name `parts`."""

    measure: str
    lower_is_better: bool
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def score_table(subjects: Sequence[Subject]) -> ScoreTable | None:
    """Exact match: share of questions answered right, by category; None if nobody was asked."""
    asked = [s for s in _ordered(subjects) if "score" in s.metrics]
    categories = sorted({c for s in asked for c in s.metrics.get("byCategory", {})})
    rows = tuple(
        Row(
            s.kind,
            s.name,
            _interval(s.metrics, "score"),
            {c: float(v["score"]) for c, v in s.metrics.get("byCategory", {}).items()},
            _difference(_fused(asked), s, paired_proportions),
        )
        for s in asked
    )
    return ScoreTable("exact match", False, tuple(categories), rows, _notes(asked)) if rows else None


def perplexity_table(subjects: Sequence[Subject]) -> ScoreTable | None:
    """Bits per byte of the answers (comparable across vocabularies), with the perplexity per own token."""
    asked = [s for s in _ordered(subjects) if "bitsPerByte" in s.metrics]
    rows = tuple(
        Row(
            s.kind,
            s.name,
            _interval(s.metrics, "bitsPerByte"),
            {"perplexity": float(s.metrics["perplexity"])},
            _difference(_fused(asked), s, paired_ratios),
        )
        for s in asked
    )
    return ScoreTable("bits per byte", True, ("perplexity",), rows, ()) if rows else None


def read_outcomes(lines: Iterable[str]) -> dict[str, Any]:
    """`answers.jsonl` or `samples.jsonl` -> outcomes by id, as `Subject` wants them.

    Ids are the dataset's and need not be unique: a later record of the same id gets its place among them.
    """
    found: dict[str, Any] = {}
    seen: dict[str, int] = {}
    for line in lines:
        if line.strip():
            record = json.loads(line)
            name = str(record["id"])
            seen[name] = seen.get(name, 0) + 1
            key = name if seen[name] == 1 else f"{name}#{seen[name]}"
            found[key] = record["correct"] if "correct" in record else (record["bits"], record["bytes"])
    return found


def render_text(table: ScoreTable) -> str:
    """The table in aligned columns for a terminal, notes below."""
    lines = [_header(table), *(_cells(table, row) for row in table.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["  ".join(_pad(cell, widths[i], i) for i, cell in enumerate(line)).rstrip() for line in lines]
    return "\n".join([*rows, *(f"  {note}" for note in table.notes)])


def render_markdown(table: ScoreTable) -> str:
    """The table for a model card or a README."""
    header = _header(table)
    rule = ["---" if i < 2 else "---:" for i in range(len(header))]
    lines = [header, rule, *(_cells(table, row) for row in table.rows)]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([*text, *(f"\n{note}" for note in table.notes)])


def format_score(value: float) -> str:
    """Three decimals, `-` for what is not a finite number."""
    return f"{value:.3f}" if math.isfinite(value) else "-"


def format_difference(value: float) -> str:
    """Three decimals with their sign; what rounds to nothing has none."""
    shown = f"{value:+.3f}"
    return "0.000" if float(shown) == 0 else shown


def format_limits(interval: Interval, signed: bool = False) -> str:
    """`0.497 to 0.528`, with signs for a difference; `-` where there are none."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "-"
    shown = format_difference if signed else format_score
    return f"{shown(interval.low)} to {shown(interval.high)}"


def label(kind: str, name: str) -> str:
    """How a model is called in a sentence or a chart: `pivot`, `source math`, `fused`."""
    return kind.lower() if kind in ("Pivot", "Fused") else f"{kind.lower()} {name}"


def _ordered(subjects: Sequence[Subject]) -> list[Subject]:
    return sorted(subjects, key=lambda s: ORDER.index(s.kind) if s.kind in ORDER else len(ORDER))


def _fused(subjects: Sequence[Subject]) -> Subject | None:
    return next((s for s in subjects if s.kind == "Fused"), None)


def _interval(metrics: Mapping[str, Any], key: str) -> Interval:
    low, high = metrics.get("ci95") or (math.nan, math.nan)
    count = metrics.get("n", metrics.get("samples", 0))
    limits = [math.nan if limit is None else float(limit) for limit in (low, high)]
    return Interval(float(metrics[key]), limits[0], limits[1], int(count))


def _difference(fused: Subject | None, other: Subject, paired: Any) -> Interval | None:
    if fused is None or fused is other or not fused.outcomes.keys() & other.outcomes.keys():
        return None
    found: Interval = paired(fused.outcomes, other.outcomes)
    return found


def _notes(asked: Sequence[Subject]) -> tuple[str, ...]:
    found = []
    for key, words in (
        ("empty", "Empty answers, wrong unless that was expected"),
        ("truncated", "Answers cut at the token limit"),
        ("tooLong", "Not asked, for the prompt fills the context, and counted as wrong"),
    ):
        if counts := [f"{label(s.kind, s.name)} {s.metrics[key]}" for s in asked if s.metrics.get(key)]:
            found.append(f"{words}: {', '.join(counts)}.")
    return tuple(found)


def _header(table: ScoreTable) -> list[str]:
    return ["subject", "name", table.measure, "95%", "fused - row", "95% (paired)", *table.columns]


def _cells(table: ScoreTable, row: Row) -> list[str]:
    value = format_difference(row.difference.value) if row.difference else ""
    limits = format_limits(row.difference, signed=True) if row.difference else ""
    parts = [format_score(row.parts[c]) if c in row.parts else "" for c in table.columns]
    score = [row.kind, row.name, format_score(row.score.value), format_limits(row.score)]
    return [*score, value, limits, *parts]


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)
