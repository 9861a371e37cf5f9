"""Charts as SVG: intervals in rows, lines, stacked bars, and the radar. Numbers in, elements out.

Used by the report's sections. Every chart stands beside a table with the same numbers, has a title for screen
readers, and tells its series apart by dash or marker as well as by colour. Values that are not finite are
left out. Knows nothing of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusechat.intervals import Interval

from fusechat_stages.report_html import Html, el
from fusechat_stages.report_style import COLOURS, DASHES

WIDTH, WIDE = 520, 680
"""Pixels of a chart that stands beside another, and of one that has the page to itself."""

CHARACTER = 6.6
"""Width of a character of the charts' 12 px text, for margins."""


@dataclass(frozen=True)
class Series:
    """A named line: points (x, y) in order of x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """Values [low, high] -> pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5, least: float = 0.0) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`.

    In steps of 1, 2 or 5 times a power of 10, never below `least`: 1 for what is counted.
    """
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = max((high - low) / about, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def label(value: float) -> str:
    """A tick's number without needless digits."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:.4f}".rstrip("0").rstrip(".") if value % 1 else f"{value:,.0f}"


def interval_chart(
    title: str,
    rows: Sequence[tuple[str, Interval]],
    axis: str,
    *,
    zero: bool = False,
    strong: frozenset[str] = frozenset(),
    signed: bool = False,
) -> Html:
    """One row per name: a dot with its interval. `zero` draws the line of no difference."""
    width, left, right, height = WIDTH, _margin([n for n, _ in rows]), 20, 26
    values = [v for _, i in rows for v in (i.low, i.value, i.high) if math.isfinite(v)] + [0.0] * zero
    marks = ticks(min(values, default=0.0), max(values, default=1.0), 6)
    x = Scale(marks[0], marks[-1], left, width - right)
    bottom = height * len(rows) + 14
    parts = [_vertical(x(m), 4, bottom, label(m) if not signed or not m else f"{m:+.3g}") for m in marks]
    if zero:
        parts.append(el("line", x1=x(0), x2=x(0), y1=4, y2=bottom, class_="axis"))
    for n, (name, interval) in enumerate(rows):
        y = height * n + 20
        parts.append(
            el("text", _cut(name, 34), x=left - 12, y=y + 4, text_anchor="end", **_strong(name in strong))
        )
        if math.isfinite(interval.low) and math.isfinite(interval.high):
            ends = {"y1": y, "y2": y, "x1": x(interval.low), "x2": x(interval.high)}
            parts.append(el("line", **ends, class_="s0", stroke_width=3, stroke_linecap="round"))
        if math.isfinite(interval.value):
            parts.append(
                el("circle", cx=x(interval.value), cy=y, r=6 if name in strong else 4.5, class_="f0")
            )
    parts.append(_axis_name(axis, (left + width - right) / 2, bottom + 36))
    return _svg(title, width, bottom + 46, parts)


def line_chart(
    title: str,
    series: Sequence[Series],
    x_axis: str,
    y_axis: str,
    *,
    markers: bool = False,
    from_zero: bool = False,
) -> Html:
    """Lines over an axis of whole numbers (steps, layers), named below."""
    width, left, right, top, bottom = WIDTH, 58, 16, 12, 240
    shown = [Series(s.name, [p for p in s.points if all(map(math.isfinite, p))]) for s in series]
    xs = [x for s in shown for x, _ in s.points] or [0.0, 1.0]
    ys = [y for s in shown for _, y in s.points] or [0.0, 1.0]
    marks = ticks(0.0 if from_zero else min(ys), max(ys))
    x, y = Scale(min(xs), max(xs), left, width - right), Scale(marks[0], marks[-1], bottom, top)
    parts = [_horizontal(y(m), left, width - right, label(m)) for m in marks]
    parts += [
        _vertical(x(m), bottom, bottom, label(m))
        for m in ticks(min(xs), max(xs), 8, least=1)
        if min(xs) <= m <= max(xs)
    ]
    for n, one in enumerate(shown):
        parts.append(_line([(x(a), y(b)) for a, b in one.points], n))
        if markers or len(one.points) == 1:
            parts += [_marker(x(a), y(b), n) for a, b in one.points]
    parts.append(_axis_name(x_axis, (left + width - right) / 2, bottom + 34))
    parts.append(
        el(
            "text",
            y_axis,
            x=-(top + bottom) / 2,
            y=14,
            text_anchor="middle",
            transform="rotate(-90)",
            class_="muted",
        )
    )
    legend, end = _legend([s.name for s in shown], left, bottom + 56, width - right, markers=markers)
    return _svg(title, width, end, [*parts, *legend])


def bar_chart(
    title: str, rows: Sequence[tuple[str, Mapping[str, float]]], parts_named: Sequence[str]
) -> Html:
    """Stacked shares of 1, one bar a row; a share above 6 % is written into its bar."""
    width, left, right, height = WIDE, _margin([n for n, _ in rows]), 20, 30
    x = Scale(0, 1, left, width - right)
    bottom = height * len(rows) + 8
    drawn = [_vertical(x(m), 2, bottom, f"{m:.0%}") for m in (0, 0.25, 0.5, 0.75, 1)]
    for n, (name, shares) in enumerate(rows):
        y, at = height * n + 8, 0.0
        drawn.append(el("text", _cut(name, 34), x=left - 12, y=y + 14, text_anchor="end"))
        for i, part in enumerate(parts_named):
            share = shares.get(part, 0.0)
            if not (math.isfinite(share) and share > 0):
                continue
            box = {"x": x(at), "y": y, "width": max(0.5, x(at + share) - x(at) - 1), "height": 20}
            drawn.append(
                el("rect", el("title", f"{name}: {part} {share:.1%}"), **box, class_=f"f{i}", opacity=0.85)
            )
            if share > 0.06:
                middle = (x(at) + x(at + share)) / 2
                told = {"text_anchor": "middle", "class_": "small", "style": "fill:var(--bg)"}
                drawn.append(el("text", f"{share:.0%}", x=middle, y=y + 14, **told))
            at += share
    legend, end = _legend(list(parts_named), left, bottom + 40, width - right, boxes=True)
    return _svg(title, width, end, [*drawn, *legend])


def radar_chart(title: str, axes: Sequence[str], series: Sequence[tuple[str, Sequence[float]]]) -> Html:
    """Polygons over at least three axes from 0 in the middle to a round number at the rim."""
    assert len(axes) >= 3, "a radar needs three axes"
    width, middle_x, middle_y, radius = WIDTH, WIDTH / 2, 190.0, 150.0
    top = max([v for _, values in series for v in values if math.isfinite(v)], default=1.0) or 1.0
    rings = ticks(0.0, top, 4)
    scale = Scale(0.0, rings[-1], 0.0, radius)
    angles = [2 * math.pi * i / len(axes) - math.pi / 2 for i in range(len(axes))]

    def at(angle: float, value: float) -> tuple[float, float]:
        return middle_x + scale(value) * math.cos(angle), middle_y + scale(value) * math.sin(angle)

    parts = [
        el("polygon", points=_points([at(a, ring) for a in angles]), class_="grid") for ring in rings[1:]
    ]
    for angle, name in zip(angles, axes, strict=True):
        x, y = at(angle, rings[-1])
        parts.append(el("line", x1=middle_x, y1=middle_y, x2=x, y2=y, class_="grid"))
        side = "middle" if abs(math.cos(angle)) < 0.3 else ("start" if math.cos(angle) > 0 else "end")
        out_x, out_y = x + 12 * math.cos(angle), y + 14 * math.sin(angle) + 4
        parts.append(el("text", _cut(name, 24), x=out_x, y=out_y, text_anchor=side))
    for ring in rings[1:]:
        parts.append(
            el("text", label(ring), x=middle_x + 4, y=at(-math.pi / 2, ring)[1] + 11, class_="muted small")
        )
    for n, (_, values) in enumerate(series):
        corners = [at(a, v if math.isfinite(v) else 0.0) for a, v in zip(angles, values, strict=True)]
        parts.append(_line([*corners, corners[0]], n, filled=True))
        parts += [_marker(x, y, n) for x, y in corners]
    legend, end = _legend([name for name, _ in series], 60, middle_y + radius + 46, width - 20, markers=True)
    return _svg(title, width, end, [*parts, *legend])


def _svg(title: str, width: float, height: float, parts: Sequence[Html]) -> Html:
    size = {"viewBox": f"0 0 {width:.0f} {height:.0f}", "width": int(width), "height": int(height)}
    return el("svg", el("title", title), parts, role="img", **size)


def _strong(strong: bool) -> dict[str, object]:
    return {"class_": "strong"} if strong else {}


def _margin(names: Sequence[str]) -> float:
    return 24 + CHARACTER * min(34, max([len(n) for n in names], default=0))


def _cut(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _vertical(x: float, top: float, bottom: float, text: str) -> Html:
    line = el("line", x1=x, x2=x, y1=top, y2=bottom + 4, class_="grid")
    return el("g", line, el("text", text, x=x, y=bottom + 18, text_anchor="middle", class_="muted small"))


def _horizontal(y: float, left: float, right: float, text: str) -> Html:
    line = el("line", x1=left, x2=right, y1=y, y2=y, class_="grid")
    return el("g", line, el("text", text, x=left - 8, y=y + 4, text_anchor="end", class_="muted small"))


def _axis_name(text: str, x: float, y: float) -> Html:
    return el("text", text, x=x, y=y, text_anchor="middle", class_="muted")


def _points(corners: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)


def _line(points: Sequence[tuple[float, float]], n: int, *, filled: bool = False) -> Html:
    look = f"s{n % COLOURS}" + (f" f{n % COLOURS}" if filled else "")
    dash = DASHES[(n + n // COLOURS) % len(DASHES)]
    told = {"fill_opacity": 0.07} if filled else {"fill": "none"}
    return el(
        "polyline", points=_points(points), class_=look, stroke_width=2, stroke_dasharray=dash or None,
        stroke_linejoin="round", **told,
    )  # fmt: skip


def _marker(x: float, y: float, n: int) -> Html:
    """Circle, square, triangle or diamond, by the series."""
    look, r = f"f{n % COLOURS}", 3.6
    if n % 4 == 0:
        return el("circle", cx=x, cy=y, r=r, class_=look)
    if n % 4 == 1:
        return el("rect", x=x - r, y=y - r, width=2 * r, height=2 * r, class_=look)
    corners = [(x, y - r * 1.3), (x + r * 1.2, y + r), (x - r * 1.2, y + r)]
    if n % 4 == 3:
        corners = [(x, y - r * 1.4), (x + r * 1.4, y), (x, y + r * 1.4), (x - r * 1.4, y)]
    return el("polygon", points=_points(corners), class_=look)


def _legend(
    names: Sequence[str], left: float, top: float, right: float, *, boxes: bool = False, markers: bool = False
) -> tuple[list[Html], float]:
    """Names with their line or box, in as many rows as they need; and where the last row ends."""
    parts: list[Html] = []
    x, y = left, top
    for n, name in enumerate(names):
        width = 40 + CHARACTER * len(_cut(name, 30)) + 18
        if x > left and x + width > right:
            x, y = left, y + 20
        if boxes:
            parts.append(
                el("rect", x=x + 8, y=y - 10, width=14, height=12, class_=f"f{n % COLOURS}", opacity=0.85)
            )
        else:
            parts.append(_line([(x, y - 4), (x + 30, y - 4)], n))
            if markers:
                parts.append(_marker(x + 15, y - 4, n))
        parts.append(el("text", _cut(name, 30), x=x + 36, y=y))
        x += width
    return parts, y + 12
