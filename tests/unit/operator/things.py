"""All that is outside of reconcile, in dicts: runs, children, Pods, artifacts. It answers, and does as told.

The lower half of World. Children are objects as the API server has them, made of the operator's own manifests
and read by its own readers; deletion has preconditions, creation of what is there is no error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from fusechat.launch import Launch
from fusechat_operator import naming
from fusechat_operator.children import Child, child, pod
from fusechat_operator.conditions import timestamp
from fusechat_operator.facts import Artifact, Ask, Trouble
from fusechat_operator.one_pass import REFUSAL_PAUSE_SECONDS
from fusechat_operator.workloads import UNSEEN, Queued

from tests.unit.operator.acts import CONTAINERS, step_of, told
from tests.unit.operator.runs import Object, kept

BEGINNING = 1_800_000_000.0


class Things:
    """`created`, `deleted` and `kept` are steps' names in order, `names` those of created children.

    `refuses` says why a manifest is not taken; `away` whether the store has no answer; `lingers` that what is
    deleted is not gone yet; `loses` that a test takes artifacts away, so that a child may lack an input.
    """

    def __init__(self) -> None:
        self.now, self.count = BEGINNING, 0
        self.runs: dict[str, Object] = {}
        self.children: dict[str, Object] = {}
        self.others: dict[str, Object] = {}
        self.pods: dict[str, list[Object]] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.documents: dict[str, Mapping[str, Any]] = {}
        self.attempts_of: dict[str, list[Mapping[str, Any]]] = {}
        self.progress: dict[str, Mapping[str, Any]] = {}
        self.workloads: dict[str, Queued] = {}
        self.warnings: dict[str, str] = {}
        self.metrics: dict[str, Mapping[str, Any]] = {}
        self.launchers: tuple[str, ...] = ("PyTorchJob", "TrainJob", "Job")
        self.refuses: Callable[[Object], str] = lambda manifest: ""
        self.away: Callable[[Ask], bool] = lambda ask: False
        self.lingers = self.loses = False
        self.asked: Counter[Ask] = Counter()
        self.created: list[str] = []
        self.names: list[str] = []
        self.deleted: list[str] = []
        self.kept: list[str] = []
        self.forgotten: list[str] = []
        self.events: list[tuple[str, str, str]] = []
        self._refusals: dict[str, tuple[float, str]] = {}

    def version(self) -> str:
        self.count += 1
        return str(self.count)

    # questions

    def answer(self, ask: Ask) -> Any:
        """What the engine would hand to reconcile."""
        self.asked[ask] += 1
        if self.away(ask):
            return Trouble("the store cannot be reached")
        match ask.what:
            case "artifact" | "hit" | "sink" | "metrics":
                return self.artifacts.get(ask.key)
            case "child":
                found = self.children.get(ask.key)
                return child(found) if found else None
            case "own":
                uid, _, kind = ask.key.partition("/")
                listed = [child(found) for found in self.children.values()]
                return [each for each in listed if each.owner == uid and kind in ("", each.kind)]
            case "pods":
                return [pod(found) for found in self.pods.get(ask.key, ())]
            case "workload":
                return self.workloads.get(ask.key, UNSEEN)
            case "warning":
                return self.warnings.get(ask.key, "")
            case "attempts":
                return self.attempts_of.get(ask.key, [])
            case "progress":
                return self.progress.get(ask.key)
            case "launchers":
                return self.launchers
            case "refusal":
                at, sentence = self._refusals.get(ask.key, (0.0, ""))
                return sentence if self.now - at < REFUSAL_PAUSE_SECONDS and sentence else None

    # effects

    def write_status(self, name: str, status: Mapping[str, Any]) -> None:
        self.runs[name]["status"] = kept(status)
        self.runs[name]["metadata"]["resourceVersion"] = self.version()

    def create(self, manifest: Mapping[str, Any]) -> bool:
        """Whether it was taken."""
        kind, meta = manifest["kind"], manifest["metadata"]
        key = f"{kind}/{meta['name']}"
        if sentence := self.refuses(dict(manifest)):
            self._refusals[meta["labels"][naming.CHILD]] = (self.now, sentence)
            return False
        if kind not in CONTAINERS:
            self.others[key] = dict(manifest)  # a Service or the like, which does nothing by itself
        if key in self.children or kind not in CONTAINERS:
            return True
        found = json.loads(json.dumps(manifest))
        missing = set(self.told(found).inputs.values()) - self.artifacts.keys()
        assert not missing or self.loses, f"{step_of(found)} is created before {missing} are published"
        self.count += 1
        found["metadata"] |= {
            "uid": f"{self.count:08d}-0000-4000-8000-00000000c41d",
            "resourceVersion": self.version(),
            "creationTimestamp": timestamp(self.now),
        }
        self.children[key] = found
        self.created.append(step_of(found))
        self.names.append(meta["name"])
        return True

    def forget(self, address: str) -> None:
        self.artifacts.pop(address, None)
        self.forgotten.append(address)

    def keep(self, failed: Child) -> None:
        found = self.children[f"{failed.kind}/{failed.name}"]
        found["spec"].pop("ttlSecondsAfterFinished", None)
        found["spec"].get("runPolicy", {}).pop("ttlSecondsAfterFinished", None)
        self.kept.append(step_of(found))

    def delete(self, gone: Child, whatever: bool = False) -> None:
        """If it is still as it was looked at, or at least still the one."""
        key = f"{gone.kind}/{gone.name}"
        found = self.children.get(key)
        if not found or found["metadata"]["uid"] != gone.uid:
            return
        if not whatever and child(found).version != gone.version:
            return
        self.deleted.append(step_of(found))
        if self.lingers:
            found["metadata"]["deletionTimestamp"] = timestamp(self.now)
        else:
            self.gone(key)

    def gone(self, key: str) -> None:
        """A child is no more, and its Pods neither."""
        found = self.children.pop(key)
        self.pods.pop(found["metadata"]["name"], None)

    # what children do

    def told(self, found: Object) -> Launch:
        """What a child's Pods are told."""
        if found["kind"] == "TrainJob":
            found = self.others[f"TrainingRuntime/{found['spec']['runtimeRef']['name']}"]
        return told(found)

    def active(self) -> list[Object]:
        return [found for found in self.children.values() if child(found).phase == "Active"]

    def child_of(self, step: str, run: str | None = None) -> Object:
        """The child of a step (of a run)."""
        uid = self.runs[run]["metadata"]["uid"] if run else None
        found = [c for c in self.children.values() if step_of(c) == step]
        return next(c for c in found if uid in (None, child(c).owner))

    def end(self, found: Object, condition: str, reason: str = "", message: str = "") -> None:
        """Its controller's verdict."""
        status = found.setdefault("status", {})
        status.setdefault("startTime", found["metadata"]["creationTimestamp"])
        told = {"type": condition, "status": "True", "reason": reason, "message": message}
        told["lastTransitionTime"] = timestamp(self.now)
        status.setdefault("conditions", []).append(told)
        found["metadata"]["resourceVersion"] = self.version()

    def add_pod(self, found: Object, status: Mapping[str, Any]) -> None:
        self.count += 1
        made = {"metadata": {"name": f"pod-{self.count}"}, "status": dict(status)}
        self.pods.setdefault(found["metadata"]["name"], []).append(made)
