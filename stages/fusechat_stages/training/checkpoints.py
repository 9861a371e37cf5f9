"""Checkpoints of a training run: written by all ranks beside the training, found again by any attempt.

    <address>/checkpoints/<attempt>/<step>/manifest.json   created last, after every rank's files are there
    <address>/checkpoints/<attempt>/<step>/<file>          torch.distributed.checkpoint's, for any world size

Called by the training loop. Knows tensors by name and a place to keep files; nothing of models or steps.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fusechat import transfer
from fusechat.store import FileEntry, Store

from fusechat_stages.training.job import Job, World

State = dict[str, torch.Tensor]


class Files(Protocol):
    """A place that keeps files under keys."""

    def send(self, key: str, path: Path) -> FileEntry: ...
    def fetch(self, entry: FileEntry, path: Path) -> None: ...
    def put_json(self, key: str, value: Any) -> object: ...
    def get_json(self, key: str) -> Any | None: ...
    def names(self, prefix: str) -> Iterator[str]: ...
    def delete(self, keys: list[str]) -> None: ...


class StoreFiles:
    """Files in the artifacts' store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.put_json, self.get_json, self.delete = store.put_json, store.get_json, store.delete

    def send(self, key: str, path: Path) -> FileEntry:
        sent = transfer.upload(self.store.client, self.store.place, key, path)
        return FileEntry(path.name, key, sent.size, sent.sha256)

    def fetch(self, entry: FileEntry, path: Path) -> None:
        self.store.download(entry, path)

    def names(self, prefix: str) -> Iterator[str]:
        return (found.key for found in self.store.keys(prefix))


class FolderFiles:
    """Files in a folder: for runs without a store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def send(self, key: str, path: Path) -> FileEntry:
        place = self._place(key)
        shutil.copyfile(path, place)
        return FileEntry(path.name, key, place.stat().st_size, hashlib.sha256(place.read_bytes()).hexdigest())

    def fetch(self, entry: FileEntry, path: Path) -> None:
        shutil.copyfile(self.root / entry.key, path)

    def put_json(self, key: str, value: Any) -> None:
        partial = self._place(key + ".partial")
        partial.write_text(json.dumps(value))
        partial.rename(self.root / key)

    def get_json(self, key: str) -> Any | None:
        path = self.root / key
        return json.loads(path.read_text()) if path.exists() else None

    def names(self, prefix: str) -> Iterator[str]:
        found = sorted((self.root / prefix).rglob("*")) if (self.root / prefix).is_dir() else []
        return (path.relative_to(self.root).as_posix() for path in found if path.is_file())

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            (self.root / key).unlink(missing_ok=True)

    def _place(self, key: str) -> Path:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def files_of(job: Job) -> Files:
    """Where the job's checkpoints are: its store, else its scratch folder, which outlives a failure."""
    if job.store is None:
        return FolderFiles(job.scratch)
    return StoreFiles(Store(job.store["uri"], endpoint=job.store["endpoint"], region=job.store["region"]))


@dataclass(frozen=True)
class Found:
    """A complete checkpoint. `log`: the training log's lines up to `step`; `saved`: when, or nothing."""

    key: str
    step: int
    files: tuple[FileEntry, ...]
    log: list[dict[str, Any]]
    saved: str = ""


def newest(files: Files, address: str) -> Found | None:
    """The complete checkpoint of most steps, of whichever attempt."""
    manifests = [n for n in files.names(f"{address}/checkpoints/") if n.endswith("/manifest.json")]
    for key in sorted(manifests, key=lambda name: int(name.split("/")[-2]), reverse=True):
        if told := files.get_json(key):
            entries = tuple(FileEntry(**entry) for entry in told["files"])
            return Found(key.rpartition("/")[0], told["step"], entries, told["log"], told.get("saved", ""))
    return None


def published(step: int, saved: str) -> dict[str, Any]:
    """What progress tells of a checkpoint."""
    return {"lastCheckpoint": saved, "checkpointStep": step} if saved else {"checkpointStep": step}


def restore(files: Files, found: Found, folder: Path, state: State, world: World) -> None:
    """Fill `state` in place, whatever the world size that saved it. The machine's first rank fetches."""
    if world.local_rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for entry in found.files:
            files.fetch(entry, folder / entry.name)
    dist.barrier()
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder))
    dist.barrier()
    if world.local_rank == 0:
        shutil.rmtree(folder)


class Saver:
    """Writes one checkpoint at a time in the background; training goes on with the live tensors meanwhile."""

    def __init__(self, files: Files, job: Job, world: World) -> None:
        self.files, self.job, self.world = files, job, world
        # Of its own, for the thread's collectives must not meet the training's.
        self._group = dist.new_group(backend="gloo")
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.last_step = -1
        self.published: dict[str, Any] = {}
        """`lastCheckpoint` and `checkpointStep` of the newest that others find, as progress tells them: the
        leader's, replaced whole by the thread that publishes."""

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, step: int, state: State, log: list[dict[str, Any]]) -> None:
        """Copy the tensors, then write, upload and publish them in the background. Collective."""
        self.wait()
        folder = self.job.scratch / f"saving-{step}-{self.world.rank}"
        shutil.rmtree(folder, ignore_errors=True)
        writing = dcp.async_save(
            state, storage_writer=dcp.FileSystemWriter(folder), process_group=self._group
        )
        self.last_step = step
        lines = list(log)
        self._thread = threading.Thread(
            target=self._guarded,
            args=(lambda: self._publish(writing.result, folder, step, lines),),
            daemon=True,
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the checkpoint under way is published; raises what went wrong with it."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error

    def _publish(
        self, written: Callable[[], Any], folder: Path, step: int, log: list[dict[str, Any]]
    ) -> None:
        written()
        root = f"{self.job.address}/checkpoints/{self.job.attempt}"
        sent = [self.files.send(f"{root}/{step}/{path.name}", path) for path in sorted(folder.iterdir())]
        shutil.rmtree(folder)
        everyones = self._gathered(sent)  # nobody's files are missing once it returns
        if self.world.leads:
            saved = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            files = [asdict(entry) for entry in everyones]
            told = {"step": step, "saved": saved, "files": files, "log": log}
            self.files.put_json(f"{root}/{step}/manifest.json", told)
            self.published = published(step, saved)
            self._forget(root, step)

    def _gathered(self, entries: list[FileEntry]) -> list[FileEntry]:
        lists: list[Any] = [None] * self.world.size
        dist.all_gather_object(lists, entries, group=self._group)
        return [entry for found in lists for entry in found]

    def _forget(self, root: str, step: int) -> None:
        """This attempt's older checkpoints; manifests first, so that none is found half deleted."""
        keys = [k for k in self.files.names(f"{root}/") if int(k.removeprefix(root).split("/")[1]) < step]
        self.files.delete(sorted(keys, key=lambda key: not key.endswith("/manifest.json")))
