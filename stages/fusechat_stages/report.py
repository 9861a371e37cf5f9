"""Stage report: one run -> one self-contained HTML page, `report.html`.

Made per run and never cached: its address holds a nonce. It reads `runs/<uid>.json` (runtime["run"]) and the
small files of the run's artifacts; the page loads nothing from anywhere and runs no script.
params: {"nonce", "title"}; runtime: {"run"}; no inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusechat.errors import MissingInput

from fusechat_stages import report_scores
from fusechat_stages import report_sections as sections
from fusechat_stages.artifacts import Input, Output
from fusechat_stages.report_data import RunFacts, gather
from fusechat_stages.report_html import Html, el
from fusechat_stages.report_style import CSS

VERSION = 1
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A browser that reads this refuses to load anything, should a name ever get past the escaping."""


def run(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Output) -> None:
    """Write the page. MissingInput if the run's record is not in the store."""
    key = str(out.runtime["run"])
    record = out.store.get_json(key)
    if record is None:
        raise MissingInput(
            f"{key} is not in the store; the report is made at the end of a run, which writes it"
        )
    facts = gather(out.store, record)
    path = out.folder / "report.html"
    path.write_text(page(facts, str(params.get("title") or facts.name)), encoding="utf-8")
    out.add("report.html", path)
    out.metrics.update({"steps": len(facts.steps), "bytes": path.stat().st_size})


def page(facts: RunFacts, title: str) -> str:
    """The whole document."""
    parts = [
        report_scores.scores(facts),
        report_scores.perplexity(facts),
        sections.merging(facts),
        sections.training(facts),
        sections.sources(facts),
        sections.steps(facts),
        sections.notes(facts),
    ]
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", f"{title}: FuseChat report"),
        el("style", Html(CSS)),
    )
    footer = el(
        "footer",
        el("p", f"FuseChat report of run {facts.name} ({facts.uid}), generation {facts.generation}."),
    )
    body = el("body", sections.page_header(facts, title), el("main", [p for p in parts if p]), footer)
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"
