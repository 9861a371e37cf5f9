"""Artifacts in S3: who published what, its files up and down, and the rule that the first one wins.

Called by entry (in every stage's process), the local runner, the cli and the operator's prober. Knows the
layout below its prefix (docs: "The store"); knows no stage, no spec and no plan.

    <stage>/<hash>/manifest.json            created last, with If-None-Match: whoever creates it has published
    <stage>/<hash>/parts/00000.json         one published block, same rule
    <stage>/<hash>/data/<attempt>/<name>    bytes; no two attempts write the same key
    <stage>/<hash>/damaged/<attempt>/<name> says that those bytes were found not to be the manifest's
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusechat import transfer
from fusechat.errors import BadData, CorruptInput, FusechatError, Unavailable
from fusechat.store_manifest import (
    FileEntry,
    InputRef,
    Manifest,
    Part,
    file_name,
    manifest_from,
    manifest_json,
    part_from,
    part_json,
    text,
)
from fusechat.store_s3 import (
    connect,
    etag,
    explained,
    is_absent,
    place,
    put,
    remove,
    remove_if_same,
    status_of,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["FileEntry", "InputRef", "Manifest", "Object", "Part", "Store"]

CREATE_PAUSES = (0.1, 0.4, 1.6, None)
"""Seconds between tries to create a key while S3 says that another request is at it (409)."""

LISTERS = 8
"""Small objects read at a time."""


def _part_key(address: str, block: int) -> str:
    return f"{address}/parts/{block:05d}.json"


@dataclass(frozen=True)
class Object:
    """One stored object; `key` is relative to the store's prefix, `size` in bytes."""

    key: str
    size: int
    modified: datetime


class Store:
    """One prefix of one bucket. Cheap to make; connects when first used; threads may share it."""

    def __init__(
        self,
        uri: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        attempts: int | None = None,
    ) -> None:
        """UsageError if `uri` is not s3://BUCKET[/PREFIX]. Credentials come from boto3's own chain.

        `attempts` is how often a request is tried before it fails; unset: with patience, for a stage's sake.
        """
        self._attempts = attempts
        self.place = place(uri, endpoint, region, os.environ)
        self.uri = self.place.uri
        self._connected: tuple[int, S3Client] | None = None

    @property
    def client(self) -> S3Client:
        """The S3 client of this process: a fork makes its own, for sockets cannot be shared."""
        if self._connected is None or self._connected[0] != os.getpid():
            self._connected = os.getpid(), connect(self.place, attempts=self._attempts)
        return self._connected[1]

    # Artifacts

    def manifest(self, address: str) -> Manifest | None:
        """What is published at the address, or None."""
        data = self.get_json(f"{address}/manifest.json")
        return None if data is None else manifest_from(data, f"{self.uri}: {address}/manifest.json")

    def verify(self, manifest: Manifest) -> list[str]:
        """Names of the files whose object is gone, of another size, or known to be damaged; [] is good."""
        there = self._sound(manifest.address)
        return [file.name for file in manifest.files if there.get(file.key) != file.size]

    def upload(self, address: str, attempt: str, name: str, path: Path) -> FileEntry:
        """Send one file of an attempt; constant memory, hashed on the way, nothing left on failure."""
        key = f"{address}/data/{attempt}/{file_name(name)}"
        sent = transfer.upload(self.client, self.place, key, path)
        return FileEntry(name, key, sent.size, sent.sha256)

    def download(self, entry: FileEntry, dest: Path) -> None:
        """Fetch one file to `dest`: in parallel, resumed after a kill, verified, renamed when whole.

        CorruptInput if its bytes are not those of the manifest; `verify` knows it from then on.
        """
        try:
            transfer.download(self.client, self.place, entry.key, entry.size, entry.sha256, dest)
        except CorruptInput as error:
            with suppress(FusechatError):
                self.put_json(entry.key.replace("/data/", "/damaged/", 1), {"why": str(error)})
            raise

    def read(self, entry: FileEntry, start: int, length: int) -> bytes:
        """Up to `length` bytes of one file from byte `start`, as of a file: fewer at its end. Unverified."""
        length = min(length, entry.size - start)
        if start < 0 or length <= 0:
            return b""
        with explained(self.place, f"reading {entry.key}"):
            return transfer.read(self.client, self.place, entry.key, start, length)

    def publish(self, manifest: Manifest) -> Manifest:
        """Publish, unless someone has: returns the winner's manifest, ours if it is ours.

        The loser's data is removed, except what the winner or a part names.
        """
        key = f"{manifest.address}/manifest.json"
        if self.put_json(key, manifest_json(manifest), create_only=True):
            return manifest
        winner = self.manifest(manifest.address)
        if winner is None:
            raise Unavailable(
                f"{key} in {self.uri} was removed while it was being published; run the step again"
            )
        if winner.attempt != manifest.attempt:
            self._forsake(manifest.address, manifest.attempt, winner)
        return winner

    def publish_part(self, address: str, part: Part) -> Part:
        """Publish one block, unless someone has: returns the winner's part; a loser's files are removed."""
        key = _part_key(address, part.block)
        if self.put_json(key, part_json(part), create_only=True):
            return part
        winner = self._part(key)
        if winner is None:
            raise Unavailable(
                f"{key} in {self.uri} was removed while it was being published; run the step again"
            )
        named = {file.key for file in winner.files}
        self.delete(file.key for file in part.files if file.key not in named)
        return winner

    def parts(self, address: str) -> dict[int, Part]:
        """The published blocks of an artifact by number."""
        keys = [found.key for found in self.keys(f"{address}/parts/")]
        with ThreadPoolExecutor(LISTERS, thread_name_prefix="parts") as pool:
            found = [part for part in pool.map(self._part, keys) if part]
        return {part.block: part for part in found}

    def withdraw(self, address: str) -> list[str]:
        """Make a damaged artifact absent, so that its step can publish again; returns the keys removed.

        The manifest goes first, then every part that names a file which `verify` would; all data stays.
        What is sound stays, also what another run has made anew meanwhile.
        """
        parts = [f"{address}/manifest.json", *(_part_key(address, block) for block in self.parts(address))]
        return [key for key in parts if self._withdraw_document(address, key)]

    def _withdraw_document(self, address: str, key: str) -> bool:
        tag = etag(self.client, self.place, key)
        document = self.get_json(key) if tag else None
        if tag is None or document is None:
            return False
        there, files = self._sound(address), document.get("files")
        sound = files is not None and all(there.get(file["key"]) == file["size"] for file in files)
        return not sound and remove_if_same(self.client, self.place, key, tag)

    def _sound(self, address: str) -> dict[str, int]:
        """Size of every data object of an artifact by key, without those known to be damaged."""
        found = {each.key: each.size for each in self.keys(f"{address}/da")}  # data/ and damaged/
        damaged = {key.replace("/damaged/", "/data/", 1) for key in found if "/damaged/" in key}
        return {key: size for key, size in found.items() if key not in damaged}

    def _forsake(self, address: str, attempt: str, winner: Manifest) -> None:
        named = {file.key for file in winner.files}
        # A block that this attempt published stays, even where the winner's manifest names it not.
        named |= {file.key for part in self.parts(address).values() for file in part.files}
        ours = (found.key for found in self.keys(f"{address}/data/{attempt}/"))
        self.delete(key for key in ours if key not in named)

    def _part(self, key: str) -> Part | None:
        data = self.get_json(key)
        return None if data is None else part_from(data, f"{self.uri}: {key}")

    # Objects

    def put_json(self, key: str, obj: Any, *, create_only: bool = False) -> bool:
        """Write a small document; with `create_only`, False if the key holds another one already."""
        body = text(obj)
        if create_only:
            return self._create(key, body)
        self.put_bytes(key, body)
        return True

    def get_json(self, key: str) -> Any | None:
        """A document, or None if the key is absent; BadData if it is not JSON."""
        body = self.get_bytes(key)
        if body is None:
            return None
        try:
            return json.loads(body)
        except ValueError as error:
            raise BadData(f"{key} in {self.uri} is not JSON ({error}); remove it and run again") from error

    def put_bytes(self, key: str, body: bytes) -> None:
        """Write a small object."""
        with explained(self.place, f"writing {key}"):
            put(self.client, self.place, key, body)

    def get_bytes(self, key: str) -> bytes | None:
        """A small object, or None if the key is absent."""
        from botocore.exceptions import ClientError

        with explained(self.place, f"reading {key}"):
            try:
                return transfer.whole(self.client, self.place, key)
            except ClientError as error:
                if is_absent(error):
                    return None
                raise

    def keys(self, prefix: str) -> Iterator[Object]:
        """Every object whose key starts with `prefix`, in the order of keys."""
        with explained(self.place, f"listing {prefix or 'everything'}"):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.place.bucket, Prefix=self.place.key(prefix)
            )
            skip = len(self.place.key(""))
            for page in pages:
                for found in page.get("Contents", []):
                    yield Object(found["Key"][skip:], found["Size"], found["LastModified"])

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, a thousand to a request; absent ones are no error."""
        left = iter(keys)
        while batch := list(islice(left, 1000)):
            remove(self.client, self.place, batch)

    def _create(self, key: str, body: bytes) -> bool:
        """Whether the key holds `body` now because it held nothing before."""
        from botocore.exceptions import BotoCoreError, ClientError

        with explained(self.place, f"writing {key}"):
            for pause in CREATE_PAUSES:
                try:
                    put(self.client, self.place, key, body, IfNoneMatch="*")
                    return True
                except (ClientError, BotoCoreError) as error:
                    stored = self._after(error, key)
                    if stored is not None:
                        # Equal bytes are our own, written by a request whose answer was lost: documents that
                        # are created only once carry the attempt's id.
                        return stored == body
                    if pause is None or status_of(error) not in (409, 412):
                        raise
                time.sleep(pause)
        raise AssertionError("the last pause is None")

    def _after(self, error: Exception, key: str) -> bytes | None:
        """What the key holds after a create that failed: another's document, our own, or nothing."""
        if status_of(error) in (400, 401, 403, 404):
            return None
        try:
            return self.get_bytes(key)
        except FusechatError:
            raise error from None  # the first failure tells more than the one of looking
