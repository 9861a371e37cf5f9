"""The page's parts: each takes the run's facts and gives a section, or nothing where there is nothing to say.

Used by report. Beside every chart stands the table of its numbers. Knows the facts and how to draw; reads
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusechat.scores import label

from fusechat_stages.report_charts import Series, bar_chart, line_chart
from fusechat_stages.report_data import Curve, RunFacts, StepFacts, by_layer
from fusechat_stages.report_graph import duration, graph, state_of
from fusechat_stages.report_html import Html, el, figure, join, section, table
from fusechat_stages.report_scores import verdict

MANY_STEPS = 60


def page_header(facts: RunFacts, title: str) -> Html:
    """Name, profile, what came out, and where the model is."""
    computed = [s for s in facts.steps if s.state == "Succeeded" and not s.cached]
    cached = [s for s in facts.steps if s.cached]
    shown: list[tuple[str, Html | str]] = []
    if facts.fused and facts.fused.address:
        where = f"{facts.store.rstrip('/')}/{facts.fused.address}" if facts.store else facts.fused.address
        shown.append(("Fused model", el("code", where)))
    shown.append(("Started", facts.started or "-"))
    if facts.seconds is not None:
        shown.append(("Took", duration(float(facts.seconds))))
    shown.append(("Steps", f"{len(facts.steps)}: {len(computed)} computed, {len(cached)} cached"))
    if failed := [s for s in facts.steps if s.state == "Failed"]:
        shown.append(("Failed", el("span", ", ".join(s.name for s in failed), class_="bad")))
    badges = [
        f"profile {facts.profile}" if facts.profile else "",
        f"run {facts.name}" if title != facts.name else "",
    ]
    return el(
        "header",
        el("h1", title or facts.name or "FuseChat run"),
        el("p", [el("span", badge, class_="badge") for badge in badges if badge]),
        [el("p", sentence, class_="verdict") for sentence in verdict(facts)],
        el("dl", [join([el("dt", name), el("dd", value)]) for name, value in shown], class_="facts"),
    )


def merging(facts: RunFacts) -> Html | None:
    """What each target weighs, layer by layer."""
    found = facts.coefficients
    if found is None:
        return None
    layers, outside = by_layer(found)
    parts: list[Html] = []
    if layers:
        series = [Series(name, [(n, v[i]) for n, v in layers]) for i, name in enumerate(found.labels)]
        chart = line_chart(
            "merge coefficient by layer", series, "layer", "mean coefficient", markers=True, from_zero=True
        )
        parts.append(
            figure(
                chart, "Mean over the layer's tensors of the coefficient that each target has in the merge."
            )
        )
    rows = [[f"layer {n}", *(f"{v:.4f}" for v in values)] for n, values in layers]
    rows += [[name, *(f"{v:.4f}" for v in values)] for name, values in outside]
    inner = table(f"Coefficients, method {found.method or 'unknown'}", ["Tensors", *found.labels], rows)
    parts.append(_folded("Coefficients as numbers", inner, len(rows)))
    return section("Merge coefficients", parts)


def training(facts: RunFacts) -> Html | None:
    """Loss curves, and how each training ended."""
    steps = [s for s in facts.of_stage("fuse") if s.metrics]
    if not steps and not facts.curves:
        return None
    parts: list[Html] = []
    drawn = [
        _curves_figure(facts.curves, "lm_loss", "Loss on the gold text", "cross-entropy (nats per token)"),
        _curves_figure(facts.curves, "fuse_loss", "Distance to the chosen distribution", "distillation loss"),
    ]
    parts.append(el("div", [chart for chart in drawn if chart], class_="pair"))
    header = [
        "Training",
        "Kind",
        "Steps",
        "Tokens",
        "Loss, last epoch",
        "Source chosen (MinCE)",
        "Weights moved",
        "Took",
    ]
    rows = [
        [
            s.subject[1] if s.subject else s.name,
            s.subject[0] if s.subject else "",
            _count(s.metrics.get("steps")),
            _count(s.metrics.get("tokens")),
            _number(s.metrics.get("loss")),
            _share(s.metrics.get("winShare")),
            _share(s.metrics.get("weightsMoved")),
            state_of(s),
        ]
        for s in steps
    ]
    if rows:
        parts.append(table("How each training ended", header, rows, text_columns=2))
    return section("Training", parts)


def _curves_figure(curves: Sequence[Curve], key: str, title: str, axis: str) -> Html | None:
    series = [Series(label(*c.subject), c.of(key)) for c in curves]
    series = [one for one in series if one.points]
    if not series:
        return None
    return figure(
        line_chart(title, series, "optimiser step", axis), f"{title}, mean over equal shares of the steps."
    )


KINDS = {"exact": "exact", "mapped": "mapped", "oneHot": "one-hot", "empty": "no position"}


def sources(facts: RunFacts) -> Html | None:
    """What alignment made of each source's rows, what the filter kept, how often the source was better."""
    aligned = [s for s in facts.of_stage("align") if s.metrics.get("rows")]
    if not aligned:
        return None
    shares = {s.name: {k: s.metrics.get(k, 0) / s.metrics["rows"] for k in KINDS} for s in aligned}
    present = [k for k in KINDS if any(found[k] for found in shares.values())]
    bars = [(_source(s), {KINDS[k]: shares[s.name][k] for k in present}) for s in aligned]
    chart = bar_chart("what became of each source's rows", bars, [KINDS[k] for k in present])
    kept = {_source(s): s.metrics for s in facts.of_stage("filter")}
    wins = _wins(facts)
    header = [
        "Source",
        "Rows",
        *(KINDS[k] for k in present),
        "Probability lost",
        "Samples",
        "Kept",
        "Source chosen",
    ]
    rows = []
    for s in aligned:
        name, chosen = _source(s), kept.get(_source(s), {})
        won = wins.get(name, chosen.get("winShare"))
        share = [_share(shares[s.name][k]) for k in present]
        lost = _share(s.metrics.get("massLostShare"))
        rows.append([name, _count(s.metrics["rows"]), *share, lost, _count(chosen.get("samples")),
                     _share(chosen.get("keptShare")), _share(won)])  # fmt: skip
    said = (
        "A row is a next-token position of the pivot. Exact: every kept token of the source has an equal "
        "token in the pivot's vocabulary. Mapped: some went to another token. No position: the source has no "
        "row there. Source chosen: samples on which the source's distribution was closer to the gold text "
        "than the pivot's (MinCE)."
    )
    table_ = table("Alignment, filter and choice by source", header, rows)
    return section("Sources: alignment and choice", figure(chart, said), table_)


def _wins(facts: RunFacts) -> dict[str, float]:
    """Share of the samples on which each source was chosen; of all sources together in MultiTeacher."""
    named = {step.name: _source(step) for step in facts.of_stage("align")}
    found = {}
    for step in facts.of_stage("fuse"):
        for i, share in enumerate(step.metrics.get("wins", ())):
            if source := named.get(step.inputs.get(f"aligned.{i}", "")):
                found[source] = float(share)
    return found


def _source(step: StepFacts) -> str:
    return step.source or step.name.partition("-")[2] or step.name


def steps(facts: RunFacts) -> Html:
    """The graph of steps, and the table of all of them."""
    header = ["Step", "Stage", "State", "Attempts", "Seconds", "Address", "Reads"]
    rows = [
        [
            s.name,
            s.stage,
            el("span", f"failed: {s.error or 'see its log'}", class_="bad")
            if s.state == "Failed"
            else state_of(s),
            s.attempts or "",
            f"{s.seconds:.1f}" if s.seconds else "",
            el("code", f"{s.address.partition('/')[2][:12]}") if s.address else "",
            ", ".join(dict.fromkeys(s.inputs.values())),
        ]
        for s in facts.steps
    ]
    many = len(facts.steps) > MANY_STEPS
    drawn = figure(
        graph(facts.steps),
        "A dashed box was there already (cached); an edge leads from a step to those that read it.",
    )
    parts = [_folded(f"The graph of {len(facts.steps)} steps", drawn, len(facts.steps)) if many else drawn]
    listed = table("All steps in order", header, rows, text_columns=len(header))
    return section("Steps", parts, _folded("All steps as a table", listed, len(rows)))


def notes(facts: RunFacts) -> Html | None:
    """What could not be read."""
    return section("Left out", el("ul", [el("li", note) for note in facts.notes])) if facts.notes else None


def _folded(title: str, inner: Html, rows: int) -> Html:
    return el("details", el("summary", f"{title} ({rows})"), inner)


def _count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else ""


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _share(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else ""
