"""One FusionRun's steps on the real node, each started by hand as the operator would; used by test_pods.py.

No operator runs: a bench makes the children with jobs.build, waits for their end, and says what was seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from fusechat.pins import origins
from fusechat.plan import Plan, Step, plan, resolve_step
from fusechat.spec import FusionRun, load
from fusechat.store import Manifest
from fusechat_operator import children, jobs, naming, pods
from fusechat_operator.settings import DefaultStore, Settings
from fusechat_stages import origins as places

from tests import tiny
from tests.cluster.installed import put_folder
from tests.cluster.node import SECRET, Node

NO_GPU = {stage: {"gpus": 0} for stage in ("extract", "fuse", "evaluate")}
SECONDS = 180.0


@dataclass(frozen=True)
class Bench:
    """An applied FusionRun and the plan whose steps are run."""

    node: Node
    run: FusionRun
    object: dict[str, Any]
    plan: Plan
    pins: Mapping[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return str(self.object["metadata"]["namespace"])

    @property
    def work(self) -> jobs.Work:
        store = DefaultStore(self.node.store.uri, self.node.endpoint, "us-east-1", SECRET)
        settings = Settings(
            "fusechat-system",
            "test",
            self.node.images["stages"],
            store=store,
            scratch_requests=self.node.scratch_requests,
        )
        return jobs.Work(self.object, self.run, self.plan, settings, pods.place(self.run, store), "Job")

    def name(self, step: Step) -> str:
        return jobs.name_of(step, self.work.place)

    def create(self, step: Step) -> None:
        for manifest in jobs.build(self.work, step):
            self.node.kubectl("create", "-f", "-", stdin=json.dumps(manifest))

    def child(self, step: Step) -> children.Child:
        found = self.node.get("job", self.name(step), self.namespace)
        assert found, f"{step.name} has no child"
        return children.child(found)

    def ended(self, step: Step) -> children.Child:
        """The step's child, once it is Complete or Failed."""

        def look() -> children.Child | None:
            read = self.child(step)
            return read if read.phase in ("Complete", "Failed") else None

        return self.node.wait(f"the end of {step.name}", look, SECONDS, lambda: self.tell(step))

    def pods(self, step: Step) -> list[dict[str, Any]]:
        return self.node.listed("pod", self.namespace, f"{naming.CHILD}={self.name(step)}")

    def complete(self, step: Step) -> Manifest:
        """Run a step well to its end; its artifact, which lies where the plan says."""
        self.create(step)
        assert self.ended(step).phase == "Complete", self.tell(step)
        found = self.node.store.manifest(str(step.address))
        assert found, f"{step.name} ended well and published nothing"
        assert self.node.store.verify(found) == []
        return found

    def tell(self, step: Step) -> str:
        """What a person would look at."""
        words = ("-n", self.namespace, "-l", f"{naming.CHILD}={self.name(step)}")
        return f"{self.node.kubectl('describe', 'pods', *words)[-3000:]}\n{self.log(step)}"

    def log(self, step: Step) -> str:
        """The last lines that its Pods wrote."""
        words = ("-n", self.namespace, "-l", f"{naming.CHILD}={self.name(step)}")
        return self.node.kubectl("logs", *words, "--tail=30", check=False)


def put_tiny(node: Node, folder: Path) -> dict[str, Any]:
    """The tiny models and data, made in `folder` and put on S3; the spec that names them there."""
    spec = yaml.safe_load(tiny.build(folder).read_text())["spec"]
    put_folder(folder, node.origins)
    return dict(json.loads(json.dumps(spec).replace("file://.", node.origins)))


def apply(
    node: Node,
    spec: dict[str, Any],
    pins: Mapping[str, str] | None = None,
    resources: dict[str, Any] | None = None,
) -> Bench:
    """A bench in a namespace of its own; without pins its addresses are pending."""
    meta = {"name": "small", "namespace": node.namespace()}
    spec = {**spec, "resources": {**NO_GPU, **(resources or {})}}
    node.apply({"apiVersion": "fusechat.io/v1alpha1", "kind": "FusionRun", "metadata": meta, "spec": spec})
    found = node.get("fusionrun", "small", meta["namespace"])
    assert found
    run = load(found)
    return Bench(node, run, found, plan(run, pins), pins or {})


def resolved(bench: Bench) -> Bench:
    """The bench with the pins that a resolve Pod finds."""
    step = resolve_step(bench.run, bench.namespace, bench.plan.unpinned)
    alone = replace(bench, plan=replace(bench.plan, steps=(step,)))
    pins = alone.complete(step).metrics["pins"]
    return replace(bench, plan=plan(bench.run, pins), pins=pins)


def pins_of_a_laptop(bench: Bench, folder: Path) -> dict[str, str]:
    """The pins of the same origins as file:// on this machine."""
    found = {}
    for name, origin in origins(bench.run).items():
        uri = origin.uri.replace(bench.node.origins, folder.as_uri())
        lister = places.list_model if origin.kind == "model" else places.list_data
        found[name] = places.pin(uri, None, lister(uri, None))
    return found
