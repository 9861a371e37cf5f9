"""Big files to S3 and back: in parallel, in constant memory, hashed on the way.

Called by `store` only. Knows one object, one file and a client; nothing of artifacts. Memory is
`PART_BYTES * STREAMS` going up and `READ_BYTES * STREAMS` coming down, whatever the file's size.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fusechat.errors import CorruptInput, TemporaryFailure
from fusechat.store_partfile import PartFile, need, owned
from fusechat.store_s3 import Place, code_of, explained, put, refused

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, GetObjectOutputTypeDef

PART_BYTES = 8 << 20
"""Size of a part going up (SeaweedFS stores chunks of it: parts of twice the size took it a fifth longer);
a file that is no larger goes and comes in one request."""

RANGE_BYTES = 32 << 20
"""Size of a range coming down: it is never held in memory, and larger ones cost both ends less."""

MOST_PARTS = 10_000
"""S3's limit; files over PART_BYTES * MOST_PARTS go up in larger parts."""

STREAMS = max(4, min(12, 2 * (os.cpu_count() or 1)))
"""Requests of one transfer at a time: more than the cores can feed only get into each other's way."""

READ_BYTES = 1 << 20
"""What is read from a connection or a file at once."""

PAUSES = (0.2, 0.5, 1.0, 2.0, None)
"""Seconds before an answer that broke off midway is asked for again."""


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
            put(client, place, key, body)
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
        _complete(client, place, key, upload_id, parts, size)
    except BaseException:
        # What cannot be aborted now (the server is gone) gc aborts later.
        with suppress(Exception):
            client.abort_multipart_upload(Bucket=place.bucket, Key=key, UploadId=upload_id)
        raise
    return sent


def _complete(
    client: S3Client, place: Place, key: str, upload_id: str, parts: list[CompletedPartTypeDef], size: int
) -> None:
    try:
        client.complete_multipart_upload(
            Bucket=place.bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}
        )
    except client.exceptions.ClientError as error:
        # Asked again after an answer was lost, S3 knows the upload no more. Nobody else writes this key.
        if code_of(error) != "NoSuchUpload":
            raise
        if client.head_object(Bucket=place.bucket, Key=key)["ContentLength"] != size:
            raise


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
            if len(sending) < STREAMS:
                buffer = bytearray(part_bytes)
            else:
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

    A killed download of a large file goes on where it stopped. CorruptInput if the stored bytes are not those
    of `sha256`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    once = _download_large if size > PART_BYTES else _download_small
    with explained(place, f"reading {key}"):
        for _ in range(2):  # once more from the start: the fault may lie in the copy
            if once(client, place, key, size, sha256, target):
                return
    raise CorruptInput(
        f"{key} in {place.uri} is corrupt: its bytes do not have sha256 {sha256[:16]}... of its manifest; "
        "the step that makes it must run again"
    )


def _download_small(client: S3Client, place: Place, key: str, size: int, sha256: str, target: Path) -> bool:
    body = read(client, place, key, 0, size) if size else b""
    if hashlib.sha256(body).hexdigest() != sha256:
        return False
    need(target, size)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            file.write(body)
            os.fchmod(file.fileno(), 0o644)
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise
    return True


def _download_large(client: S3Client, place: Place, key: str, size: int, sha256: str, target: Path) -> bool:
    facts = {"key": key, "size": size, "sha256": sha256, "range": RANGE_BYTES}
    with owned(target, facts) as part:
        if part is None:  # another process has just done it
            return True
        need(target, size - len(part.done) * RANGE_BYTES)
        good = _fetch(client, place, key, size, part) == sha256
        part.keep() if good else part.drop()
    return good


def _fetch(client: S3Client, place: Place, key: str, size: int, part: PartFile) -> str:
    """Fetch the ranges that are not there yet; the sha256 of the whole, hashed while the rest arrives."""
    sha = hashlib.sha256()
    buffer = memoryview(bytearray(READ_BYTES))
    starts = range(0, size, RANGE_BYTES)

    def fetch(start: int) -> None:
        _range(client, place, key, start, min(size, start + RANGE_BYTES), part.descriptor)
        part.add(start)

    with _pool() as pool:
        arriving = {start: pool.submit(fetch, start) for start in starts if start not in part.done}
        for start in starts:
            if start in arriving:
                arriving[start].result()
            _hash(sha, part.descriptor, start, min(size, start + RANGE_BYTES), buffer)
    return sha.hexdigest()


def _hash(sha: Any, descriptor: int, start: int, end: int, buffer: memoryview) -> None:
    while start < end:
        got = os.preadv(descriptor, [buffer[: end - start]], start)
        sha.update(buffer[:got])
        start += got


def _range(client: S3Client, place: Place, key: str, start: int, end: int, descriptor: int) -> None:
    """One range into the file at its place, going on after a broken connection."""
    for pause in PAUSES:
        try:
            for piece in stream(client, place, key, start, end - start):
                start += os.pwrite(descriptor, piece, start)
            return
        except Cut as cut:
            if pause is None:
                raise cut.why from cut
        time.sleep(pause)


def read(client: S3Client, place: Place, key: str, start: int, length: int) -> bytes:
    """`length` bytes of an object from byte `start`."""
    return _again(lambda: b"".join(stream(client, place, key, start, length)))


def whole(client: S3Client, place: Place, key: str) -> bytes:
    """A small object; `ClientError` as it comes."""
    return _again(lambda: b"".join(_pieces(client.get_object(Bucket=place.bucket, Key=place.key(key)))))


def _again(fetch: Callable[[], bytes]) -> bytes:
    for pause in PAUSES:
        try:
            return fetch()
        except Cut as cut:
            if pause is None:
                raise cut.why from cut
        time.sleep(pause)
    raise AssertionError("the last pause is None")


def stream(client: S3Client, place: Place, key: str, start: int, length: int) -> Iterator[bytes]:
    """The bytes of one range as they arrive; CorruptInput if there are fewer, Cut if the line breaks."""
    short = f"{key} in {place.uri} has not the size that its manifest says; its step must run again"
    with refused(416, CorruptInput(short)):
        span = f"bytes={start}-{start + length - 1}"
        answer = client.get_object(Bucket=place.bucket, Key=place.key(key), Range=span)
    if answer["ContentLength"] != length:
        answer["Body"].close()
        raise CorruptInput(short)
    yield from _pieces(answer)


def _pieces(answer: GetObjectOutputTypeDef) -> Iterator[bytes]:
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError
    from urllib3.exceptions import HTTPError

    broken = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, HTTPError, ConnectionError)
    body = answer["Body"]
    try:
        while piece := body.read(READ_BYTES):
            yield piece
    except broken as error:
        raise Cut(error) from error
    finally:
        body.close()


class Cut(Exception):
    """A connection ended within an answer. One that never began was tried again by the client itself."""

    def __init__(self, why: Exception) -> None:
        self.why = why
