"""What the store has of a run: verified hits, stale ones, and questions that outlive a restart of the server.

Used by the local runner. A hit is trusted after its manifest and its files' sizes were seen; it is stale when
this run made one of its inputs anew with other bytes. Decides nothing about what runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from fusechat.errors import TemporaryFailure, Unavailable
from fusechat.steps import Step
from fusechat.store import Manifest, Store

T = TypeVar("T")
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0)


class Server(Protocol):
    """The S3 service under the store, if the runner started it."""

    def ensure(self) -> object: ...


class Hits:
    """The manifests of a run's steps, by step name."""

    def __init__(self, store: Store, server: Server | None) -> None:
        self.store, self._server = store, server
        self.manifests: dict[str, Manifest] = {}

    def probe(self, step: Step) -> Manifest | None:
        """The verified manifest of a step's artifact, or None."""
        address = str(step.address)
        found = self.asked(lambda: self.store.manifest(address))
        if found is None or self.asked(lambda: self.store.verify(found)):
            return None
        self.manifests[step.name] = found
        return found

    def is_stale(self, step: Step, found: Manifest, made_now: Callable[[str], bool]) -> bool:
        """Whether an input that this run made has other bytes than the one the artifact was made of."""
        for role, name in step.inputs.items():
            before, fresh = found.inputs.get(role), self.manifests.get(name)
            if before and fresh and made_now(name) and before.digest != fresh.digest:
                return True
        return False

    def make_room(self, step: Step, made_now: Callable[[str], bool]) -> None:
        """Set aside a manifest that cannot be used (files gone, or stale), so that the step can publish."""
        address = str(step.address)
        found = self.asked(lambda: self.store.manifest(address))
        if found and self.asked(lambda: self.store.verify(found)):
            self.asked(lambda: self.store.withdraw(address))
        elif found and self.is_stale(step, found, made_now):
            self.forget(step)

    def forget(self, step: Step) -> None:
        """Make a step run again: its manifest and its parts go, its data is left to gc."""
        parts = self.asked(lambda: [found.key for found in self.store.keys(f"{step.address}/parts/")])
        self.asked(lambda: self.store.delete([f"{step.address}/manifest.json", *parts]))

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Write a small document of the run."""
        self.asked(lambda: self.store.put_json(key, value))

    def mend(self) -> None:
        """Start the server again, if it is ours and has died."""
        if self._server:
            self._server.ensure()

    def asked(self, question: Callable[[], T]) -> T:
        """A question to the store; a server of ours that died is started again, a slow one waited for."""
        for pause in PAUSES_SECONDS:
            try:
                return question()
            except (Unavailable, TemporaryFailure):
                self.mend()
                time.sleep(pause)
        return question()
