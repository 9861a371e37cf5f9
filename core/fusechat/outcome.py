"""How a local run ended, for a person: the score table, where things lie, the last line; and its record.

Used by cli. The record (`runs/<name>/run.json` below the home folder) is what `fusechat status` prints.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusechat import scores
from fusechat.local import Outcome
from fusechat.progress import State
from fusechat.screen import Screen
from fusechat.spec import FusionRun
from fusechat.store import Store


@contextmanager
def screen(quiet: bool) -> Iterator[Screen]:
    """The terminal, or plain lines."""
    with Screen(quiet=quiet) as shown:
        yield shown


def save(home: Path, run: FusionRun, ended: Outcome, store: str | None) -> None:
    """Write the record of the run; `store` is the URI of its store, None of the home folder's own."""
    folder = home / "runs" / run.metadata.name
    folder.mkdir(parents=True, exist_ok=True)
    record = {**(ended.record or {}), "store": store, "exitCode": ended.exit_code, "message": ended.message}
    partial = folder / "run.json.partial"
    partial.write_text(json.dumps(record, indent=1))
    partial.replace(folder / "run.json")


def tell(run: FusionRun, store: Store, ended: Outcome, home: Path) -> int:
    """Print the scores, where the model and the page are, and one last line; returns the exit code."""
    name = run.metadata.name
    if ended.exit_code == 0 and ended.plan:
        for table in tables(store, ended):
            print("\n" + scores.render_text(table))
        where = next(
            (s.address for s in ended.plan.sinks() if s.subject and s.stage in ("merge", "fuse")), None
        )
        print(f"\nmodel   {store.uri.rstrip(chr(47))}/{where}" if where else "")
        if where:
            print("        into a folder: fusechat get FILE --to FOLDER")
        print(f"report  {ended.report}" if ended.report else "report  (not made)")
        cached = sum(o.state is State.CACHED for o in ended.observed.values())
        computed = sum(o.state is State.DONE for o in ended.observed.values())
        all_cached = len(ended.plan.steps) - computed
        assert cached <= all_cached
        share = "everything was cached" if not computed else f"{computed} steps computed, {all_cached} cached"
        print(f"{name}: Succeeded in {ended.seconds:.1f} s, {share}")
        return 0
    word = "Stopped" if ended.exit_code == 130 else "Failed"
    print(f"{name}: {word} after {ended.seconds:.1f} s (exit code {ended.exit_code}): {ended.message}")
    return ended.exit_code


def tables(store: Store, ended: Outcome) -> list[scores.ScoreTable]:
    """The score tables of the run's evaluations, read from the store."""
    found: dict[str, list[scores.Subject]] = {}
    assert ended.plan
    for step in ended.plan.steps:
        if step.stage != "evaluate" or not step.address or not step.subject:
            continue
        if manifest := store.manifest(step.address):
            names = [e for e in manifest.files if e.name in ("answers.jsonl", "samples.jsonl")]
            lines = store.read(names[0], 0, names[0].size).decode().split("\n") if names else []
            outcomes = scores.read_outcomes(lines)
            subject = scores.Subject(step.subject.kind, step.subject.name, manifest.metrics, outcomes)
            found.setdefault(str(step.params["benchmark"]), []).append(subject)
    made = [
        scores.score_table(found.get("exactMatch", [])),
        scores.perplexity_table(found.get("perplexity", [])),
    ]
    return [table for table in made if table]


def status(home: Path, run: FusionRun) -> str:
    """The last run's record as lines."""
    path = home / "runs" / run.metadata.name / "run.json"
    if not path.exists():
        return f"{run.metadata.name}: has not been run from here (no {path})"
    record: dict[str, Any] = json.loads(path.read_text())
    lines = [_line(step) for step in record.get("steps", [])]
    ending = (
        "Succeeded" if record["exitCode"] == 0 else f"exit code {record['exitCode']}: {record['message']}"
    )
    return "\n".join([*lines, f"{run.metadata.name}: {ending}"])


def _line(step: dict[str, Any]) -> str:
    how = "cached" if step["cached"] else f"{step['seconds']:.1f} s" if step["state"] == "Succeeded" else ""
    where = (step["address"] or "pending")[:24]
    return f"{step['name']:<28} {step['state']:<10} {how:>9}  {where}  {step['error']}".rstrip()
