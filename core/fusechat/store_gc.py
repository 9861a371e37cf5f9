"""What nobody needs any more, and removing it. The only thing of ours that deletes artifacts.

Called by `fusechat gc` and `fusechat cluster gc`. `garbage` is the pure decision over a listing; `gc` is its
effect. Knows the store's layout and nothing of runs but that their documents under `refs/` name addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from fusechat.address import PATTERN
from fusechat.errors import UsageError
from fusechat.store import Object, Store
from fusechat.store_s3 import explained


@dataclass(frozen=True)
class Garbage:
    """What may go: whole artifacts by address, stray objects of kept ones, uploads that nobody finished.

    `keys` names every object that goes, in the order of going, `size` their bytes.
    """

    artifacts: tuple[str, ...]
    keys: tuple[str, ...]
    size: int
    uploads: tuple[tuple[str, str], ...] = ()


def references(store: Store, dropped: Collection[str] = ()) -> set[str]:
    """Every address that a document under `refs/` names, without the documents of these keys."""
    documents = (store.get_json(found.key) for found in store.keys("refs/") if found.key not in dropped)
    return {value for document in documents for value in _strings(document) if PATTERN.match(value)}


def runs_of(store: Store, cluster: str) -> dict[str, str]:
    """The uids of a cluster's runs (a laptop's is `local-<host>`) that have references, and those's keys."""
    found = (each.key for each in store.keys(f"refs/{cluster}/"))
    return {key.rpartition("/")[2].removesuffix(".json"): key for key in found}


def collect(store: Store, dropped: Collection[str], days: float, *, delete: bool) -> str:
    """What nobody needs once these references are gone; with `delete`, all that is gone. A line that says it.

    UsageError for a reference that is not there: it may be spelled otherwise, and would go on to keep.
    """
    there = [found.key for found in store.keys("refs/")] if dropped else []
    if wrong := sorted(set(dropped) - set(there)):
        known = ", ".join(there[:10]) + (f" and {len(there) - 10} more" if len(there) > 10 else "")
        raise UsageError(f"there is no {wrong[0]} in {store.uri}; there are: {known or 'none'}")
    keep = references(store, dropped)
    if delete:
        store.delete(dropped)
    gone = gc(store, keep, days, delete=delete)
    verb = "deleted" if delete else "would delete (say --delete)"
    refs = f"the references of {len(dropped)} run{'s' * (len(dropped) > 1)}, " if dropped else ""
    count = f"{len(gone.artifacts)} artifacts, {len(gone.keys)} objects, {gone.size / 1e6:,.1f} MB"
    return f"{verb}: {refs}{count}"


def gc(store: Store, keep: Collection[str], older_than_days: float, *, delete: bool = False) -> Garbage:
    """What no address of `keep` needs and is older than so many days; with `delete`, removed.

    Manifests go first: an artifact that is half removed is an absent one.
    """
    before = datetime.now(UTC) - timedelta(days=older_than_days)
    found = garbage(store.keys(""), keep, before, lambda address: _named(store, address))
    uploads = tuple(_unfinished(store, before))
    if delete:
        store.delete(key for key in found.keys if key.endswith("/manifest.json"))
        store.delete(key for key in found.keys if not key.endswith("/manifest.json"))
        _abort(store, uploads)
    return Garbage(found.artifacts, found.keys, found.size, uploads)


def garbage(
    objects: Iterable[Object],
    keep: Collection[str],
    before: datetime,
    named: Callable[[str], set[str] | None],
) -> Garbage:
    """Pure but for `named`: the keys that an artifact's manifest and parts name, None if unpublished.

    `objects` come in the order of their keys. An artifact goes when nothing in it is younger than `before`
    and `keep` has it not; of a kept and published one, old data and checkpoints that nothing names.
    """
    artifacts: list[str] = []
    gone: list[Object] = []
    for address, group in groupby(objects, key=lambda found: _address(found.key)):
        if address is None:
            continue
        inside = list(group)
        if address in keep:
            gone += _strays(address, inside, before, named)
        elif all(found.modified < before for found in inside):
            artifacts.append(address)
            gone += inside
    return Garbage(tuple(artifacts), tuple(found.key for found in gone), sum(found.size for found in gone))


def _strays(
    address: str, inside: list[Object], before: datetime, named: Callable[[str], set[str] | None]
) -> list[Object]:
    folders = tuple(f"{address}/{name}/" for name in ("data", "damaged", "checkpoints"))
    old = [found for found in inside if found.key.startswith(folders) and found.modified < before]
    needed = named(address) if old else None
    return [found for found in old if found.key not in needed] if needed is not None else []


def _address(key: str) -> str | None:
    start = "/".join(key.split("/", 2)[:2])
    return start if PATTERN.match(start) else None


def _named(store: Store, address: str) -> set[str] | None:
    manifest = store.manifest(address)
    if manifest is None:
        return None
    files = [*manifest.files, *(file for part in store.parts(address).values() for file in part.files)]
    return {file.key for file in files}


def _unfinished(store: Store, before: datetime) -> Iterator[tuple[str, str]]:
    """Multipart uploads below the prefix that were begun before then: (key, upload id)."""
    skip = len(store.place.key(""))
    with explained(store.place, "listing unfinished uploads"):
        pages = store.client.get_paginator("list_multipart_uploads").paginate(
            Bucket=store.place.bucket, Prefix=store.place.key("")
        )
        for page in pages:
            for upload in page.get("Uploads", []):
                if upload["Initiated"] < before and _address(upload["Key"][skip:]):
                    yield upload["Key"][skip:], upload["UploadId"]


def _abort(store: Store, uploads: Iterable[tuple[str, str]]) -> None:
    for key, upload in uploads:
        with explained(store.place, f"removing the unfinished upload of {key}"):
            store.client.abort_multipart_upload(
                Bucket=store.place.bucket, Key=store.place.key(key), UploadId=upload
            )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in (*value.keys(), *value.values()):
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
