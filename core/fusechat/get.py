"""An artifact as a plain folder: the fused model as transformers loads it, the report, what any step made.

Used by cli. Knows the store and the record of a run; nothing of stages but where a fused model comes from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusechat.address import PATTERN
from fusechat.errors import MissingInput, UsageError
from fusechat.store import FileEntry, Manifest, Store

MODEL_STAGES = ("merge", "fuse")


def split(uri: str) -> tuple[str, str]:
    """(the store's URI, the address) of an artifact's URI, as `status.model` is; UsageError if it is none."""
    prefix, stage, digest = ["", "", *uri.rstrip("/").rsplit("/", 2)][-3:]
    address = f"{stage}/{digest}"
    if not prefix.startswith("s3://") or not PATTERN.match(address):
        raise UsageError(
            f"{uri} is not the URI of an artifact; expected s3://BUCKET/PREFIX/STAGE/HASH, "
            "as in status.model and in what `fusechat run` prints"
        )
    return prefix, address


def recorded(home: Path, run: str, step: str | None) -> tuple[str | None, str]:
    """(the store's URI, the address) of what a step of the last run from `home` made.

    No URI: the home folder's own store. No step: its fused model. UsageError if there is no such artifact.
    """
    path = home / "runs" / run / "run.json"
    if not path.exists():
        raise UsageError(
            f"{run} has not been run from here (no {path}); give its --home, or an artifact's URI"
        )
    record: dict[str, Any] = json.loads(path.read_text())
    steps = record.get("steps", [])
    found = next((each for each in steps if _is_meant(each, step)), None)
    if found is None:
        names = ", ".join(each["name"] for each in steps) or "none yet"
        what = f"no step {step!r}" if step else "no fused model"
        raise UsageError(f"{run} has {what}; its steps are: {names}")
    if found["state"] != "Succeeded":
        raise UsageError(
            f"{found['name']} of {run} is {found['state']}, has made nothing; `fusechat run` goes on with it"
        )
    return record.get("store"), str(found["address"])


def _is_meant(each: dict[str, Any], step: str | None) -> bool:
    if step:
        return bool(each["name"] == step)
    return (each["subject"] or {}).get("kind") == "Fused" and each["stage"] in MODEL_STAGES


def get(store: Store, address: str, folder: Path) -> Iterator[str]:
    """Bring every file of an artifact into `folder`, a line for each; what is there already is kept.

    Nothing is overwritten: UsageError, before the first file, if one of another content is in its place.
    MissingInput if nothing is published there; CorruptInput if its bytes are not those it was published with.
    """
    manifest = store.manifest(address)
    if manifest is None:
        raise MissingInput(
            f"nothing is published at {address} in {store.uri}; check the store, or run its FusionRun again"
        )
    there = _there(manifest, folder)
    for entry in manifest.files:
        if entry.name in there:
            yield f"{entry.name}  there already"
            continue
        store.download(entry, folder / entry.name)
        yield f"{entry.name}  {entry.size / 1e6:,.2f} MB"
    size = sum(entry.size for entry in manifest.files)
    yield f"{folder}: {len(manifest.files)} files, {size / 1e6:,.2f} MB of {address}, verified"


def _there(manifest: Manifest, folder: Path) -> set[str]:
    """Names of the files that are in the folder; UsageError if one is another file."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; choose another with --to")
    found = {entry.name for entry in manifest.files if (folder / entry.name).exists()}
    for entry in manifest.files:
        if entry.name in found and not _is(folder / entry.name, entry):
            raise UsageError(
                f"{folder / entry.name} is another file than that of {manifest.address}, and is kept; "
                "choose another folder with --to"
            )
    return found


def _is(path: Path, entry: FileEntry) -> bool:
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
