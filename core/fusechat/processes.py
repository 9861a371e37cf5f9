"""Stage processes on this machine: start, watch, stop. They die with the runner and never outlive it.

Used by local. A heavy stage is forked from a server that has imported torch once (`multiprocessing`'s
forkserver); a light one is a plain interpreter, so that a cached run never waits for torch. The stages are
found by entry point (`fusechat.stages`: `entry`, `preload`): core imports none of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from fusechat.errors import TemporaryFailure

HEAVY = frozenset({"extract", "align", "fuse", "merge", "evaluate"})
"""Stages that need torch or transformers."""

SERVER_DIED = 255
"""What multiprocessing reports of a process whose fork server was killed."""

SERVER_PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Between tries to reach the fork server: one that was killed takes a moment to be seen as dead."""

ORPHAN_SECONDS = 30.0
"""What a stage whose runner died has to save its work."""


@contextlib.contextmanager
def own_folder(beside: Path) -> Iterator[Path]:
    """`beside`, or where another runner has it `beside`-2 and so on: a file in it is of one process alone."""
    for number in itertools.count(1):
        folder = beside if number == 1 else beside.with_name(f"{beside.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield folder
            return


@dataclass
class Process:
    """One running stage process; `key` is the caller's."""

    key: Any
    folder: Path
    started: float = field(default_factory=time.monotonic)
    forked: Any = None
    spawned: subprocess.Popen[bytes] | None = None

    @property
    def sentinel(self) -> int:
        return int(self.forked.sentinel) if self.forked else self._pidfd

    _pidfd: int = -1
    _code: int | None = None

    def exit_code(self) -> int | None:
        """None while it runs; a signal's death is negative."""
        if self._code is None:
            self._code = self._forked_code() if self.forked else self._spawned_code()
        return self._code

    def _spawned_code(self) -> int | None:
        return self.spawned.poll() if self.spawned else None

    def _forked_code(self) -> int | None:
        code: int | None = self.forked.exitcode
        if code != SERVER_DIED:
            return code
        # Nobody is left to report how it ended but itself. If it still runs, it would race with its next
        # attempt.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.forked.pid, signal.SIGKILL)
        return int(self.read("summary").get("exitCode", -signal.SIGKILL))

    def stop(self, how: signal.Signals) -> None:
        """Send a signal to the process, if it still runs."""
        pid = self.forked.pid if self.forked else self.spawned.pid if self.spawned else None
        if pid and self.exit_code() is None:
            os.kill(pid, how)

    def close(self) -> None:
        """Let go of the handles of a process that has ended."""
        if self.spawned:
            assert self.spawned.stdin
            self.spawned.stdin.close()
            os.close(self._pidfd)
        elif self.forked:
            self.forked.close()

    def read(self, name: str) -> dict[str, Any]:
        """The JSON file that the process keeps in its folder (`progress`, `summary`); {} if there is none."""
        try:
            return dict(json.loads((self.folder / f"{name}.json").read_text()))
        except (OSError, ValueError):
            return {}


class Processes:
    """Starts stage processes. `environment` is what they all get; `threads` is set before torch is loaded."""

    def __init__(self, environment: Mapping[str, str], threads: int) -> None:
        self._environment = {**environment, **{name: str(threads) for name in _THREADS}}
        self._context: Any = None
        self._entry = _stages("entry").value
        self._forked: list[Process] = []
        self._warm = False

    def start(self, key: Any, stage: str, arguments: Sequence[str], folder: Path, log: Path) -> Process:
        """One process of `stage`: summary and progress are in `folder`, what it prints in `log`."""
        folder.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        for name in ("progress", "summary"):
            (folder / f"{name}.json").unlink(missing_ok=True)
        told = {
            "entry": self._entry,
            "arguments": list(arguments),
            "log": str(log),
            "environment": {
                **self._environment,
                "FUSECHAT_PROGRESS_FILE": str(folder / "progress.json"),
                "FUSECHAT_SUMMARY_FILE": str(folder / "summary.json"),
                "FUSECHAT_SCRATCH": str(folder),
            },
        }
        start = self._fork if stage in HEAVY or self._is_warm() else _spawn
        return start(Process(key, folder), told)

    def _is_warm(self) -> bool:
        """Whether the server has imported torch: it has once a process that it forked is at work."""
        self._warm = self._warm or any(
            p.exit_code() is not None or p.read("progress") or p.read("summary") for p in self._forked
        )
        return self._warm

    def preload(self) -> None:
        """Begin to import torch in the server now, while light steps run."""
        if self._context is None:
            os.environ.update(self._environment)
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(list(_stages("preload").load()()))
            from multiprocessing import forkserver

            forkserver.ensure_running()

    def _fork(self, process: Process, told: Mapping[str, Any]) -> Process:
        self.preload()
        for pause in (*SERVER_PAUSES_SECONDS, None):
            process.forked = self._context.Process(target=_forked, args=(dict(told),), daemon=False)
            try:
                process.forked.start()
                break
            except (EOFError, OSError) as error:
                # It was killed with our request in its hands; multiprocessing starts another.
                if pause is None:
                    raise TemporaryFailure(
                        f"the server that forks the steps dies again and again ({error}); look for what "
                        "kills it (memory?), then run the same command again"
                    ) from error
                self._warm = False
                self._forked.clear()
                time.sleep(pause)
        if not self._warm:
            self._forked.append(process)
        return process


_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def wait_any(processes: Sequence[Process], timeout: float) -> list[Process]:
    """The processes that have ended, waiting for the first at most `timeout` seconds."""
    if not processes:
        time.sleep(timeout)
    ended = set(wait([p.sentinel for p in processes], timeout))
    return [p for p in processes if p.sentinel in ended]


def _spawn(process: Process, told: Mapping[str, Any]) -> Process:
    code = "from fusechat.processes import spawned; spawned()"
    process.spawned = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert process.spawned.stdin
    process.spawned.stdin.write(json.dumps(told).encode() + b"\n")
    process.spawned.stdin.flush()
    process._pidfd = os.pidfd_open(process.spawned.pid)
    return process


def spawned() -> None:
    """A light stage's interpreter: told by one line of its input, which closes when the runner dies."""
    told = json.loads(sys.stdin.buffer.readline())
    # Not sys.stdin: a thread blocked in its lock would keep the interpreter from ending.
    _stage_process(told, lambda: os.read(0, 1))


def _forked(told: Mapping[str, Any]) -> None:
    parent = multiprocessing.parent_process()
    assert parent
    _stage_process(told, lambda: wait([parent.sentinel]))


def _stage_process(told: Mapping[str, Any], parent_ends: Callable[[], object]) -> None:
    # Ctrl-C reaches the whole terminal's group; the runner answers it and tells us by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(told["environment"])
    log = os.open(told["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    threading.Thread(target=_end_with, args=(parent_ends,), daemon=True).start()
    code = pkgutil.resolve_name(told["entry"])(told["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with(parent_ends: Callable[[], object]) -> None:
    parent_ends()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os._exit(143)


def _stages(name: str) -> EntryPoint:
    found = [point for point in entry_points(group="fusechat.stages") if point.name == name]
    if not found:
        raise ValueError(
            "the stages are not installed here (no entry point of group fusechat.stages); "
            "install them: pip install 'fusechat[stages,local]'"
        )
    return found[0]
