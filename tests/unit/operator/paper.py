"""The children of examples/fusechat-7b.yaml, one of each kind, as the golden file has them.

Used by test_paper_children.py. Revisions are pinned to made-up commits: addresses are always the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from fusechat.plan import Step, plan, report_step, resolve_step
from fusechat.spec import load
from fusechat_operator import jobs, pods
from fusechat_operator.jobs import Manifest
from fusechat_operator.settings import DefaultStore, Settings

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "fusechat-7b.yaml"
GOLDEN = ROOT / "tests" / "golden" / "fusechat-7b-children.yaml"
UID = "7b7b7b7b-0000-4000-8000-000000000000"
STORE = DefaultStore("s3://fusechat/artifacts", region="eu-central-1", secret="fusechat-store")
SETTINGS = Settings("fusechat", "op-0", "ghcr.io/example/fusechat-stages:0.1.0", store=STORE)

STEPS = (
    "fetch-mixtral",
    "extract-mixtral",
    "count-mixtral",
    "map-mixtral",
    "align-mixtral",
    "filter-mixtral",
    "merge",
    "mtbench-source-mixtral",
    "mtbench-fused",
)


def the_run(pinned: bool = True, nodes: int = 1) -> dict[str, Any]:
    """The example as the API server would have it."""
    found: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    found["metadata"] |= {"namespace": "research", "uid": UID, "generation": 1}
    spec = found["spec"]
    if nodes > 1:
        spec["fuse"] = {"nodes": nodes}
    for origin in (spec["pivot"], *spec["sources"], spec["dataset"]) if pinned else ():
        origin["revision"] = hashlib.sha1(origin["uri"].encode()).hexdigest()
    return found


def children() -> Iterator[tuple[str, list[Manifest]]]:
    """(what it is, its objects in the order in which they are created)."""
    open_run = load(the_run(pinned=False))
    yield "resolve", _built(1, "Job", resolve_step(open_run, f"{UID}-nonce", plan(open_run).unpinned))
    made = plan(load(the_run()))
    for name in STEPS:
        yield name, _built(1, "Job", made.step(name))
    for kind in jobs.LAUNCHERS:
        for nodes in (1, 2):
            step = plan(load(the_run(nodes=nodes))).step("fuse-mixtral")
            yield f"fuse-mixtral: {kind}, {nodes} x 8 GPUs", _built(nodes, kind, step)
    yield "report", _built(1, "Job", report_step(made, f"{UID}-1-"))


def _built(nodes: int, kind: str, step: Step) -> list[Manifest]:
    found = the_run(nodes=nodes)
    run = load(found)
    work = jobs.Work(found, run, plan(run), SETTINGS, pods.place(run, STORE), kind)
    return jobs.build(work, step)


class _Dumper(yaml.SafeDumper):
    """Plain YAML, lists set in, nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)


HEAD = """\
# What the operator creates for examples/fusechat-7b.yaml, one child of each kind; reviewed line by line in
# docs/fusechat-7b-children.md. Written by the test: FUSECHAT_UPDATE_GOLDEN=1 pytest {test}
"""


def text() -> str:
    """The golden file."""
    parts = [HEAD.format(test="tests/unit/operator/test_paper_children.py")]
    for what, objects in children():
        parts.append(f"---\n# {what}\n")
        dumped = [yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=10**6) for each in objects]
        parts.append("---\n".join(dumped))
    return "".join(parts)
