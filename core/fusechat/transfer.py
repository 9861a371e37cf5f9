"""Big files to S3 and back: in parallel, in constant memory, hashed on the way.

Called by `store` only. Knows one object, one file and a client; nothing of artifacts. Memory is
`PART_BYTES * STREAMS` going up and a few hundred KiB per stream coming down, whatever the file's size.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fusechat.errors import CorruptInput, TemporaryFailure
from fusechat.store_s3 import Place, disk_full, explained, refused

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 16 << 20
"""Size of a part going up and of a range coming down."""

MOST_PARTS = 10_000
"""S3's limit; files over PART_BYTES * MOST_PARTS go up in larger parts."""

STREAMS = 8
"""Requests of one transfer at a time."""

READ_BYTES = 1 << 20
"""What is read from a connection or a file at once."""

TRIES = 5
"""Times a range whose connection breaks midway is asked for."""


@dataclass(frozen=True)
class Sent:
    """What an upload was: size in bytes and sha256 in hex of what was read and sent."""

    size: int
    sha256: str


def upload(client: S3Client, place: Place, key: str, path: Path) -> Sent:
    """Send a file to `key` (relative to the prefix). On any failure nothing is left at S3."""
    with path.open("rb", buffering=0) as file, explained(place, f"writing {key}"):
        size = os.fstat(file.fileno()).st_size
        if size <= PART_BYTES:
            body = file.read(size + 1)
            client.put_object(Bucket=place.bucket, Key=place.key(key), Body=body)
            sent = Sent(len(body), hashlib.sha256(body).hexdigest())
        else:
            sent = _multipart(client, place, place.key(key), file, size)
    if sent.size != size:
        raise TemporaryFailure(f"{path.name} changed while it was being written to {place.uri}; run again")
    return sent


def _multipart(client: S3Client, place: Place, key: str, file: IO[bytes], size: int) -> Sent:
    upload_id = client.create_multipart_upload(Bucket=place.bucket, Key=key)["UploadId"]
    try:
        parts, sent = _parts(client, place, key, upload_id, file, size)
        client.complete_multipart_upload(
            Bucket=place.bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}
        )
    except BaseException:
        # What cannot be aborted now (the server is gone) gc aborts later.
        with suppress(Exception):
            client.abort_multipart_upload(Bucket=place.bucket, Key=key, UploadId=upload_id)
        raise
    return sent


def _parts(
    client: S3Client, place: Place, key: str, upload_id: str, file: IO[bytes], size: int
) -> tuple[list[CompletedPartTypeDef], Sent]:
    """Read, send and hash at the same time; a buffer is filled again when its part has arrived."""
    part_bytes = max(PART_BYTES, -(-size // MOST_PARTS))
    sha, total, number = hashlib.sha256(), 0, 0
    done: list[CompletedPartTypeDef] = []
    sending: deque[tuple[Future[CompletedPartTypeDef], bytearray]] = deque()

    def send(number: int, body: bytearray) -> CompletedPartTypeDef:
        # A bytearray goes to the socket as it is; bytes would be a copy of every part.
        answer = client.upload_part(
            Bucket=place.bucket,
            Key=key,
            UploadId=upload_id,
            PartNumber=number,
            Body=body,  # type: ignore[arg-type]
        )
        return {"ETag": answer["ETag"], "PartNumber": number}

    with _pool() as pool:
        while total < size:
            buffer = bytearray(part_bytes)
            if len(sending) >= STREAMS:
                oldest, buffer = sending.popleft()
                done.append(oldest.result())
            got = _fill(file, buffer)
            if got < len(buffer):
                buffer = buffer[:got]
            if not got:
                break
            number, total = number + 1, total + got
            sending.append((pool.submit(send, number, buffer), buffer))
            sha.update(buffer)
        done += [future.result() for future, _ in sending]
    return done, Sent(total, sha.hexdigest())


def _fill(file: IO[bytes], buffer: bytearray) -> int:
    view, filled = memoryview(buffer), 0
    while filled < len(buffer) and (got := file.readinto(view[filled:])):  # type: ignore[attr-defined]
        filled += got
    return filled


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads of one transfer; on an error what has not begun never does."""
    pool = ThreadPoolExecutor(STREAMS, thread_name_prefix="transfer")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def download(client: S3Client, place: Place, key: str, size: int, sha256: str, target: Path) -> None:
    """Fetch `key` (relative to the prefix) to `target`, verified, renamed into place when whole.

    A killed download goes on where it stopped: `<target>.part` holds the bytes, `<target>.part.done` which.
    CorruptInput if the stored bytes are not those of `sha256`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with explained(place, f"reading {key}"), _own(target, size) as part:
        if part is None:
            return
        for _ in range(2):  # once more from the start: the fault may lie in the copy
            if _fetch(client, place, key, size, sha256, target, part) == sha256:
                _finish(target)
                return
            part.truncate(0)
            _journal(target).unlink(missing_ok=True)
    _part(target).unlink(missing_ok=True)
    raise CorruptInput(
        f"{key} in {place.uri} is corrupt: its bytes do not have sha256 {sha256[:16]}... of its manifest; "
        "the step that makes it must run again"
    )


def _fetch(
    client: S3Client, place: Place, key: str, size: int, sha256: str, target: Path, part: IO[bytes]
) -> str:
    """Fetch the ranges that are not there yet; the sha256 of the whole, hashed while the rest arrives."""
    if os.fstat(part.fileno()).st_size != size:
        _journal(target).unlink(missing_ok=True)
    journal = Journal(_journal(target), {"key": key, "size": size, "sha256": sha256, "range": PART_BYTES})
    count = -(-size // PART_BYTES)
    missing = [index for index in range(count) if index not in journal.done]
    _need(target, sum(min(PART_BYTES, size - i * PART_BYTES) for i in missing))
    part.truncate(size)
    sha = hashlib.sha256()
    buffer = memoryview(bytearray(READ_BYTES))

    def fetch(index: int) -> None:
        start = index * PART_BYTES
        _range(client, place, key, start, min(PART_BYTES, size - start), part.fileno())
        journal.add(index)

    with _pool() as pool:
        arriving = {index: pool.submit(fetch, index) for index in missing}
        for index in range(count):
            if index in arriving:
                arriving[index].result()
            _hash(sha, part.fileno(), index * PART_BYTES, min(size, (index + 1) * PART_BYTES), buffer)
    return sha.hexdigest()


def _hash(sha: Any, descriptor: int, start: int, end: int, buffer: memoryview) -> None:
    while start < end:
        got = os.preadv(descriptor, [buffer[: end - start]], start)
        sha.update(buffer[:got])
        start += got


def _range(client: S3Client, place: Place, key: str, start: int, length: int, descriptor: int) -> None:
    """One range into the file at its place, going on after a broken connection."""
    end, failures = start + length, 0
    while start < end:
        before = start
        try:
            for piece in stream(client, place, key, start, end - start):
                start += os.pwrite(descriptor, piece, start)
        except _broken():
            failures += 1
            if failures >= TRIES:
                raise
            time.sleep(0.1 * 2**failures)
            continue
        if start == before:
            raise CorruptInput(_short(place, key))


def _short(place: Place, key: str) -> str:
    return f"{key} in {place.uri} is shorter than its manifest says; the step that makes it must run again"


def stream(client: S3Client, place: Place, key: str, start: int, length: int) -> Iterator[bytes]:
    """The bytes of one range as they arrive; CorruptInput if the object ends before it."""
    span = f"bytes={start}-{start + length - 1}"
    with refused(416, CorruptInput(_short(place, key))):
        body = client.get_object(Bucket=place.bucket, Key=place.key(key), Range=span)["Body"]
    try:
        while piece := body.read(READ_BYTES):
            yield piece
    finally:
        body.close()


def read(client: S3Client, place: Place, key: str, start: int, length: int) -> bytes:
    """`length` bytes of an object from byte `start`."""
    return _again(lambda: b"".join(stream(client, place, key, start, length)))


def whole(client: S3Client, place: Place, key: str) -> bytes:
    """A small object; `ClientError` as it comes."""
    return _again(lambda: client.get_object(Bucket=place.bucket, Key=place.key(key))["Body"].read())


def _again(fetch: Callable[[], bytes]) -> bytes:
    for failures in range(1, TRIES):
        try:
            return fetch()
        except _broken():
            time.sleep(0.1 * 2**failures)
    return fetch()


def _broken() -> tuple[type[Exception], ...]:
    """What a connection that ends midway raises; a request that never got an answer was retried already."""
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError
    from urllib3.exceptions import HTTPError

    return IncompleteReadError, ReadTimeoutError, ResponseStreamingError, HTTPError, ConnectionError


class Journal:
    """Which ranges of a download are in its file: a line of facts, then a line per finished range."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        head = json.dumps(facts, sort_keys=True)
        lines = path.read_text().split("\n") if path.exists() else []
        whole = lines[1:-1] if lines[:1] == [head] else []
        self.done = {int(line) for line in whole if line.isdigit()}
        self._path, self._lock = path, threading.Lock()
        path.write_text("".join(f"{line}\n" for line in [head, *sorted(self.done)]))

    def add(self, index: int) -> None:
        with self._lock, self._path.open("a") as file:
            file.write(f"{index}\n")


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _journal(target: Path) -> Path:
    return target.with_name(target.name + ".part.done")


@contextmanager
def _own(target: Path, size: int) -> Iterator[IO[bytes] | None]:
    """The part file, ours alone; None if another process finished the same download while we waited."""
    while True:
        # Not mode "a": with O_APPEND, Linux's pwrite ignores the offset.
        with open(os.open(_part(target), os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _still_there(file, _part(target)):
                yield file
                return
        if target.exists() and target.stat().st_size == size:
            yield None
            return


def _still_there(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _need(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise disk_full(target, needed, free)


def _finish(target: Path) -> None:
    _part(target).replace(target)
    _journal(target).unlink(missing_ok=True)
