"""HTML and SVG elements as values: text is escaped by construction, only elements are taken as they are.

Used by the report's sections and charts. Knows tags and tables, nothing of a run.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from html import escape

VOID = frozenset({"meta", "br", "hr", "col"})
SVG = frozenset({"circle", "line", "path", "polygon", "polyline", "rect"})


class Html(str):
    """Markup that is safe to put into a page as it is. Any other str is text and will be escaped."""

    __slots__ = ()


Child = Html | str | int | float | None


def el(tag: str, *children: Child | Iterable[Child], **attributes: object) -> Html:
    """One element. Attribute names: `class_` is class, `_` is `-`; a value of None or False is left out."""
    parts = [f"<{tag}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        name = key.rstrip("_").replace("_", "-")
        parts.append(f" {name}" if value is True else f' {name}="{escape(_text(value), quote=True)}"')
    if tag in VOID:
        return Html("".join([*parts, ">"]))
    if tag in SVG and not children:
        return Html("".join([*parts, "/>"]))
    return Html("".join([*parts, ">", *map(_child, flat(children)), f"</{tag}>"]))


def join(children: Iterable[Child]) -> Html:
    """Several elements after each other."""
    return Html("".join(map(_child, children)))


def flat(children: Iterable[Child | Iterable[Child]]) -> Iterable[Child]:
    for child in children:
        if isinstance(child, str) or not isinstance(child, Iterable):
            yield child
        else:
            yield from child


def _child(child: Child) -> str:
    if child is None:
        return ""
    return child if isinstance(child, Html) else escape(_text(child), quote=False)


def _text(value: object) -> str:
    """Numbers of coordinates in a few digits; control characters, which HTML forbids, as a replacement."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else ""
    return "".join(
        c if c in "\n\t" or (ord(c) >= 32 and not 0xD800 <= ord(c) < 0xE000) else "�" for c in str(value)
    )


def table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[Child]],
    *,
    text_columns: int = 1,
    strong: Collection[int] = (),
) -> Html:
    """A data table; the first column heads its row, those after `text_columns` hold numbers.

    Rows numbered in `strong` stand out.
    """

    def cell(i: int, value: Child) -> Html:
        shown = "" if value is None else value
        if i == 0:
            return el("th", shown, scope="row")
        return el("td", shown, class_="number" if i >= text_columns else None)

    heads = [
        el("th", h, scope="col", class_="number" if i >= text_columns else None) for i, h in enumerate(header)
    ]
    body = [
        el("tr", [cell(i, value) for i, value in enumerate(row)], class_="strong" if n in strong else None)
        for n, row in enumerate(rows)
    ]
    inner = [el("caption", caption), el("thead", el("tr", heads)), el("tbody", body)]
    return el("div", el("table", inner), class_="scroll")


def figure(chart: Html, caption: Child) -> Html:
    """A chart with the sentence that says how to read it."""
    return el("figure", el("div", chart, class_="scroll"), el("figcaption", caption))


def section(title: str, *children: Child | Iterable[Child]) -> Html:
    """A headed section with an anchor made of its title."""
    anchor = "".join(c if c.isalnum() else "-" for c in title.lower())
    return el("section", el("h2", title, id=anchor), *children)
