"""Status people and programs can read: lines, details, results, and the conditions beside them. Pure.

Called by reconcile at the end of every pass. The sentence of Ready says what happens or what is stuck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeGuard

from fusechat.pace import rate
from fusechat.plan import Plan, Step

from fusechat_operator import conditions, jobs
from fusechat_operator.children import Child
from fusechat_operator.conditions import Verdict, timestamp
from fusechat_operator.fit import fit
from fusechat_operator.memory import Line, Memory, line_json
from fusechat_operator.scan_lines import Scan

MOST_DETAILS = 20
KEY_METRICS = 8
MOST_SCORES = 40
MANY_STEPS = 200
"""Beyond these the status says less, and `runs/<uid>.json` in the store all: etcd is no place for it."""


@dataclass
class Extras:
    """What only some passes know: progress by step, scores, the model, the report, errors by step."""

    progress: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    scores: Sequence[Mapping[str, Any]] = ()
    model: str | None = None
    report: str | None = None
    launcher: str = ""
    unpinned: Sequence[str] = ()


def render(
    work: jobs.Work,
    memory: Memory,
    scan: Scan,
    verdict: Verdict,
    frozen: Mapping[str, Any],
    extras: Extras,
    now: float,
) -> dict[str, Any]:
    """The whole status, without what is nothing."""
    lines = list(scan.lines.values())
    # The report is made of what is done: counted, it would make a run of 23 steps stand at 23 of 24.
    counted = [line for line in lines if line.name != "report"]
    done = sum(line.done for line in counted)
    cached = sum(line.state == "Cached" for line in counted)
    active = [step for step in work.plan.steps if scan.lines[step.name].state == "Running"]
    ended = verdict.state in ("Succeeded", "Stalled")
    results = ("scores", "model", "report") if verdict.state != "Succeeded" else ()
    old = {key: work.object.get("status", {}).get(key) for key in (*results, "finished")}
    made: dict[str, Any] = {
        "observedGeneration": generation(work),
        "conditions": conditions.of(memory, verdict, generation(work), extras.unpinned, now),
        "stage": ", ".join(dict.fromkeys(step.stage for step in active))[:64] or None,
        "progress": f"{done}/{len(counted)}",
        "cached": f"{cached}/{len(counted)}",
        "steps": [line_json(line, brief=len(lines) > MANY_STEPS) for line in lines],
        "details": _details(work, memory, scan, extras, now),
        "plan": dict(frozen),
        "launcher": extras.launcher or memory.launcher or None,
        "model": extras.model or old.get("model"),
        "report": extras.report or old.get("report"),
        "scores": list(extras.scores) or old.get("scores"),
        "gpuSeconds": round(memory.gpu_seconds + scan.gpu_seconds, 1) or None,
        "lastRetry": memory.last_retry or None,
        "started": memory.started or timestamp(now),
        "finished": (old["finished"] or timestamp(now)) if ended else None,
    }
    made["score"] = _headline(made["scores"] or ())
    return fit({key: value for key, value in made.items() if value not in (None, [], {})})


def generation(work: jobs.Work) -> int:
    return int(work.object["metadata"].get("generation", 1))


def _details(work: jobs.Work, memory: Memory, scan: Scan, extras: Extras, now: float) -> list[dict[str, Any]]:
    """Failed steps first, then active ones, then those that wait for a reason of their own; some of many."""
    rank = {"Failed": 0, "Running": 1, "Waiting": 2}
    told = [step for step in work.plan.steps if scan.lines[step.name].state in rank]
    told.sort(key=lambda step: rank[scan.lines[step.name].state])
    return [_detail(work, memory, scan, extras, step, now) for step in told[: most_details(work.plan)]]


def most_details(plan: Plan) -> int:
    """How many steps a status tells more of: fewer where there are many lines already."""
    return MOST_DETAILS // 2 if len(plan.steps) > MANY_STEPS else MOST_DETAILS


def _detail(
    work: jobs.Work, memory: Memory, scan: Scan, extras: Extras, step: Step, now: float
) -> dict[str, Any]:
    line, child = scan.lines[step.name], scan.children.get(step.name)
    before, kind = memory.details.get(step.name, {}), jobs.kind_of(step, work.launcher)
    message = extras.errors.get(step.name) or scan.waits.get(step.name, "")
    if not message and line.state == "Failed":
        message = before.get("message", "")
    # An attempt whose child nobody has seen at work yet began now; what was recorded before is not its own.
    new = line.state == "Running" and memory.lines.get(step.name, Line(step.name)).state != "Running"
    begun = child.started if child and child.started else now if new else None
    # One that waits to go on goes on from there.
    kept = {k: before[k] for k in _KEPT if k in before} if line.state == "Waiting" else {}
    made: dict[str, Any] = {
        "name": step.name,
        "child": f"{kind}/{jobs.name_of(step, work.place)}" if step.address else None,
        "attempts": line_json(line).get("tries"),
        "started": timestamp(begun) if begun else before.get("started"),
        "finished": timestamp(child.ended) if child and child.ended else None,
        "shards": f"{child.succeeded}/{child.pods}" if child and child.pods > 1 and step.shards > 1 else None,
        "artifact": f"{work.place.uri}/{step.address}",
        "message": message[:1024],
        **kept,
        **_progress(extras.progress.get(step.name, {})),
    }
    return {k: v for k, v in made.items() if v not in (None, {}) and (v != "" or k == "message")}


_KEPT = ("percent", "metrics", "lastCheckpoint")


def _progress(found: Mapping[str, Any]) -> dict[str, Any]:
    """percent, rate, etaSeconds and lastCheckpoint of a step's progress.json, as far as it has them.

    A stage wrote it, of whatever version: what the API server would refuse would keep all of the status back.
    """
    done, total = (found.get(key) for key in ("done", "total"))
    if not (_is_number(done) and _is_number(total)) or total <= 0:
        return {}
    made: dict[str, Any] = {"percent": round(min(100.0, 100 * done / total), 1)}
    if pace := rate({key: value for key, value in found.items() if _is_number(value)}):
        made["rate"] = f"{pace:.3g} {found.get('unit', '')}/s"[:64]
        made["etaSeconds"] = int(max(0.0, total - done) / pace)
    numbers = {key: value for key, value in found.items() if key not in _KNOWN and _is_number(value)}
    if numbers:
        made["metrics"] = dict(list(numbers.items())[:KEY_METRICS])
    if _is_time(saved := found.get("lastCheckpoint")):
        made["lastCheckpoint"] = saved
    return made


def _is_time(value: Any) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _is_number(value: Any) -> TypeGuard[float]:
    """True is an int to Python, and to the API server a reason to refuse the status."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_KNOWN = ("done", "total", "from", "seconds", "at", "lastCheckpoint")


def summary(plan: Plan, lines: Mapping[str, Line], problems: Mapping[str, str]) -> str:
    """Ready's sentence while the run goes on: what is stuck, else what is at work."""
    done = f"{sum(line.done for line in lines.values())} of {len(lines)} steps done"
    active = [s.name for s in plan.steps if lines[s.name].state == "Running" and s.name not in problems]
    if problems:
        name, sentence = next(iter(problems.items()))
        more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
        at_work = f"; at work: {_few(active)}" if active else ""
        return f"{done}{at_work}; {name}: {sentence}{more}"
    waiting = [step.name for step in plan.steps if lines[step.name].state == "Waiting"]
    if active:
        return f"{done}; at work: {_few(active)}"
    return f"{done}; waiting: {_few(waiting)}" if waiting else done


def gathered(errors: Mapping[str, str]) -> str:
    """The errors of steps, those with the same sentence together."""
    by_sentence: dict[str, list[str]] = {}
    for name, sentence in errors.items():
        by_sentence.setdefault(sentence, []).append(name)
    return "; ".join(f"{_few(names)}: {sentence}" for sentence, names in by_sentence.items())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _headline(scores: Sequence[Mapping[str, Any]]) -> str | None:
    for score in scores:
        if score["subject"] == "Fused":
            return f"{score['score']:.3f}"
    return None


def scores(plan: Plan, metrics: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """status.scores from the evaluations' metrics by step."""
    found = []
    for step in plan.steps:
        if step.stage != "evaluate" or not step.subject or step.name not in metrics:
            continue
        told = metrics[step.name]
        value = told.get("score", told.get("bitsPerByte"))
        if value is None:
            continue
        subject = step.subject
        alone = subject.kind in ("Pivot", "Fused")
        low, high = told.get("ci95") or (None, None)
        made = {
            "subject": subject.kind if alone else f"{subject.kind} {subject.name}",
            "benchmark": step.params["benchmark"],
            "score": round(float(value), 4),
            "low": None if low is None else round(float(low), 4),
            "high": None if high is None else round(float(high), 4),
        }
        found.append({key: value for key, value in made.items() if value is not None})
    found.sort(key=lambda score: _RANK.get(score["subject"].split()[0], 9))
    return found[:MOST_SCORES]


_RANK = {"Fused": 0, "Pivot": 1, "Control": 2, "Target": 3, "Source": 4}


def finished(child: Child) -> bool:
    return child.phase in ("Complete", "Failed")
