"""Plays the stages of Pods on fake nodes: publishes what a stage would, so that only the stages are not real.

kwok runs and ends the Pods; this thread reads each Pod's argv as entry would, writes the artifact and the
record of the attempt to the real store, and tells kwok by annotation how long the Pod lasts and how it ends.
A probe of a run's own store is not played: its own code runs, see probing.
A test scripts the attempts of a step, `hand.script["extract-a"] = [Act(exit_code=65)]`; the rest succeeds.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fusechat import launch
from fusechat.address import digest
from fusechat.errors import FusechatError
from fusechat.store import InputRef, Manifest, Store
from fusechat_operator import naming
from kubernetes import client, config, watch
from urllib3.exceptions import HTTPError

from tests.cluster import probing


@dataclass
class Act:
    """One attempt: how it ends, after how many seconds; `publishes` None: if it ends well.

    `holds`: not before the store has what it publishes, however long the store is away, as entry does.
    """

    exit_code: int = 0
    seconds: float = 0.2
    error: str = "as scripted"
    publishes: bool | None = None
    holds: bool = False


@dataclass
class Played:
    """One Pod that was seen to run."""

    step: str
    address: str
    uid: str
    namespace: str
    run: str
    exit_code: int
    at: float = field(default_factory=time.monotonic)


METRICS: dict[str, dict[str, Any]] = {
    "align": {"coverage": 0.85},
    "filter": {"keptShare": 0.9, "winShare": 0.5},
    "evaluate": {"score": 0.5, "n": 100, "ci95": [0.4, 0.6]},
}


class Stagehand(threading.Thread):
    """One per cluster; `with Stagehand(...)` starts and ends it."""

    def __init__(self, kubeconfig: str, store: Store) -> None:
        super().__init__(daemon=True, name="stagehand")
        self.api = client.CoreV1Api(config.new_client_from_config(kubeconfig))
        self.store = store
        self.script: dict[str, list[Act]] = {}
        self.metrics: dict[str, dict[str, Any]] = {}
        self.pace = 0.2
        self.played: list[Played] = []
        self.probed: dict[str, str] = {}
        self._acts: dict[str, Act] = {}
        self._done: dict[str, set[int]] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Stagehand:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                seen = watch.Watch()
                for event in seen.stream(
                    self.api.list_pod_for_all_namespaces, label_selector=naming.SELECTOR, timeout_seconds=20
                ):
                    if self._ended.is_set():
                        return
                    self._look(event["object"])
            except Exception:  # the API server may be away: that is a test's business
                time.sleep(0.2)

    def count(self, step: str) -> int:
        """How many Pods of a step have run."""
        return sum(played.step == step for played in self.played)

    def _look(self, pod: Any) -> None:
        uid = pod.metadata.uid
        if pod.metadata.deletion_timestamp or pod.status.phase in ("Succeeded", "Failed"):
            return
        step = pod.metadata.labels[naming.STEP]
        if step == "probe":
            self._probe(pod)
            return
        if uid not in self._acts:
            script = self.script.get(step)
            act = self._acts[uid] = script.pop(0) if script else Act(seconds=self.pace)
            self._tell(pod, act, "1h" if act.holds else f"{act.seconds}s")
        if pod.status.phase == "Running" and not any(p.uid == uid for p in self.played):
            act = self._acts[uid]
            threading.Thread(target=self._play, args=(pod, act), daemon=True).start()
            told = self._told(pod)
            meta = pod.metadata
            self.played.append(
                Played(step, told.address, uid, meta.namespace, meta.labels[naming.RUN], act.exit_code)
            )

    def _tell(self, pod: Any, act: Act, lasts: str) -> None:
        """Tell kwok how long a Pod lasts from now on, and how it ends."""
        notes = {"fusechat.io/seconds": lasts, "fusechat.io/exit-code": str(act.exit_code)}
        meta = pod.metadata
        self.api.patch_namespaced_pod(meta.name, meta.namespace, {"metadata": {"annotations": notes}})

    def _probe(self, pod: Any) -> None:
        """`probed` has the run of each probe Pod that was answered, by its uid."""
        if pod.status.phase == "Running" and pod.metadata.uid not in self.probed:
            self.probed[pod.metadata.uid] = pod.metadata.labels[naming.RUN]
            threading.Thread(target=self._answer, args=(pod,), daemon=True).start()

    def _answer(self, pod: Any) -> None:
        try:
            probing.play(self.api, pod)
        except client.ApiException as error:
            if error.status != 404:  # the Pod was deleted meanwhile
                raise
        except HTTPError:
            if not self._ended.is_set():  # else its cluster is gone
                raise

    def _told(self, pod: Any) -> launch.Launch:
        return launch.parse(probing.arguments(pod))

    def _store(self, pod: Any, told: launch.Launch) -> Store:
        """That of the cluster, or the run's own with the run's own way in."""
        if told.store == self.store.uri:
            return self.store
        return probing.store_of(told.store, probing.environment(self.api, pod))

    def _play(self, pod: Any, act: Act) -> None:
        told, attempt, started = self._told(pod), str(uuid.uuid4()), _now()
        early = max(0.15, act.seconds / 4)  # entry publishes before its Pod ends, on a busy machine too
        if self._ended.wait(max(0.0, act.seconds - early)):
            return  # the cluster is gone
        record = {"exitCode": act.exit_code, "attempt": attempt, "started": started, "ended": _now()}
        if act.exit_code:
            record["error"] = act.error
        wants = act.exit_code == 0 if act.publishes is None else act.publishes
        publishes = wants and self._alive(pod) and self._all_shards(told)
        for _ in range(60):  # as entry's client does, for as long as a store may be away in a test
            try:
                store = self._store(pod, told)
                if publishes:
                    self._publish(store, told, attempt)
                store.put_json(f"{told.address}/attempts/{attempt}.json", record)
                if act.holds:
                    self._tell(pod, act, "0s")
                return
            except FusechatError:
                if self._ended.wait(1):
                    return

    def _alive(self, pod: Any) -> bool:
        try:
            found = self.api.read_namespaced_pod(pod.metadata.name, pod.metadata.namespace)
        except (client.ApiException, HTTPError):  # gone, with or without its cluster
            return False
        return found.metadata.deletion_timestamp is None

    def _all_shards(self, told: launch.Launch) -> bool:
        index, count = told.shard
        done = self._done.setdefault(told.address, set())
        done.add(index)
        return len(done) == count

    def _publish(self, store: Store, told: launch.Launch, attempt: str) -> None:
        inputs = {}
        for role, address in told.inputs.items():
            given = store.manifest(address)
            inputs[role] = InputRef(address, given.digest if given else "")
        metrics = {**METRICS.get(told.stage, {}), **self.metrics.get(told.stage, {})}
        if told.stage == "resolve":
            metrics["pins"] = {n: f"sha256:{digest(o)}" for n, o in told.params["origins"].items()}
        store.publish(
            Manifest(
                told.address, told.stage, told.version, told.profile, told.params, inputs, (), metrics, True,
                {}, attempt, _now(), {},
            )
        )  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def a_run(
    name: str, sources: int = 2, namespace: str = "default", pinned: bool = True, **spec: Any
) -> dict[str, Any]:
    """A FusionRun on s3:// models that nobody has to have: fake nodes read nothing.

    Runs of one name have the same recipe in all of a test file, and another than those of other files, whose
    artifacts may lie in the same store.
    """
    recipe = [os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[0], name]

    def model(label: str) -> dict[str, Any]:
        made = {"name": label, "uri": f"s3://fuse/models/{label}"}
        return {**made, "revision": f"sha256:{digest([*recipe, label])}"} if pinned else made

    data = {"uri": "s3://fuse/data/conversations.jsonl"}
    questions = {"uri": "s3://fuse/data/questions.jsonl"}
    if pinned:
        data["revision"] = f"sha256:{digest([*recipe, 'data'])}"
        questions["revision"] = f"sha256:{digest([*recipe, 'questions'])}"
    body: dict[str, Any] = {
        "pivot": model("pivot-model"),
        "sources": [model(f"s{i}") for i in range(sources)],
        "dataset": data,
        "evaluate": {"exactMatch": questions, "subjects": ["Fused"]},
        **json.loads(json.dumps(spec)),
    }
    return {
        "apiVersion": "fusechat.io/v1alpha1",
        "kind": "FusionRun",
        "metadata": {"name": name, "namespace": namespace},
        "spec": body,
    }
