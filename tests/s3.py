"""A real S3 service for tests: SeaweedFS, one for all workers of a test session.

`from tests.s3 import start_s3`, or the fixtures `s3` and `store` that tests/pipeline has. Also the edge of
the world where a real server does not go: one that answers what a test tells it to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fusechat.s3server import LocalS3
from fusechat.store import FileEntry, Manifest, Store

ADDRESS = "extract/" + "a" * 64


@contextmanager
def start_s3(folder: Path) -> Iterator[LocalS3]:
    """The folder's server, and this process's environment set so that `Store(s3.uri)` reaches it."""
    with LocalS3(folder) as s3, pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment().items():
            patch.setenv(name, value)
        yield s3


def an_artifact(*files: FileEntry, attempt: str = "one", address: str = ADDRESS, **facts: object) -> Manifest:
    """A manifest with plausible facts."""
    made = Manifest(
        address=address,
        stage=address.split("/")[0],
        stage_version=1,
        profile="Corrected",
        params={"topK": 10},
        inputs={},
        files=files,
        metrics={"rows": 3, "share": 0.5},
        deterministic=True,
        libraries={"python": "3"},
        attempt=attempt,
        created="2026-01-01T00:00:00Z",
        host={"cpus": 2},
    )
    return replace(made, **facts)


def put(
    store: Store, attempt: str, name: str, body: bytes, folder: Path, address: str = ADDRESS
) -> FileEntry:
    """Uploads `body` as one file of an attempt."""
    path = folder / f"{attempt}-{name.replace('/', '_')}"
    path.write_bytes(body)
    return store.upload(address, attempt, name, path)


@dataclass(frozen=True)
class Asked:
    """One request that a server got."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What a server says; with `cut`, only so many bytes of the body before the connection ends."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None


HANG_UP = Answer(cut=-1)
"""No answer at all: the connection ends."""


@contextmanager
def answering(answer: Callable[[Asked], Answer]) -> Iterator[tuple[str, list[Asked]]]:
    """An HTTP server that answers as told: its endpoint, and the list of what it was asked."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            if self.headers.get("Expect"):
                self.send_response_only(100)
                self.end_headers()
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(Asked(self.command, self.path, dict(self.headers), body))
            said = answer(asked[-1])
            if said is HANG_UP:
                return
            self.send_response(said.status)
            for name, value in {"Content-Length": str(len(said.body)), **said.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said.body[: said.cut])

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def refusal(status: int, code: str) -> Answer:
    """S3's answer of that status and code."""
    said = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told to</Message></Error>"
    return Answer(status, said.encode(), {"Content-Type": "application/xml"})
