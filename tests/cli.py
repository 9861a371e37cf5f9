"""Runs `fusechat` as a person would, and looks at what it left: for tests/pipeline.

A `Home` is one folder with its own S3 (as `./.fusechat` is). Its store may be looked into between runs.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fusechat.address import PATTERN
from fusechat.s3server import LocalS3
from fusechat.store import Manifest, Store


@dataclass(frozen=True)
class Ended:
    """How one command ended."""

    code: int
    out: str

    @property
    def last(self) -> str:
        return self.out.strip().splitlines()[-1]


@dataclass(frozen=True)
class Home:
    """A working folder: artifacts, logs and records."""

    folder: Path

    def start(self, *arguments: Any) -> subprocess.Popen[str]:
        """`fusechat ARGUMENTS --home FOLDER`, running."""
        command = [sys.executable, "-m", "fusechat.cli", *map(str, arguments), "--home", str(self.folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def fusechat(self, *arguments: Any, timeout: float = 300) -> Ended:
        """The same, waited for."""
        process = self.start(*arguments)
        out, _ = process.communicate(timeout=timeout)
        return Ended(process.returncode, out)

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The store, its server running."""
        with LocalS3(self.folder / "s3") as server, pytest.MonkeyPatch.context() as patch:
            for name, value in server.environment().items():
                patch.setenv(name, value)
            yield Store(server.uri)

    def manifests(self) -> dict[str, Manifest]:
        """Every published artifact by address."""
        with self.store() as store:
            places = [found.key.removesuffix("/manifest.json") for found in store.keys("")]
            found = [store.manifest(place) for place in places if PATTERN.match(place)]
            return {manifest.address: manifest for manifest in found if manifest}

    def attempts(self) -> dict[str, list[dict[str, Any]]]:
        """The records of every attempt that came to an end, by address."""
        records: dict[str, list[dict[str, Any]]] = {}
        with self.store() as store:
            for found in store.keys(""):
                address, separator, _ = found.key.partition("/attempts/")
                if separator:
                    records.setdefault(address, []).append(store.get_json(found.key))
        return records


def reproducible(manifests: dict[str, Manifest]) -> dict[str, dict[str, str]]:
    """sha256 of every file of every artifact whose bytes are promised: what two runs must agree on."""
    return {
        address: {entry.name: entry.sha256 for entry in manifest.files}
        for address, manifest in manifests.items()
        if manifest.deterministic and manifest.stage not in ("resolve", "report")
    }
