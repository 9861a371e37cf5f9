"""The run's steps as a drawn graph: a column per stage, an edge per input.

Used by the report. Knows the steps' record and nothing of what they computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusechat_stages.report_data import StepFacts
from fusechat_stages.report_html import Html, el

COLUMNS = (
    "resolve",
    "fetch",
    "extract",
    "count",
    "map",
    "align",
    "filter",
    "fuse",
    "merge",
    "evaluate",
    "perplexity",
)
WIDTH, HEIGHT, GAP_X, GAP_Y, TOP = 112, 34, 27, 10, 26
NAME_CHARACTERS = 17


def graph(steps: Sequence[StepFacts]) -> Html:
    """Boxes with name and time, dashed where the result was there already, and the edges between them."""
    places = layout(steps)
    edges = [
        _edge(places[source], places[step.name])
        for step in steps
        for source in dict.fromkeys(step.inputs.values())
        if source in places
    ]
    used = sorted({x for x, _ in places.values()})
    heads = {x: column(next(s for s in steps if places[s.name][0] == x)) for x in used}
    titles = [el("text", heads[x], x=x + WIDTH / 2, y=14, text_anchor="middle", class_="muted") for x in used]
    width = max(used, default=0) + WIDTH + 2
    height = max((y for _, y in places.values()), default=0) + HEIGHT + 4
    size = {"viewBox": f"0 0 {width} {height:.0f}", "width": width, "height": int(height)}
    inner = [el("title", f"The run's {len(steps)} steps and what each reads"), titles, edges]
    return el("svg", *inner, [_node(step, places[step.name]) for step in steps], role="img", **size)


def column(step: StepFacts) -> str:
    """The column of a step: its stage; align's preparing operations and further benchmarks have their own."""
    if step.params.get("op") in ("count", "map"):
        return str(step.params["op"])
    if step.stage == "evaluate":
        benchmark = str(step.params.get("benchmark", "exactMatch"))
        return "evaluate" if benchmark == "exactMatch" else benchmark
    return step.stage


def layout(steps: Sequence[StepFacts]) -> dict[str, tuple[int, float]]:
    """Upper left corner of every step's box; within a column by the mean row of their inputs."""
    columns: dict[str, list[StepFacts]] = {}
    for step in steps:
        columns.setdefault(column(step), []).append(step)
    named = [name for name in COLUMNS if name in columns]
    named += [name for name in columns if name not in COLUMNS]
    tallest = max((len(members) for members in columns.values()), default=0)
    row: dict[str, float] = {}
    places: dict[str, tuple[int, float]] = {}
    for n, name in enumerate(named):
        members = columns[name]
        if members[0].stage != "evaluate":  # there the score table's order reads better than short edges
            members = sorted(members, key=lambda step: _mean_row(step, row))
        offset = (tallest - len(members)) / 2
        for i, step in enumerate(members):
            row[step.name] = offset + i
            places[step.name] = (1 + n * (WIDTH + GAP_X), TOP + (offset + i) * (HEIGHT + GAP_Y))
    return places


def _mean_row(step: StepFacts, row: Mapping[str, float]) -> float:
    found = [row[name] for name in step.inputs.values() if name in row]
    return sum(found) / len(found) if found else 0.0


def _node(step: StepFacts, place: tuple[int, float]) -> Html:
    x, y = place
    failed = step.state == "Failed"
    state = "failed" if failed else ("cached" if step.cached else "")
    name = step.name.removeprefix(f"{column(step)}-")  # the column's head says the stage
    short = name if len(name) <= NAME_CHARACTERS else name[: NAME_CHARACTERS - 1] + "…"
    said = f"{step.name}: {state_of(step)}"
    return el(
        "g",
        el("title", said),
        el("rect", x=x, y=y, width=WIDTH, height=HEIGHT, rx=5),
        el("text", short, x=x + 7, y=y + 14, class_="small"),
        el("text", state_of(step), x=x + 7, y=y + 27, class_="muted small"),
        class_=f"node {state}".strip(),
    )


def state_of(step: StepFacts) -> str:
    """`cached`, `12.3 s`, or what else became of the step."""
    if step.state == "Succeeded":
        return "cached" if step.cached else duration(step.seconds)
    return step.state.lower()


def duration(seconds: float) -> str:
    """Seconds as a person says them: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _edge(source: tuple[int, float], target: tuple[int, float]) -> Html:
    x0, y0 = source[0] + WIDTH, source[1] + HEIGHT / 2
    x1, y1 = target[0], target[1] + HEIGHT / 2
    bend = max(18.0, (x1 - x0) / 2)
    return el(
        "path",
        d=f"M{x0} {y0:.1f}C{x0 + bend:.1f} {y0:.1f} {x1 - bend:.1f} {y1:.1f} {x1} {y1:.1f}",
        class_="edge",
    )
