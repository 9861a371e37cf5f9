"""What a person sees of a local run: bars for what runs, a line for what ended, and the score table.

Used by cli. Needs `rich` (extra `local`); decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fusechat.pace import rate as rate_of
from fusechat.plan import Plan, Step
from fusechat.progress import Observed, State

LINE_SECONDS = 30.0
"""Without a terminal: how often a running step says where it is."""


class Screen:
    """A `local.Watcher` on a terminal; plain lines where there is none."""

    def __init__(self, *, quiet: bool = False) -> None:
        console = Console()
        self._console, self._quiet = console, quiet
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[done]}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            console=console,
            transient=True,
        )
        self._live = Live(self._bars, console=console, refresh_per_second=5, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._overall: TaskID | None = None
        self._counts = {"cached": 0, "computed": 0, "all": 0}
        self._said_at: dict[str, float] = {}

    def __enter__(self) -> Screen:
        if self._console.is_terminal and not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars away; what is printed after stands alone."""
        self._live.stop()

    def planned(self, plan: Plan, cached: Sequence[str], missing: Sequence[str]) -> None:
        self._counts = {"cached": len(cached), "computed": 0, "all": len(plan.steps)}
        self._overall = self._add(f"[bold]{plan.run}", len(missing))
        if missing:
            text = f"{len(plan.steps)} steps: {len(cached)} cached, {len(missing)} to compute"
        else:
            text = f"{len(plan.steps)} steps: everything is cached"
        self.said(text)

    def started(self, step: Step) -> None:
        self._said_at[step.name] = time.monotonic()
        if step.name not in self._tasks:
            self._tasks[step.name] = self._add(f"  {step.name}", None)

    def moved(self, running: Mapping[str, Mapping[str, Any]]) -> None:
        for name, seen in running.items():
            if name in self._tasks and seen.get("total"):
                fields = _figures(seen)
                shown: dict[str, Any] = {**fields, "completed": seen["done"], "total": seen["total"]}
                self._bars.update(self._tasks[name], **shown)
                self._line(name, seen, fields)

    def ended(self, step: Step, observed: Observed, seconds: float) -> None:
        if step.name in self._tasks:
            self._bars.remove_task(self._tasks.pop(step.name))
        if observed.state is State.DONE:
            self._counts["computed"] += 1
            if self._overall is not None and step.stage not in ("resolve", "report"):
                done = f"{self._counts['cached']} cached, {self._counts['computed']} computed"
                self._bars.update(self._overall, advance=1, done=done)
            self._print(f"[green]✓[/] {step.name:<28} {seconds:7.1f} s  [dim]{_facts(observed.metrics)}[/]")
        elif observed.state is State.FAILED:
            self._print(f"[red]✗[/] {step.name:<28} {seconds:7.1f} s")
            self._console.print(f"  {observed.error}", style="red", markup=False, highlight=False)

    def said(self, sentence: str) -> None:
        if not self._quiet:
            self._console.print(sentence, markup=False, highlight=False)

    def _add(self, text: str, total: float | None) -> TaskID:
        return self._bars.add_task(text, total=total, done="", rate="", eta="")

    def _print(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, highlight=False)

    def _line(self, name: str, seen: Mapping[str, Any], fields: Mapping[str, str]) -> None:
        if self._console.is_terminal or time.monotonic() - self._said_at[name] < LINE_SECONDS:
            return
        self._said_at[name] = time.monotonic()
        self.said(f"  {name}: {fields['done']} {fields['rate']} {fields['eta']}".rstrip())


def _figures(seen: Mapping[str, Any]) -> dict[str, str]:
    """done, rate and ETA of one step's progress, as text."""
    done, total, unit = float(seen["done"]), float(seen["total"]), str(seen.get("unit", ""))
    rate = rate_of(seen)
    if unit == "bytes":
        return {
            "done": f"{done / 1e6:.1f}/{total / 1e6:.1f} MB",
            "rate": f"{rate / 1e6:.1f} MB/s" if rate else "",
            "eta": _eta(done, total, rate),
        }
    extra = f" loss {seen['loss']:.3f}" if isinstance(seen.get("loss"), float) else ""
    return {
        "done": f"{done:,.0f}/{total:,.0f} {unit}{extra}",
        "rate": f"{rate:,.1f} {unit}/s" if rate else "",
        "eta": _eta(done, total, rate),
    }


def _eta(done: float, total: float, rate: float) -> str:
    if rate <= 0 or done >= total:
        return ""
    left = int((total - done) / rate)
    return f"{left // 60}:{left % 60:02d} left"


_FACTS = ("samples", "rows", "kept", "steps", "loss", "winShare", "coverage", "score", "perplexity")


def _facts(metrics: Mapping[str, Any]) -> str:
    found = [(name, metrics[name]) for name in _FACTS if isinstance(metrics.get(name), int | float)]
    return "  ".join(f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value:,}"
                     for name, value in found[:3])  # fmt: skip
