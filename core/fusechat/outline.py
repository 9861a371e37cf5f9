"""`fusechat plan`: the plan as a person reads it, with what is pinned and what is cached already.

Used by cli. `offline` asks nobody; `online` lets resolve pin what is open and probes the store.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fusechat import launch
from fusechat.errors import FusechatError
from fusechat.plan import Plan, plan, resolve_step
from fusechat.processes import Processes, wait_any
from fusechat.spec import FusionRun
from fusechat.store import Manifest, Store


@dataclass(frozen=True)
class Outline:
    """A plan, the manifests that the store has of it (None: not asked), and what nobody pinned."""

    plan: Plan
    manifests: Mapping[str, Manifest] | None = None
    unpinned: tuple[str, ...] = field(default=())


def offline(run: FusionRun) -> Outline:
    """The plan from the spec alone: what is not pinned leaves addresses pending."""
    made = plan(run)
    return Outline(made, None, made.unpinned)


def online(run: FusionRun, store: Store, home: Path, environment: Mapping[str, str]) -> Outline:
    """The plan with every origin pinned, and the manifests of what is cached."""
    made = plan(run)
    unpinned = made.unpinned
    if unpinned:
        made = plan(run, pins(run, store, home, environment, unpinned))
    found = {step.name: store.manifest(step.address) for step in made.steps if step.address}
    return Outline(made, {name: m for name, m in found.items() if m}, unpinned)


def pins(
    run: FusionRun, store: Store, home: Path, environment: Mapping[str, str], names: tuple[str, ...]
) -> dict[str, str]:
    """What resolve answers about `names`, asked in a process of its own."""
    step = resolve_step(run, f"plan-{uuid.uuid4()}", names)
    told = launch.Launch(step.stage, step.version, str(step.address), store.uri, step.params, {})
    folder = home.absolute() / "plan"
    processes = Processes(environment, 1)
    process = processes.start("resolve", "resolve", launch.argv(told), folder, folder / "resolve.log")
    while process.exit_code() is None:
        wait_any([process], 1.0)
    code, summary = process.exit_code(), process.read("summary")
    process.close()
    if code:
        error = FusechatError(str(summary.get("error") or f"resolve ended with exit code {code}"))
        error.exit_code = int(code)  # type: ignore[misc]
        raise error
    manifest = store.manifest(str(step.address))
    assert manifest
    return dict(manifest.metrics["pins"])


def text(outline: Outline) -> str:
    """One line a step: name, shards, cached or not, address; then what is open and the count."""
    lines = [f"{'step':<30} {'shards':>6}  {'':<8} address"]
    for step in outline.plan.steps:
        state = "" if outline.manifests is None else "cached" if step.name in outline.manifests else "to do"
        lines.append(f"{step.name:<30} {step.shards:>6}  {state:<8} {step.address or 'pending'}")
    if outline.unpinned:
        verb = "pinned to what is there now" if outline.manifests is not None else "pending"
        lines.append(f"not pinned in the FusionRun, {verb}: {', '.join(outline.unpinned)}")
    count = len(outline.plan.steps)
    if outline.manifests is not None:
        lines.append(
            f"{count} steps: {len(outline.manifests)} cached, {count - len(outline.manifests)} to compute"
        )
    else:
        lines.append(f"{count} steps")
    return "\n".join(lines)
