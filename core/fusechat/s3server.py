"""The S3 service of a machine that has none: SeaweedFS in one process, shared by all runners of a folder.

Called by the local runner and by tests. `with LocalS3(folder) as s3:` finds the folder's server or starts it;
the last user out stops it. A runner that is killed leaves it running, and the next one takes it over. Knows
nothing of artifacts. All that it writes lies under the folder; it listens on 127.0.0.1 only.

    <folder>/server.json    pid, ports, credentials (readable by its owner only)
    <folder>/start.lock     held while a server is started or stopped
    <folder>/users.lock     held shared by every user
    <folder>/data/          SeaweedFS's volumes       <folder>/server.log   what it printed
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO

from fusechat.errors import Unavailable
from fusechat.store_s3 import connect, place
from fusechat.weed import (
    are_free,
    arguments,
    find_weed,
    free_ports,
    healthy,
    remove_sockets,
    running_on,
    volumes_known,
)

BUCKET = "fuse"

MEMORY = "512MiB"
"""What the server's heap stays under. Half of it costs half as much CPU time again on an upload."""

START_SECONDS = 30.0
FREE_SECONDS = 5.0

PATIENCE_SECONDS = (0.7, 0.7, 0.7, 20.0)
"""How long each try waits for the volumes after the server answers. A volume that knocks before the master
leads knocks again 5 s later, and until then every object looks lost: another start takes 0.7 s."""


@dataclass(frozen=True)
class State:
    """One server: its process, its first port (the others follow it) and the only credentials it takes.

    `ready` is False until it has its bucket: whoever finds it so starts another.
    """

    pid: int
    port: int
    access_key: str
    secret_key: str
    ready: bool


class LocalS3:
    """The S3 service of one folder, for as long as the `with` block lasts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._users: IO[bytes] | None = None
        self._state: State | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalS3:
        """Unavailable, with one sentence, if there is no `weed` or it does not start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._starting():
            users = (self.folder / "users.lock").open("ab")
            fcntl.flock(users, fcntl.LOCK_SH)
            try:
                self._state = self._running() or self._start()
            except BaseException:
                users.close()
                raise
            self._users = users
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        users, self._users = self._users, None
        if users is None:
            return
        with self._starting(), users, suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._stop()
        if self._child and self._child.poll() is None:
            self._child.returncode = 0  # others use it still: its end is not ours to wait for, nor to warn of

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`; the same for as long as anybody uses the server."""
        assert self._state, "outside the with block"
        return f"http://127.0.0.1:{self._state.port}"

    @property
    def uri(self) -> str:
        """The store that this server is for."""
        return f"s3://{BUCKET}/"

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use the store; goes over what it has."""
        assert self._state, "outside the with block"
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self._state.access_key,
            "AWS_SECRET_ACCESS_KEY": self._state.secret_key,
            "AWS_SESSION_TOKEN": "",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def ensure(self) -> bool:
        """Start the server again, on the same port, if it does not answer; returns whether it had to."""
        if self._state and healthy(self._state.port):
            return False
        with self._starting():
            if self._users is None:  # the block has ended meanwhile: a server now would outlive it
                return False
            found = self._running()
            self._state = found or self._start()
            return found is None

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._state, "outside the with block"
        return self._state.pid

    @contextmanager
    def _starting(self) -> Iterator[None]:
        with (self.folder / "start.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _running(self) -> State | None:
        """The folder's server, if it is alive and well."""
        state = self._read()
        if state is None or not state.ready or state.pid not in running_on(self.folder / "data"):
            return None
        return state if healthy(state.port) else None

    def _start(self) -> State:
        """Start a server on the ports of the one before it, or on new ones if others have taken those."""
        binary = find_weed()
        self._stop()
        keys = secrets.token_hex(10), secrets.token_hex(20)
        state = self._read() or State(0, free_ports(), *keys, ready=False)
        try:
            for patience in PATIENCE_SECONDS:
                state = self._begun(binary, state)
                if self._wait(state, patience):
                    self._make_bucket(state)
                    state = replace(state, ready=True)
                    self._write(state)
                    return state
        except BaseException:  # Ctrl-C too
            self._stop()
            raise
        raise Unavailable(
            f"the local S3 server did not start: {self._last_words()}; see {self.folder / 'server.log'}"
        )

    def _begun(self, binary: Path, state: State) -> State:
        if not self._freed(state.port):
            state = replace(state, port=free_ports())
        self._child = self._spawn(binary, state)
        state = replace(state, pid=self._child.pid, ready=False)
        self._write(state)
        return state

    def _freed(self, port: int) -> bool:
        """Whether the ports are free, or become so: a process just killed holds its own a moment longer."""
        deadline = time.monotonic() + FREE_SECONDS
        while not are_free(port):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _spawn(self, binary: Path, state: State) -> subprocess.Popen[bytes]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        (data / "mini.options").unlink(missing_ok=True)  # it would bring an earlier start's ports back
        remove_sockets(state.port)
        log = self.folder / "server.log"
        if log.exists():
            log.replace(self.folder / "server.log.1")
        credentials = {"AWS_ACCESS_KEY_ID": state.access_key, "AWS_SECRET_ACCESS_KEY": state.secret_key}
        with log.open("wb") as out:
            return subprocess.Popen(
                [str(binary), *arguments(data, state.port)],
                env={**os.environ, **credentials, "GOMEMLIMIT": MEMORY},
                cwd=data,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the runner's Ctrl-C is not for the server
            )

    def _wait(self, state: State, patience: float) -> bool:
        """Whether the server became well, and its volumes known, before it ended or patience did."""
        assert self._child
        started = answered = time.monotonic()
        while self._child.poll() is None and time.monotonic() - started < START_SECONDS:
            if not healthy(state.port):
                answered = time.monotonic()
            elif volumes_known(state.port):
                return True
            elif time.monotonic() - answered > patience:
                break
            time.sleep(0.02)
        self._child.kill()
        self._child.wait()
        return False

    def _make_bucket(self, state: State) -> None:
        here = place(self.uri, f"http://127.0.0.1:{state.port}", "us-east-1", {})
        client = connect(here, (state.access_key, state.secret_key))
        with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=BUCKET)

    def _stop(self) -> None:
        """End every server on our data: two would spoil it. Nothing that it acknowledged is lost (tested)."""
        while pids := running_on(self.folder / "data"):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        if state := self._read():
            remove_sockets(state.port)
            if self._child and self._child.pid == state.pid:
                self._child.wait()

    def _read(self) -> State | None:
        try:
            return State(**json.loads((self.folder / "server.json").read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _write(self, state: State) -> None:
        partial = self.folder / "server.json.partial"
        partial.touch(mode=0o600)
        partial.write_text(json.dumps(asdict(state)))
        partial.replace(self.folder / "server.json")

    def _last_words(self) -> str:
        log = self.folder / "server.log"
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return " ".join(lines[-1].split())[:200] if lines else "it printed nothing"
