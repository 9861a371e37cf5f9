"""What the store's JSON documents say: files, parts and manifests, to JSON and back.

Pure. Used by `store` (which re-exports all of it). Knows no S3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusechat.address import PATTERN, digest
from fusechat.errors import BadData, MissingInput

FORMAT = 1
"""Version of the documents' layout; a reader refuses a newer one."""


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact. `key` is relative to the store's prefix, `size` in bytes, `sha256` in hex."""

    name: str
    key: str
    size: int
    sha256: str


@dataclass(frozen=True)
class InputRef:
    """What an artifact was made from: the input's address, and its manifest's digest at that time."""

    address: str
    digest: str


@dataclass(frozen=True)
class Part:
    """One published block of a sharded artifact."""

    block: int
    attempt: str
    files: tuple[FileEntry, ...]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """All there is to know of a published artifact. `created` is RFC 3339, UTC."""

    address: str
    stage: str
    stage_version: int
    profile: str
    params: Mapping[str, Any]
    inputs: Mapping[str, InputRef]
    files: tuple[FileEntry, ...]
    metrics: Mapping[str, Any]
    deterministic: bool
    libraries: Mapping[str, str]
    attempt: str
    created: str
    host: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """sha256 in hex of the recipe's address and every file's name, size and sha256.

        Two attempts that made the same bytes have the same digest, whoever made them and when.
        """
        return digest({"address": self.address, "files": [[f.name, f.size, f.sha256] for f in self.files]})

    def entry(self, name: str) -> FileEntry:
        """The file of that name; MissingInput if there is none."""
        for file in self.files:
            if file.name == name:
                return file
        names = ", ".join(file.name for file in self.files[:5])
        raise MissingInput(f"artifact {self.address} has no file {name!r}; it has {names or 'no files'}")


def text(document: Any) -> bytes:
    """A document as JSON for the store; NaN and infinities, which JSON has not, are written as null."""
    plain = _plain(document)
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as a JSON object."""
    return {
        "format": FORMAT,
        "address": manifest.address,
        "stage": manifest.stage,
        "stageVersion": manifest.stage_version,
        "profile": manifest.profile,
        "params": manifest.params,
        "inputs": {r: {"address": i.address, "digest": i.digest} for r, i in manifest.inputs.items()},
        "files": _files_json(manifest.files),
        "metrics": manifest.metrics,
        "deterministic": manifest.deterministic,
        "libraries": manifest.libraries,
        "attempt": manifest.attempt,
        "created": manifest.created,
        "host": manifest.host,
    }


def manifest_from(data: Any, where: str) -> Manifest:
    """The inverse of `manifest_json`. BadData, naming `where` it was read, for anything else."""
    _check_format(data, where)
    try:
        return Manifest(
            address=_address(data["address"]),
            stage=str(data["stage"]),
            stage_version=int(data["stageVersion"]),
            profile=str(data["profile"]),
            params=dict(data["params"]),
            inputs={role: InputRef(i["address"], i["digest"]) for role, i in data["inputs"].items()},
            files=_files_from(data["files"]),
            metrics=dict(data["metrics"]),
            deterministic=bool(data["deterministic"]),
            libraries=dict(data["libraries"]),
            attempt=str(data["attempt"]),
            created=str(data["created"]),
            host=dict(data["host"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadData(_malformed(where, error)) from error


def part_json(part: Part) -> dict[str, Any]:
    """The part as a JSON object."""
    files = _files_json(part.files)
    return {
        "format": FORMAT,
        "block": part.block,
        "attempt": part.attempt,
        "files": files,
        "metrics": part.metrics,
    }


def part_from(data: Any, where: str) -> Part:
    """The inverse of `part_json`. BadData, naming `where` it was read, for anything else."""
    _check_format(data, where)
    try:
        files = _files_from(data["files"])
        return Part(int(data["block"]), str(data["attempt"]), files, dict(data["metrics"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadData(_malformed(where, error)) from error


def file_name(name: str) -> str:
    """The name, if it can name a file below a folder anywhere; ValueError otherwise."""
    pieces = name.split("/")
    if any(piece in ("", ".", "..") for piece in pieces) or "\\" in name or not name.isprintable():
        raise ValueError(f"a file of an artifact needs a plain relative name such as 'a/b.bin', got {name!r}")
    return name


def _files_json(files: Sequence[FileEntry]) -> list[dict[str, Any]]:
    return [{"name": f.name, "key": f.key, "size": f.size, "sha256": f.sha256} for f in files]


def _files_from(data: Any) -> tuple[FileEntry, ...]:
    return tuple(FileEntry(file_name(f["name"]), str(f["key"]), int(f["size"]), f["sha256"]) for f in data)


def _address(value: str) -> str:
    if not PATTERN.match(value):
        raise ValueError(f"address {value!r}")
    return value


def _check_format(data: Any, where: str) -> None:
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise BadData(_malformed(where, "no format number"))
    if data["format"] > FORMAT:
        raise BadData(
            f"{where} has format {data['format']} and this version reads up to {FORMAT}; upgrade fusechat"
        )


def _malformed(where: str, why: object) -> str:
    return f"{where} is not a document of fusechat ({why!s:.200}); remove it, and the step will run again"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()  # a scalar of an array library, which core does not import
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
