"""The file of a download that is not finished, and what survives a kill of it.

Used by `transfer` only. `<target>.part` holds the bytes, `<target>.part.done` says which of its ranges are
there. One process at a time owns them. Knows no S3.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fusechat.store_s3 import disk_full


class PartFile:
    """One owned `.part` file of a download with these facts; `done` are the starts of the ranges in it."""

    def __init__(self, target: Path, file: IO[bytes], facts: Mapping[str, Any]) -> None:
        self._target, self._file, self._lock = target, file, threading.Lock()
        head = json.dumps(facts, sort_keys=True)
        whole = os.fstat(file.fileno()).st_size == facts["size"]
        lines = self._journal.read_text().split("\n") if whole and self._journal.exists() else []
        # The last line may be half written; a journal of other facts tells nothing.
        known = lines[1:-1] if lines[:1] == [head] else []
        self.done = {int(line) for line in known if line.isdigit()}
        self._journal.write_text("".join(f"{line}\n" for line in [head, *sorted(self.done)]))
        file.truncate(facts["size"])

    @property
    def descriptor(self) -> int:
        return self._file.fileno()

    @property
    def _journal(self) -> Path:
        return self._target.with_name(f"{self._target.name}.part.done")

    def add(self, start: int) -> None:
        """The range from `start` is in the file."""
        with self._lock, self._journal.open("a") as file:
            file.write(f"{start}\n")

    def keep(self) -> None:
        """The file is whole and right: it becomes the target."""
        _part(self._target).replace(self._target)
        self._journal.unlink(missing_ok=True)

    def drop(self) -> None:
        """The file is of no use."""
        self._journal.unlink(missing_ok=True)
        _part(self._target).unlink(missing_ok=True)


@contextmanager
def owned(target: Path, facts: Mapping[str, Any]) -> Iterator[PartFile | None]:
    """The part file, ours alone; None if another process finished the same download while we waited."""
    while True:
        # Not mode "a": with O_APPEND, Linux's pwrite ignores the offset.
        with open(os.open(_part(target), os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as file:
            waited = not _locked_at_once(file)
            if _is_at(file, _part(target)):
                yield PartFile(target, file, facts)
                return
        if waited and target.exists() and target.stat().st_size == facts["size"]:
            yield None
            return


def need(target: Path, size: int) -> None:
    """TemporaryFailure unless the target's disk has room for `size` more bytes."""
    free = shutil.disk_usage(target.parent).free
    if size > free:
        raise disk_full(target, size, free)


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _locked_at_once(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        fcntl.flock(file, fcntl.LOCK_EX)
        return False


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is the one of that path still: its owner may have renamed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
