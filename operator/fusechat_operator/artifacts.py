"""What the store says, asked from threads: hits, progress, attempts; and what the operator writes.

Used by the engine. boto3 blocks, so every question runs in a bounded pool. Manifests are remembered by
address for questions that allow it: what is published there never changes, it can only go.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fusechat import inquiry
from fusechat.errors import FusechatError
from fusechat.store import Manifest, Store

from fusechat_operator.facts import Artifact, Trouble
from fusechat_operator.settings import Settings

T = TypeVar("T")
HIT_SECONDS = 30.0
REMEMBERED = 4096
ATTEMPTS = 2
"""Of one request: a run that waits for the store must say so soon, and is looked at again anyway."""


class Artifacts:
    """The default store. Answers are facts: Artifact, a document, None, or Trouble."""

    def __init__(self, settings: Settings) -> None:
        told = settings.store
        self.store = (
            Store(told.uri, endpoint=told.endpoint, region=told.region, attempts=ATTEMPTS) if told else None
        )
        if self.store:
            _ = self.store.client  # once, before many threads would each make their own
        self._pool = ThreadPoolExecutor(settings.store_threads, thread_name_prefix="store")
        self._known: OrderedDict[str, Artifact] = OrderedDict()
        self._verified_at: dict[str, float] = {}

    async def artifact(self, address: str) -> Artifact | Trouble | None:
        """The verified artifact at an address."""
        return await self._ask(lambda store: self._verified(store, address))

    async def hit(self, address: str) -> Artifact | Trouble | None:
        """The artifact, verified within half a minute: a thousand runs may begin with the same models."""
        if time.monotonic() - self._verified_at.get(address, -1e9) < HIT_SECONDS and address in self._known:
            return self._known[address]
        return await self.artifact(address)

    async def metrics(self, address: str) -> Artifact | Trouble | None:
        """The artifact, from memory if it was seen before."""
        if address in self._known:
            self._known.move_to_end(address)
            return self._known[address]
        return await self._ask(lambda store: self._read(store, address))

    async def progress(self, address: str) -> Mapping[str, Any] | Trouble | None:
        """The newest progress.json of a step."""
        return await self._ask(lambda store: store.get_json(f"{address}/progress.json"))

    async def attempts(self, address: str) -> list[Any] | Trouble:
        """What entry wrote of each attempt at a step, the newest last; at most 20 of them."""
        return await self._ask(lambda store: inquiry.attempts(store, address))

    async def put(self, key: str, document: Mapping[str, Any]) -> Trouble | None:
        """Write a document of a run."""
        found = await self._ask(lambda store: store.put_json(key, dict(document)))
        return found if isinstance(found, Trouble) else None

    async def forget(self, address: str) -> Trouble | None:
        """Set a stale artifact aside so that its step can publish again: its manifest and parts go."""
        self._drop(address)
        found = await self._ask(lambda store: inquiry.forget(store, address))
        return found if isinstance(found, Trouble) else None

    def _verified(self, store: Store, address: str) -> Artifact | None:
        manifest = inquiry.verified(store, address)
        if manifest is None:
            self._drop(address)
            return None
        found = self._remember(manifest)
        self._verified_at[address] = time.monotonic()
        return found

    def _read(self, store: Store, address: str) -> Artifact | None:
        manifest = store.manifest(address)
        return self._remember(manifest) if manifest else None

    def _drop(self, address: str) -> None:
        self._known.pop(address, None)
        self._verified_at.pop(address, None)

    def _remember(self, manifest: Manifest) -> Artifact:
        found = Artifact(manifest.address, manifest.digest, manifest.metrics, manifest.inputs)
        self._known[manifest.address] = found
        while len(self._known) > REMEMBERED:
            gone, _ = self._known.popitem(last=False)
            self._verified_at.pop(gone, None)
        return found

    async def _ask(self, question: Callable[[Store], T]) -> T | Trouble:
        if self.store is None:
            return Trouble("there is no default store; set store.uri in the chart")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, question, self.store)
        except FusechatError as error:
            return Trouble(str(error), refused=error.exit_code == 69)
