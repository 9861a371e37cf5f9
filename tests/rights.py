"""What the operator may do on a cluster, as a table, and what it asks for, recorded from its own code.

Used by the chart's tests: the rules that the chart renders, the calls that cluster, health and lease make,
the watches of handlers and what a real API server grants must all be this table.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fusechat_operator import handlers, lease, naming
from fusechat_operator.children import Child
from fusechat_operator.cluster import ApiRefusal, Cluster
from fusechat_operator.health import Heartbeat
from fusechat_operator.settings import Settings

Rights = dict[tuple[str, str], frozenset[str]]
"""(API group, resource[/subresource][:name]) -> verbs."""


def _table(text: str) -> Rights:
    rows = [line.split(maxsplit=2) for line in text.strip().splitlines()]
    return {("" if group == "core" else group, what): frozenset(v.split()) for group, what, v in rows}


WHERE_RUNS_ARE = _table("""
    fusechat.io           fusionruns         get list watch
    fusechat.io           fusionruns/status  update
    batch                 jobs               get list watch create patch delete
    kubeflow.org          pytorchjobs        get list watch create patch delete
    trainer.kubeflow.org  trainjobs          get list watch create delete
    trainer.kubeflow.org  trainingruntimes   create
    core                  services           create
    core                  pods               list
    core                  events             get list create patch
    kueue.x-k8s.io        workloads          list
""")

FOR_ITSELF = _table("""
    coordination.k8s.io  leases                   create
    coordination.k8s.io  leases:fusechat-operator get update
    batch                jobs                     create
    batch                jobs:fusechat-heartbeat  patch
""")


def of_rules(rules: Iterable[Mapping[str, Any]]) -> Rights:
    """Rules of RBAC, or of a SelfSubjectRulesReview, as a table."""
    found: dict[tuple[str, str], frozenset[str]] = {}
    for rule in rules:
        names = rule.get("resourceNames") or [""]
        for group in rule.get("apiGroups", ()):
            for resource in rule["resources"]:
                for name in names:
                    key = (group, f"{resource}:{name}" if name else resource)
                    found[key] = found.get(key, frozenset()) | frozenset(rule["verbs"])
    return found


# what the code asks for

SETTINGS = Settings(namespace="own", identity="one", image="stages")
KINDS = tuple(naming.API_VERSIONS)
ANSWER: dict[str, Any] = {
    "metadata": {"name": "x", "namespace": "runs", "uid": "1", "resourceVersion": "1"},
    "spec": {"holderIdentity": SETTINGS.identity, "pytorchReplicaSpecs": {}, "trainer": {}},
    "status": {},
    "items": [],
    "resources": [{"kind": kind} for kind in KINDS],
    "preferredVersion": {"version": "v1beta2"},
}
GONE = {kind: Child(kind, "x", "1", "1", "", "", False, "Failed") for kind in KINDS}
MADE = [{"kind": kind, "metadata": {"namespace": "runs"}} for kind in (*KINDS, "Service", "TrainingRuntime")]

CALLS: dict[str, list[tuple[Any, ...]]] = {
    "run": [("runs", "x")],
    "write_status": [(ANSWER, {})],
    "child": [("runs", f"{kind}/x") for kind in KINDS],
    "own": [("runs", "1")],
    "pods": [("runs", "x")],
    "workload": [("runs", "1")],
    "warning": [("runs", "1")],
    "create": [(manifest,) for manifest in MADE],
    "delete": [("runs", child) for child in GONE.values()],
    "keep": [("runs", child) for child in GONE.values()],
    "kinds": [()],
    "post_event": [(ANSWER, "x", {"lastTimestamp": "now"})],
}
"""Every question of Cluster that the operator uses, with arguments that reach all that it asks."""


class Recorder(Cluster):
    """A Cluster whose requests go nowhere: each is written down and answered, or refused as `refuse` says."""

    def __init__(self, refuse: Mapping[tuple[str, str], ApiRefusal] | None = None) -> None:
        super().__init__(None, 1e9, 10**9)
        self.asked: list[tuple[str, str]] = []
        self._refuse = dict(refuse or {})

    async def request(self, method, path, body=None, query=None, kind="", urgent=False):
        self.asked.append((method, path))
        resource = path.split("/namespaces/")[-1].split("/")[1] if "/namespaces/" in path else ""
        if (method, resource) in self._refuse:
            raise self._refuse[method, resource]
        return dict(ANSWER)


def questions() -> set[str]:
    """The names of Cluster's questions that the operator's modules use; the commands for people are apart."""
    source = Path(handlers.__file__).parent
    found = set()
    for path in source.glob("*.py"):
        if path.name not in ("cluster.py", "cli.py"):
            found |= set(re.findall(r"\b_?cluster\.([a-z_]+)\(", path.read_text(encoding="utf-8")))
    return {name for name in found if hasattr(Cluster, name)} - {"close", "request"}


def asked_for_runs() -> Rights:
    """What Cluster's questions and the watches of handlers need."""

    async def ask() -> Rights:
        known = Recorder()
        for name, calls in CALLS.items():
            for arguments in calls:
                await getattr(known, name)(*arguments)
        again = Recorder({("POST", "events"): ApiRefusal(409, "AlreadyExists", "")})
        await again.post_event(*CALLS["post_event"][0])
        return _needs([*known.asked, *again.asked], "runs")

    found = asyncio.run(ask())
    for handler in handlers.registry(None, None)._watching.get_all_handlers():
        key = (handler.selector.group, handler.selector.any_name)
        found[key] = found.get(key, frozenset()) | {"list", "watch"}
    return found


def asked_for_itself() -> Rights:
    """What the Lease and the heartbeat need."""

    async def ask() -> Rights:
        cluster = Recorder({("PATCH", "jobs"): ApiRefusal(404, "NotFound", "")})
        await Heartbeat(cluster, SETTINGS)._once()
        lock = lease._Lock(SETTINGS, cluster, lambda: None)
        record = lease.LeaderElectionRecord("one", "15", None, None)
        await lock.get(lease.NAME, SETTINGS.namespace)
        await lock.create(lease.NAME, SETTINGS.namespace, record)
        await lock.update(lease.NAME, SETTINGS.namespace, record)
        await lease.give_back(cluster, SETTINGS)
        return _needs(cluster.asked, "own", named=True)

    return asyncio.run(ask())


OBJECT = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)/namespaces/(?P<namespace>[^/]+)/(?P<resource>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?P<sub>/[^/]+)?"
)
DISCOVERY = re.compile(r"/apis(/[^/]+){1,2}")
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def _needs(asked: Iterable[tuple[str, str]], namespace: str, named: bool = False) -> Rights:
    """Requests as rights; each is in the namespace, or a look at what the server has, which all may do."""
    found: dict[tuple[str, str], frozenset[str]] = {}
    for method, path in asked:
        if DISCOVERY.fullmatch(path):
            continue
        match = OBJECT.fullmatch(path)
        assert match, f"{method} {path}: neither an object of a namespace nor a question about the API"
        assert match["namespace"] == namespace, f"{method} {path}: expected namespace {namespace}"
        verb = VERBS.get(method) or ("get" if match["name"] else "list")
        name = f":{match['name']}" if named and match["name"] else ""
        key = (match["group"] or "", f"{match['resource']}{match['sub'] or ''}{name}")
        found[key] = found.get(key, frozenset()) | {verb}
    return found
