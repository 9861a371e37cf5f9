"""What a fault may not do, judged by watches from before a run's apply until everything of it is gone.

Used by the tests of faults and of replicas: nothing lost, nothing twice, no orphan. Knows Jobs, PyTorchJobs
and their Pods; what should have run again is told by the test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from fusechat.plan import Plan, plan
from fusechat.spec import load
from fusechat_operator import naming
from kubernetes import client, config

from tests.cluster.plane import Plane
from tests.cluster.watched import Object, Seen, Watch, together

OURS = "jobs,pytorchjobs,pods,services,persistentvolumeclaims"
INDEXES = ("batch.kubernetes.io/job-completion-index", "training.kubeflow.org/replica-index")
TYPE = "training.kubeflow.org/replica-type"

COLLECTOR_SECONDS = 90.0
"""Of a new CRD the cluster's garbage collector learns up to half a minute later: this cluster is young."""


class Record:
    """Every state of a namespace's children and Pods, as it came."""

    def __init__(self, plane: Plane, namespace: str) -> None:
        api = config.new_client_from_config(plane.kubeconfig)
        jobs, custom = client.BatchV1Api(api), client.CustomObjectsApi(api)
        trainings = ("kubeflow.org", "v1", namespace, "pytorchjobs")
        version = custom.list_namespaced_custom_object(*trainings)["metadata"]["resourceVersion"]
        self.pods = Watch(client.CoreV1Api(api).list_namespaced_pod, namespace, begin=version)
        self.jobs = Watch(jobs.list_namespaced_job, namespace, begin=version)
        self.trainings = Watch(custom.list_namespaced_custom_object, *trainings, begin=version)
        self.watches = (self.pods, self.jobs, self.trainings)

    @property
    def children(self) -> list[Seen]:
        return [*self.jobs.seen, *self.trainings.seen]

    def made(self) -> Counter[str]:
        """How many children each step has had."""
        return _count(self.children, lambda child: True)

    def ran(self) -> Counter[str]:
        """How many Pods of each step have begun."""
        return _count(self.pods.seen, lambda pod: pod["status"].get("phase") != "Pending")

    def at_once(self) -> set[frozenset[str]]:
        """Which Pods did the same work at the same time."""
        shards = {_work_of(pod) for _, pod in self.pods.seen}
        found = [together(self.pods.seen, lambda pod, s=shard: _works(pod, s)) for shard in shards]
        return {pods for each in found for pods in each if len(pods) > 1}

    def left(self) -> set[str]:
        """What was seen to come and not to go."""
        names: dict[str, str] = {}
        for kind, each in [*self.children, *self.pods.seen]:
            names[each["metadata"]["uid"]] = "" if kind == "DELETED" else each["metadata"]["name"]
        return {name for name in names.values() if name}

    def without_owner(self, run: str) -> list[str]:
        """Children that are not the run's alone, and Pods that are no child's."""
        uids = {child["metadata"]["uid"] for _, child in self.children}
        strangers = [each for each in self.children if _owners(each[1]) != [run]]
        strangers += [pod for pod in self.pods.seen if not uids.issuperset(_owners(pod[1]) or {""})]
        return sorted({each["metadata"]["name"] for _, each in strangers})


@contextmanager
def recorded(
    plane: Plane,
    run: dict[str, Any],
    children: Mapping[str, int] | None = None,
    pods: Mapping[str, int] | None = None,
    fails: Sequence[str] = (),
) -> Iterator[Record]:
    """Apply a run, let the block do what it does, and judge all that has happened.

    Each step has one child and a Pod for each shard, but for what `children` and `pods` say; what needs a
    step that `fails` has none. At the end the run is deleted, and all that was made for it must go with it.
    """
    name, namespace = run["metadata"]["name"], run["metadata"]["namespace"]
    made = plan(load(run))
    never = _after(made, fails) | ({"report"} if fails else set())
    steps = {step.name: step.shards for step in made.steps} | {"report": 1}
    steps = {step: count for step, count in steps.items() if step not in never}
    record = Record(plane, namespace)
    with ExitStack() as stack:
        for each in record.watches:
            stack.enter_context(each)
        plane.apply(run)
        found = plane.get("fusionrun", name, namespace)
        assert found
        yield record
        _published(plane, made, {*steps} - {*fails, "report"})
        plane.kubectl("delete", "fusionrun", name, "-n", namespace)
        plane.wait("all of the run goes", lambda: not _there(plane, namespace), COLLECTOR_SECONDS)
        for each in record.watches:
            each.end()
    broken = [why for each in record.watches for why in each.broken]
    assert not broken, f"the record is not from beginning to end: {broken}"
    assert not record.left(), f"left over: {record.left()}"
    _same("children", record.made(), dict.fromkeys(steps, 1) | dict(children or {}))
    _same("Pods that ran", record.ran(), steps | dict(pods or {}))
    assert not record.at_once(), f"the same work at once: {record.at_once()}"
    strangers = record.without_owner(found["metadata"]["uid"])
    assert not strangers, f"not this run's: {strangers}"


def _same(what: str, found: Mapping[str, int], want: Mapping[str, int]) -> None:
    wrong = {step: (found.get(step, 0), want.get(step, 0)) for step in {*found, *want}}
    wrong = {step: counts for step, counts in wrong.items() if counts[0] != counts[1]}
    assert not wrong, f"{what} (found, expected): {wrong}"


def _published(plane: Plane, made: Plan, steps: set[str]) -> None:
    addresses = {step.name: str(step.address) for step in made.steps if step.name in steps}
    lost = [name for name, address in addresses.items() if not plane.store.manifest(address)]
    assert not lost, f"not in the store: {lost}"


def _there(plane: Plane, namespace: str) -> str:
    return plane.kubectl("get", OURS, "-n", namespace, "-o", "name", "--ignore-not-found").strip()


def _after(made: Plan, steps: Iterable[str]) -> set[str]:
    """What needs these steps."""
    found: set[str] = set()
    for name in steps:
        later = {step.name for step in made.successors(name)}
        found |= later | _after(made, later)
    return found


def _count(seen: Iterable[Seen], counts: Callable[[Object], bool]) -> Counter[str]:
    steps = {
        each["metadata"]["uid"]: each["metadata"].get("labels", {}).get(naming.STEP, "none")
        for _, each in seen
        if counts(each)
    }
    return Counter(steps.values())


def _work_of(pod: Object) -> tuple[str, ...]:
    """The step, and which of its shards or ranks."""
    labels = pod["metadata"].get("labels", {})
    return tuple(labels.get(name, "") for name in (naming.STEP, TYPE, *INDEXES))


def _works(pod: Object, work: tuple[str, ...]) -> bool:
    """Until it has ended: one that was told to stop may still write."""
    return pod["status"].get("phase") in ("Pending", "Running") and _work_of(pod) == work


def _owners(each: Object) -> list[str]:
    return [owner["uid"] for owner in each["metadata"].get("ownerReferences", ()) if owner.get("controller")]
