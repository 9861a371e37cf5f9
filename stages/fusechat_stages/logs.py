"""A copy of everything a process and its children print, to keep with the artifact.

Used by entry alone. Works on file descriptors 1 and 2, so that C libraries and ranks are in it too.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT_BYTES = 16 << 20
"""What a log keeps; the rest is still printed, and the file's last line says so."""


@contextmanager
def copied_to(path: Path) -> Iterator[None]:
    """Within the block, standard output and error go where they went and into `path` too."""
    reading, writing = os.pipe()
    saved = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    copier = threading.Thread(target=_copy, args=(reading, saved[0], path), daemon=True)
    copier.start()
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        # A child that outlives us may hold the pipe open: its words are lost, our exit is not held up.
        copier.join(timeout=5)
        os.close(saved[0])
        os.close(saved[1])


def _copy(reading: int, terminal: int, path: Path) -> None:
    kept = 0
    with path.open("wb", buffering=0) as file:
        while chunk := os.read(reading, 1 << 16):
            os.write(terminal, chunk)
            if kept < LIMIT_BYTES:
                file.write(chunk)
                kept += len(chunk)
                if kept >= LIMIT_BYTES:
                    file.write(b"\n(the log was cut here: it is over 16 MiB)\n")
    os.close(reading)
