"""The processes of one fusion on one machine: started, listened to, stopped together.

`run_ranks` is called by fuse in entry's process, which trains nothing itself then; `main` is each rank's
(`python -m fusechat_stages.training.ranks`). Not torchrun: it turns a worker's exit 65 into 1 and kills a
saving worker after 30 s. Knows processes and signals; the loop does the work.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusechat.errors import (
    BadData,
    FusechatError,
    MissingInput,
    TemporaryFailure,
    Unavailable,
    UsageError,
)

from fusechat_stages.artifacts import Stopped
from fusechat_stages.training.job import Host, Job, World

ERRORS = {e.exit_code: e for e in (UsageError, BadData, MissingInput, Unavailable, TemporaryFailure)}
FOLLOW_SECONDS = 20.0
"""How long the other ranks get to end by themselves once one has failed: they lose their peer and say so."""
FAULT, STOPPED = 70, 143


def run_ranks(job: Job, host: Host, nodes: int = 1, node: int = 0) -> dict[str, Any]:
    """Run this machine's ranks to their end; the leader's result ({} on a machine that has not the leader).

    Raises what the first failing rank raised: FusechatError by its exit code, Stopped, RuntimeError for a
    fault, SystemExit with its code where it said nothing (a signal: 128 + its number).
    """
    job.scratch.mkdir(parents=True, exist_ok=True)
    (job.scratch / "rendezvous").unlink(missing_ok=True)
    count = job.means.processes
    crew = [_Rank.start(job, World(node * count + i, nodes * count, i, count)) for i in range(count)]
    try:
        _watch(crew, host)
    finally:
        for rank in crew:
            rank.end()
    return _outcome(crew)


@dataclass
class _Rank:
    """One rank's process and what it has said over its pipe."""

    process: subprocess.Popen[bytes]
    pipe: int
    buffer: bytes = b""
    said: dict[str, Any] = field(default_factory=dict)
    ended: float = 0.0

    @classmethod
    def start(cls, job: Job, world: World) -> _Rank:
        reading, writing = os.pipe()
        path = job.scratch / f"job-{world.rank}.json"
        path.write_text(json.dumps({"job": job.text(), "world": vars(world)}))
        command = [
            sys.executable,
            "-m",
            "fusechat_stages.training.ranks",
            str(path),
            str(writing),
            str(os.getpid()),
        ]
        process = subprocess.Popen(command, pass_fds=[writing], env=_environment(world))
        os.close(writing)
        return cls(process, reading)

    def read(self, host: Host) -> bool:
        """Take what the pipe has; False at its end."""
        chunk = os.read(self.pipe, 1 << 16)
        *lines, self.buffer = (self.buffer + chunk).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "progress" in told:
                host.progress(*told["progress"], **told["facts"])
            else:
                self.said |= told
        return bool(chunk)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.pipe)


def _environment(world: World) -> Mapping[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // world.local_size)), **os.environ}


def _watch(crew: list[_Rank], host: Host) -> None:
    """Relay progress and the wish to stop until every rank has ended, or one failed and the rest had time."""
    told_to_stop = False
    with selectors.DefaultSelector() as selector:
        for rank in crew:
            selector.register(rank.pipe, selectors.EVENT_READ, rank)
        while any(rank.process.poll() is None for rank in crew) or selector.get_map():
            for key, _ in selector.select(timeout=0.1) if selector.get_map() else ():
                if not key.data.read(host):
                    selector.unregister(key.fd)
            if host.stopping and not told_to_stop:
                told_to_stop = True
                for rank in crew:
                    rank.process.terminate()
            if _overdue(crew):
                return


def _overdue(crew: list[_Rank]) -> bool:
    """Whether a rank failed long enough ago for the others to have followed. Notes when each one ended."""
    now = time.monotonic()
    for rank in crew:
        if rank.process.poll() is not None and not rank.ended:
            rank.ended = now
    failed = [rank.ended for rank in crew if rank.ended and rank.process.returncode != 0]
    return bool(failed) and now - min(failed) > FOLLOW_SECONDS


def _outcome(crew: list[_Rank]) -> dict[str, Any]:
    """The result, or the failure that explains the others: one with a sentence and a code of its own first,
    for the peers of a failed rank only report that they lost it."""
    failed = [rank for rank in crew if rank.process.returncode != 0]
    if not failed:
        return next((rank.said["result"] for rank in crew if "result" in rank.said), {})

    def weight(rank: _Rank) -> tuple[int, float]:
        code = rank.process.returncode
        return (0 if code in ERRORS else 1 if code < 0 else 2 if code == STOPPED else 3, rank.ended)

    first = min(failed, key=weight)
    code, sentence = first.process.returncode, first.said.get("error", "")
    if code in ERRORS:
        raise ERRORS[code](sentence)
    if code == STOPPED:
        raise Stopped(sentence)
    if sentence:
        raise RuntimeError(sentence)
    raise SystemExit(128 - code if code < 0 else code)


class _Pipe:
    """The host as a rank sees it: words go to the parent, SIGTERM comes from it."""

    def __init__(self, pipe: int, leads: bool) -> None:
        self._pipe, self._leads, self._stop = pipe, leads, threading.Event()
        self._said = 0.0
        self._checkpoint: int | None = None
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def progress(self, done: float, total: float, unit: str, **facts: Any) -> None:
        now = time.monotonic()
        saved = facts.get("checkpointStep")
        if self._leads and (now - self._said > 0.1 or done >= total or saved != self._checkpoint):
            self._said, self._checkpoint = now, saved
            self.say({"progress": [done, total, unit], "facts": facts})

    def say(self, words: Mapping[str, Any]) -> None:
        os.write(self._pipe, json.dumps(words).encode() + b"\n")


def main(arguments: list[str]) -> int:
    """One rank: `JOB.json PIPE PARENT`. Exit codes as entry's."""
    path, pipe, parent = arguments
    _die_with(int(parent))
    told = json.loads(Path(path).read_text())
    world, job = World(**told["world"]), Job.parse(told["job"])
    host = _Pipe(int(pipe), world.leads)
    try:
        host.say(
            {"result": _work(job, world, host)} if world.leads else {"done": _work(job, world, host) != {}}
        )
        return 0
    except BaseException as error:
        code = _code(error)
        if code == FAULT:
            traceback.print_exc()
        host.say(
            {"error": f"{error}" if code != FAULT else f"rank {world.rank}: {type(error).__name__}: {error}"}
        )
        # Peers may be in a collective that will never end; an orderly exit would wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _work(job: Job, world: World, host: Host) -> dict[str, Any]:
    from fusechat_stages.training.loop import train
    from fusechat_stages.training.sharding import process_group

    with process_group(job, world):
        return train(job, world, host)


def _code(error: BaseException) -> int:
    if isinstance(error, FusechatError):
        return error.exit_code
    if isinstance(error, Stopped):
        return STOPPED
    return BadData.exit_code if isinstance(error, ValueError) else FAULT


def _die_with(parent: int) -> None:
    """A rank must not outlive the process that speaks for it (Linux only; elsewhere its pipe breaks)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
