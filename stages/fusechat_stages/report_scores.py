"""The page's scores: what came out in words, intervals and paired differences as charts, and the tables.

Used by report and its sections. The numbers are `fusechat.scores`', the same that the terminal shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fusechat.intervals import Interval
from fusechat.scores import (
    Row,
    ScoreTable,
    format_difference,
    format_limits,
    format_score,
    label,
    perplexity_table,
    score_table,
)

from fusechat_stages.report_charts import interval_chart, radar_chart
from fusechat_stages.report_data import RunFacts
from fusechat_stages.report_html import Html, el, figure, section, table

RADAR_TARGETS = 3


def verdict(facts: RunFacts) -> Iterator[str]:
    """What the scores say, in a sentence or two."""
    made = score_table(facts.subjects.get("exactMatch", ()))
    fused = next((row for row in made.rows if row.kind == "Fused"), None) if made else None
    if made is None or fused is None:
        return
    share, n = fused.score.value, fused.score.n
    yield f"The fused model answers {share:.1%} of {n:,} questions right ({limits(fused.score)})."
    rivals = [_best(made.rows, kind) for kind in ("Pivot", "Control", "Target")]
    parts = [_gap(row.difference, _called(row)) for row in rivals if row and row.difference]
    if parts:
        yield f"That is {'; '.join(parts)}."


def limits(interval: Interval) -> str:
    return f"95%: {interval.low:.1%} to {interval.high:.1%}" if math.isfinite(interval.low) else "no interval"


def _best(rows: Sequence[Row], kind: str) -> Row | None:
    return max((row for row in rows if row.kind == kind), key=lambda row: row.score.value, default=None)


def _gap(found: Interval, other: str) -> str:
    points = f"{abs(found.value) * 100:.1f}"
    if float(points) == 0:
        return f"level with {other}"
    chance = "" if found.decided else " (within chance)"
    return f"{points} points {'above' if found.value > 0 else 'below'} {other}{chance}"


def _called(row: Row) -> str:
    return {
        "Pivot": "the pivot",
        "Control": f"the same training without distributions ({row.name})",
        "Target": f"the best target ({row.name})",
    }[row.kind]


def scores(facts: RunFacts) -> Html | None:
    """Share of questions answered right, the paired differences, and categories."""
    made = score_table(facts.subjects.get("exactMatch", ()))
    if made is None:
        return None
    parts: list[Html] = [_interval_figure(made), _score_table(made)]
    if radar := _radar(made):
        parts.append(radar)
    parts += [el("p", note, class_="note") for note in made.notes]
    return section("Scores: exact match", parts)


def perplexity(facts: RunFacts) -> Html | None:
    """Bits per byte of held-out answers; less is better."""
    made = perplexity_table(facts.subjects.get("perplexity", ()))
    if made is None:
        return None
    said = el(
        "p",
        "Bits that the model needs for each byte of the held-out answers, less is better. Bits per byte "
        "compare between all models; the perplexity per token only between models of one vocabulary.",
    )
    return section("Held-out text: bits per byte", said, _interval_figure(made), _score_table(made))


def _interval_figure(made: ScoreTable) -> Html:
    fused = frozenset(_label(row) for row in made.rows if row.kind == "Fused")
    rows = [(_label(row), row.score) for row in made.rows]
    better = "less is better" if made.lower_is_better else "more is better"
    first = figure(
        interval_chart(f"{made.measure} of every model", rows, f"{made.measure} ({better})", strong=fused),
        "Dot: the measured value. Line: its 95% interval.",
    )
    gaps = [(_label(row), row.difference) for row in made.rows if row.difference]
    if not gaps:
        return first
    second = figure(
        interval_chart("fused minus each model", gaps, "fused minus this model", zero=True, signed=True),
        "Differences on the same questions (paired), with 95% intervals: what crosses 0 is not decided.",
    )
    return el("div", first, second, class_="pair")


def _score_table(made: ScoreTable) -> Html:
    header = [
        "Model",
        "Kind",
        made.measure.capitalize(),
        "95% interval",
        "Fused − this",
        "95% (paired)",
        *made.columns,
    ]
    rows = [
        [
            row.name,
            row.kind,
            format_score(row.score.value),
            format_limits(row.score),
            format_difference(row.difference.value) if row.difference else "",
            format_limits(row.difference, signed=True) if row.difference else "",
            *(format_score(row.parts[c]) if c in row.parts else "" for c in made.columns),
        ]
        for row in made.rows
    ]
    n = max((row.score.n for row in made.rows), default=0)
    fused = [i for i, row in enumerate(made.rows) if row.kind == "Fused"]
    caption = f"{n:,} questions or samples, each model under its own template"
    return table(caption, header, rows, text_columns=2, strong=fused)


def _radar(made: ScoreTable) -> Html | None:
    if len(made.columns) < 3:
        return None
    targets = sorted((r for r in made.rows if r.kind == "Target"), key=lambda row: -row.score.value)
    kept = [
        row
        for row in made.rows
        if row.kind in ("Pivot", "Control", "Fused") or row in targets[:RADAR_TARGETS]
    ]
    series = [(_label(row), [row.parts.get(c, math.nan) for c in made.columns]) for row in kept]
    left_out = len(targets) - RADAR_TARGETS
    best = f" The best {RADAR_TARGETS} of {len(targets)} targets are drawn." if left_out > 0 else ""
    chart = radar_chart("score by category", made.columns, series)
    return figure(chart, f"Share of right answers by category; the rim is the outermost number.{best}")


def _label(row: Row) -> str:
    return label(row.kind, row.name)
