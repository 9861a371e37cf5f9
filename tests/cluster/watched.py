"""Watches of the API: every state that objects were in, and which of them were in it at the same time.

Used by tests that judge what happened and not only how it ended. Knows Pods and Kueue's Workloads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kubernetes import client, watch
from urllib3.exceptions import HTTPError

Object = Mapping[str, Any]
Seen = tuple[str, Object]
"""The kind of an event (ADDED, MODIFIED, DELETED) and the object as it was then."""


class Watch(threading.Thread):
    """Every state that the objects of a kind in a namespace were in while the block lasted, as they came."""

    def __init__(self, list_them: Callable[..., Any], *words: str, begin: str = "0") -> None:
        """From the version `begin` on; by default with what is there. `broken` says where some was missed."""
        super().__init__(daemon=True)
        self._list, self._words, self._begin = list_them, words, begin
        self.seen: list[Seen] = []
        self.broken: list[str] = []
        self._ended = threading.Event()

    def run(self) -> None:
        version, tries = self._begin, 5
        while tries:
            last = self._ended.is_set()  # a whole stream from then on: nothing of before is still to come
            told = {"timeout_seconds": 1, "resource_version": version}
            try:
                for event in watch.Watch().stream(self._list, *self._words, **told):
                    version = event["raw_object"]["metadata"]["resourceVersion"]
                    self.seen.append((event["type"], event["raw_object"]))
                tries = 0 if last else tries
            except client.ApiException as error:  # that version is too old by now
                self.broken.append(str(error.reason))
                version, tries = "0", tries - last
            except HTTPError:  # it goes on where it was
                tries -= last
                time.sleep(0.2)

    def __enter__(self) -> Watch:
        self.start()
        return self

    def end(self) -> None:
        """Soon; who has several tells all of them first."""
        self._ended.set()

    def __exit__(self, *_: object) -> None:
        self.end()
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
