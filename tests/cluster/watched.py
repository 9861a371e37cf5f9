"""Watches of the API: every state that objects were in, and which of them were in it at the same time.

Used by tests that judge what happened and not only how it ended. Knows Pods and Kueue's Workloads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kubernetes import client, watch

Object = Mapping[str, Any]
Seen = tuple[str, Object]
"""The kind of an event (ADDED, MODIFIED, DELETED) and the object as it was then."""


class Watch(threading.Thread):
    """Every state that the objects of a kind in a namespace were in while the block lasted, as they came."""

    def __init__(self, list_them: Callable[..., Any], *words: str) -> None:
        super().__init__(daemon=True)
        self._list, self._words = list_them, words
        self.seen: list[Seen] = []
        self._ended = threading.Event()

    def run(self) -> None:
        version = "0"
        while not self._ended.is_set():
            told = {"timeout_seconds": 2, "resource_version": version}
            try:
                for event in watch.Watch().stream(self._list, *self._words, **told):
                    version = event["raw_object"]["metadata"]["resourceVersion"]
                    self.seen.append((event["type"], event["raw_object"]))
            except client.ApiException:
                version = "0"

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def together(seen: Iterable[Seen], holds: Callable[[Object], bool]) -> set[frozenset[str]]:
    """Which objects held at the same time, at any time."""
    now: dict[str, str] = {}
    found = set()
    for kind, each in seen:
        now.pop(each["metadata"]["uid"], None)
        if kind != "DELETED" and holds(each):
            now[each["metadata"]["uid"]] = each["metadata"]["name"]
        found.add(frozenset(now.values()))
    return found


def has_quota(workload: Object) -> bool:
    conditions = {c["type"]: c["status"] for c in workload.get("status", {}).get("conditions") or ()}
    return conditions.get("QuotaReserved") == "True" and conditions.get("Finished") != "True"


def is_at_work(pod: Object) -> bool:
    """A Pod that has been told to stop saves; it holds its place on the node, and none in the queue."""
    return pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
