"""What a stage sees of the world: its inputs and its output, over the store or over plain folders.

Made by entry, handed to `run(params, inputs, out)`. Knows the store's interface and nothing of any stage.
`FolderInput` and `FolderOutput` give the same interface without a store: for tests, and for trying one
stage by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fusechat.errors import MissingInput
from fusechat.store import FileEntry, Manifest, Part, Store

PROGRESS_SECONDS = 15.0
"""Least time between two writes of progress.json to the store; a new checkpoint is told at once."""


class Stopped(Exception):
    """SIGTERM came and the stage has saved what it can: the process ends with 143."""


class Input:
    """One input artifact. Files are downloaded once, verified, into this process's scratch."""

    def __init__(self, store: Store, manifest: Manifest, folder: Path) -> None:
        self.address, self.manifest, self.metrics = manifest.address, manifest, manifest.metrics
        self._store, self._folder = store, folder

    def names(self) -> list[str]:
        """The artifact's file names, sorted."""
        return sorted(entry.name for entry in self.manifest.files)

    def entry(self, name: str) -> FileEntry:
        """Name, key, size and sha256 of one file; MissingInput if the artifact has none of that name."""
        return self.manifest.entry(name)

    def path(self, name: str) -> Path:
        """A local copy of one file."""
        local = self._folder / name
        if not local.exists():
            local.parent.mkdir(parents=True, exist_ok=True)
            self._store.download(self.entry(name), local)
        return local

    def folder(self, only: Callable[[str], bool] | None = None) -> Path:
        """A folder with local copies of all files, or of those whose name `only` accepts."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in self.names():
            if only is None or only(name):
                self.path(name)
        return self._folder

    def read(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes of one file from byte `start`, straight from the store."""
        return self._store.read(self.entry(name), start, length)


class FolderInput(Input):
    """An input that is a folder on this machine (an earlier `run_local`'s output)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address = f"local/{hashlib.sha256(str(folder).encode()).hexdigest()}"
        facts = folder / "metrics.json"
        self.metrics = json.loads(facts.read_text()) if facts.exists() else {}

    def names(self) -> list[str]:
        found = (p.relative_to(self._folder).as_posix() for p in self._folder.rglob("*") if p.is_file())
        return sorted(name for name in found if name != "metrics.json")

    def entry(self, name: str) -> FileEntry:
        path = self.path(name)
        return FileEntry(name, str(path), path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())

    def path(self, name: str) -> Path:
        path = self._folder / name
        if not path.is_file():
            raise MissingInput(
                f"{self._folder.name} has no file {name!r}; it has {', '.join(self.names()[:5])}"
            )
        return path

    def folder(self, only: Callable[[str], bool] | None = None) -> Path:
        return self._folder

    def read(self, name: str, start: int, length: int) -> bytes:
        with self.path(name).open("rb") as file:
            file.seek(start)
            return file.read(length)


class Reporter:
    """Progress of one process: a local file often, the store at most every 15 s, a line every 5 s.

    What is told is described in `fusechat.pace`.
    """

    def __init__(self, put: Callable[[dict[str, Any]], object] | None) -> None:
        self._put, self._file = put, os.environ.get("FUSECHAT_PROGRESS_FILE")
        self._last = {"file": 0.0, "store": time.monotonic(), "line": time.monotonic()}
        self._started = time.monotonic()
        self._saved: int | None = None
        self._lock = threading.Lock()

    def __call__(self, done: float, total: float, unit: str, facts: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if done == facts.get("from"):
            self._started = now  # what it took to get ready says nothing of the time that is left
        state = {
            "done": done,
            "total": total,
            "unit": unit,
            "seconds": round(now - self._started, 1),
            **facts,
        }
        with self._lock:
            saved, before = facts.get("checkpointStep"), self._saved
            news, self._saved = saved != before, saved
            if self._file and (done >= total or news or now - self._last["file"] > 0.1):
                self._last["file"] = now
                partial = Path(f"{self._file}.{os.getpid()}")  # one whose runner died may still end beside us
                partial.write_text(json.dumps(state))
                partial.replace(self._file)
            if now - self._last["line"] > 5:
                self._last["line"] = now
                shown = (f"{k}={v}" for k, v in facts.items() if k != "from")
                print(f"{done:,.10g}/{total:,.10g} {unit}", *shown, flush=True)
            if self._put and (news or now - self._last["store"] > PROGRESS_SECONDS):
                self._last["store"] = now
                self._put(state)


class Output:
    """One attempt at one artifact. Files become part of it by `add` or `publish_block`, nothing else does."""

    def __init__(
        self,
        store: Store,
        address: str,
        attempt: str,
        folder: Path,
        *,
        shard: tuple[int, int] = (0, 1),
        runtime: Mapping[str, Any] | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.store, self.address, self.attempt, self.folder = store, address, attempt, folder
        self.shard, self.runtime = shard, dict(runtime or {})
        self.metrics: dict[str, Any] = {}
        self.deterministic = True
        self.block_count: int | None = None
        self.first_block = 0
        self.files: list[FileEntry] = []
        self._stop = stop or threading.Event()
        self._report = Reporter(lambda state: store.put_json(f"{address}/progress.json", state))
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def stopping(self) -> bool:
        """SIGTERM came: save what is worth saving, then raise Stopped."""
        return self._stop.is_set()

    def blocks(self, count: int) -> Iterator[int]:
        """This shard's blocks of `count` that no attempt has published yet."""
        self.block_count = count
        index, shards = self.shard
        done = self._published()
        self.first_block = next((block for block in range(index, count, shards) if block not in done), 0)
        for block in range(index, count, shards):
            if self.stopping:
                raise Stopped(f"stopped before block {block} of {count}; the finished ones are kept")
            if block not in done:
                yield block

    def publish_block(self, block: int, files: Mapping[str, Path], metrics: Mapping[str, Any]) -> None:
        """Upload a block's files and publish it as a part of its own; the local copies are removed."""
        entries = tuple(
            self.store.upload(self.address, self.attempt, name, path) for name, path in files.items()
        )
        self.store.publish_part(self.address, Part(block, self.attempt, entries, metrics))
        for path in files.values():
            path.unlink()

    def add(self, name: str, path: Path) -> None:
        """Upload one file of the artifact now; it is published with the manifest when `run` returns."""
        self.files.append(self.store.upload(self.address, self.attempt, name, path))

    def progress(self, done: float, total: float, unit: str, **facts: Any) -> None:
        """Tell how far the stage is: for the runner's bar, the operator's status and the log."""
        self._report(done, total, unit, facts)

    def _published(self) -> set[int]:
        return set(self.store.parts(self.address))


class FolderOutput(Output):
    """An output that is a folder; a block counts as published when its name stands in `parts.json`."""

    def __init__(self, folder: Path, runtime: Mapping[str, Any] | None = None) -> None:
        self.store = None  # type: ignore[assignment]
        self.address, self.attempt = "local/" + "0" * 64, "local"
        self.folder = folder / ".scratch"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shard, self.runtime = (0, 1), dict(runtime or {})
        self.metrics, self.deterministic, self.block_count, self.first_block = {}, True, None, 0
        self._stop, self._report = threading.Event(), Reporter(None)
        self._target = folder
        self.parts: dict[int, Mapping[str, Any]] = {}

    def publish_block(self, block: int, files: Mapping[str, Path], metrics: Mapping[str, Any]) -> None:
        for name, path in files.items():
            self.add(name, path)
            path.unlink()
        self.parts[block] = metrics

    def add(self, name: str, path: Path) -> None:
        target = self._target / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)

    def _published(self) -> set[int]:
        return set(self.parts)


def summed(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics of parts with every numeric leaf summed; a leaf of another type is the first part's."""
    total: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping):
                total[key] = summed([total.get(key, {}), value])
            elif isinstance(value, int | float) and not isinstance(value, bool):
                total[key] = total.get(key, 0) + value
            else:
                total.setdefault(key, value)
    return total
