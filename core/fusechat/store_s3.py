"""The S3 client as this project uses it, and what its failures mean in one sentence.

Used by `store` and `transfer` only; with them the sole importer of boto3. Knows bucket, endpoint and
credentials; nothing of artifacts.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fusechat.errors import FusechatError, MissingInput, TemporaryFailure, Unavailable, UsageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ATTEMPTS = 6
"""Tries of one request, their pauses doubling: 15 s on average, enough for a server's restart."""

POOL = 32
"""Connections of one client that are kept open."""

CONNECT_SECONDS, READ_SECONDS = 10, 60
"""Silence on a connection after which a request counts as failed."""

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
DENIED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed"}
EXPIRED = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken"}


@dataclass(frozen=True)
class Place:
    """Where a store is. `endpoint` is None for AWS itself; `prefix` has no slash at either end."""

    bucket: str
    prefix: str
    endpoint: str | None
    region: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}/"

    @property
    def server(self) -> str:
        return self.endpoint or "AWS S3"

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        return urlsplit(self.endpoint or "").hostname in LOOPBACK

    @property
    def is_exposed(self) -> bool:
        """Whether bytes go over a wire with nothing but S3's signature to show that one was changed."""
        return (self.endpoint or "").startswith("http://") and not self.is_local

    def key(self, relative: str) -> str:
        """The full key of one relative to the prefix."""
        return f"{self.prefix}/{relative}" if self.prefix else relative


def place(uri: str, endpoint: str | None, region: str | None, environ: Mapping[str, str]) -> Place:
    """The store that a URI names, the environment filling in what is not given; UsageError if it is none."""
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"a store is s3://BUCKET or s3://BUCKET/PREFIX, got {uri!r}; correct its URI")
    found = endpoint or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or None
    if found and not found.startswith(("http://", "https://")):
        raise UsageError(f"an S3 endpoint starts with http:// or https://, got {found!r}; correct it")
    where = region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return Place(parts.netloc, parts.path.strip("/"), found, where)


def connect(
    place: Place, credentials: tuple[str, str] | None = None, attempts: int | None = None
) -> S3Client:
    """A client of that place; without (key id, secret) boto3 finds its credentials."""
    import boto3
    import botocore.session
    from botocore.config import Config

    tries = int(os.environ.get("AWS_MAX_ATTEMPTS", ATTEMPTS))
    config = Config(
        # "standard" gives all requests of a client one budget: an outage during a large transfer spends it,
        # and later failures are not tried again at all.
        retries={"mode": "legacy", "total_max_attempts": attempts or tries},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=POOL,
        # Many S3 services know no trailing checksums; our own sha256 covers every byte.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={
            "addressing_style": "path" if place.endpoint else "auto",
            "payload_signing_enabled": place.is_exposed,
        },
        proxies={} if place.is_local else None,  # a proxy does not lead back to this machine
    )
    session = botocore.session.Session()
    session.register_component("data_loader", _loader())
    key_id, secret = credentials or (None, None)
    with explained(place, "connecting"):
        return boto3.session.Session(key_id, secret, botocore_session=session).client(
            "s3", endpoint_url=place.endpoint, region_name=place.region, config=config
        )


def put(client: S3Client, place: Place, key: str, body: bytes, **conditions: Any) -> None:
    """One object in one request, with its MD5.

    Without it SeaweedFS takes a request that breaks off before its body for an empty object, over what the
    same request wrote when it was tried again (both tried).
    """
    md5 = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    client.put_object(Bucket=place.bucket, Key=place.key(key), Body=body, ContentMD5=md5, **conditions)


def remove(client: S3Client, place: Place, keys: Sequence[str]) -> None:
    """Delete up to a thousand objects; absent ones are no error."""
    with explained(place, f"deleting {keys[0]}"):
        answer = client.delete_objects(
            Bucket=place.bucket,
            Delete={"Objects": [{"Key": place.key(key)} for key in keys], "Quiet": True},
        )
    if failed := answer.get("Errors"):
        first = failed[0]
        raise Unavailable(
            f"{len(failed)} objects of {place.uri} could not be deleted, the first {first.get('Key')} "
            f"({first.get('Code')}); check that the credentials may delete"
        )


def etag(client: S3Client, place: Place, key: str) -> str | None:
    """What S3 calls the object's present content, None if there is no object."""
    with explained(place, f"looking for {key}"):
        try:
            return client.head_object(Bucket=place.bucket, Key=place.key(key))["ETag"]
        except client.exceptions.ClientError as error:
            if is_absent(error):
                return None
            raise


def remove_if_same(client: S3Client, place: Place, key: str, tag: str) -> bool:
    """Delete an object if its content is still that of the tag; whether it was."""
    with explained(place, f"deleting {key}"):
        try:
            client.delete_object(Bucket=place.bucket, Key=place.key(key), IfMatch=tag)
        except client.exceptions.ClientError as error:
            if status_of(error) in (404, 409, 412):
                return False
            if status_of(error) != 501:
                raise
            # A service without conditional deletion: what remains is a race of milliseconds.
            client.delete_object(Bucket=place.bucket, Key=place.key(key))
    return True


@lru_cache(maxsize=1)
def _loader() -> Any:
    """The service descriptions, read once per process: they are most of a client's start-up time."""
    from botocore.loaders import create_loader

    return create_loader()


@contextmanager
def explained(place: Place, doing: str) -> Iterator[None]:
    """Turns every failure of S3, the network or the disk within the block into ours, with one sentence."""
    try:
        yield
    except FusechatError:
        raise
    except Exception as error:
        ours = _meaning(error, place, doing)
        if ours is None:
            raise
        raise ours from error


@contextmanager
def refused(status: int, meaning: FusechatError) -> Iterator[None]:
    """Raises `meaning` where S3 answers with that status."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if status_of(error) != status:
            raise
        raise meaning from error


def code_of(error: BaseException) -> str:
    """S3's name for the failure (`NoSuchKey`, `PreconditionFailed`, ...), else the status, else ''."""
    response: Mapping[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code") or status_of(error) or "")


def status_of(error: BaseException) -> int:
    """The HTTP status of a failed request, 0 if there was no answer."""
    response: Mapping[str, Any] = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_absent(error: BaseException) -> bool:
    """Whether the failure says that a key (not the bucket) does not exist."""
    return status_of(error) == 404 and code_of(error) != "NoSuchBucket"


def disk_full(path: Path, needed: int, free: int) -> TemporaryFailure:
    """The error for a disk that cannot take `needed` more bytes."""
    return TemporaryFailure(
        f"the disk of {path.parent} is full: {needed >> 20} MiB more are needed, {free >> 20} MiB are free; "
        "free some space or give the step more scratch, and run it again"
    )


def _meaning(error: Exception, place: Place, doing: str) -> FusechatError | None:
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    if isinstance(error, ClientError):
        return _refusal(error, place, doing)
    if isinstance(error, BotoCoreError | HTTPError):
        return _silence(error, place, doing)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TemporaryFailure(
            f"the disk is full while {doing}; free some space or give the step more scratch, and run it again"
        )
    if isinstance(error, ConnectionError | TimeoutError):
        return _silence(error, place, doing)
    return None


def _refusal(error: Exception, place: Place, doing: str) -> FusechatError:
    """What an answer with an error status means."""
    code, status = code_of(error), status_of(error)
    said = f"{place.server} answered {status} {code}".removesuffix(f" {status}")
    if code == "NoSuchBucket":
        return Unavailable(
            f"bucket {place.bucket!r} does not exist at {place.server}; create it or correct the store's URI"
        )
    if status == 403 or code in DENIED | EXPIRED:
        return Unavailable(
            f"{said} while {doing} in {place.uri}: check the credentials (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY), and that they may list, read, write and delete there"
        )
    if status == 404:
        return MissingInput(
            f"{said} while {doing} in {place.uri}: the object is gone; the step that makes it must run again"
        )
    if status in (408, 409, 429):
        return TemporaryFailure(f"{said} while {doing} in {place.uri}; run the step again")
    if status >= 500:
        return Unavailable(
            f"{said} while {doing} in {place.uri}, also when tried again: "
            "the S3 service is failing; look at its log and the room on its disk, and run the step again"
        )
    return Unavailable(f"{said} while {doing} in {place.uri}: {_message(error)}; check the store's settings")


def _silence(error: Exception, place: Place, doing: str) -> FusechatError:
    """What a request without a (whole) answer means."""
    from botocore import exceptions as b

    if isinstance(error, b.NoCredentialsError | b.PartialCredentialsError | b.CredentialRetrievalError):
        return Unavailable(
            f"there are no S3 credentials for {place.uri}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or give the Pod a service account that has them"
        )
    if isinstance(error, b.EndpointConnectionError | b.ConnectTimeoutError | b.ProxyConnectionError):
        return Unavailable(
            f"{place.server} cannot be reached while {doing} in {place.uri}: "
            "start the S3 server, or correct AWS_ENDPOINT_URL"
        )
    if isinstance(error, b.HTTPClientError | b.IncompleteReadError) or not isinstance(error, b.BotoCoreError):
        why = type(error).__name__
        return TemporaryFailure(
            f"the connection to {place.server} broke while {doing} in {place.uri} ({why}); run the step again"
        )
    return Unavailable(f"{place.uri} cannot be used: {_one_line(error)}; check the store's settings")


def _message(error: Exception) -> str:
    response: Mapping[str, Any] = getattr(error, "response", None) or {}
    return _one_line(response.get("Error", {}).get("Message") or error)


def _one_line(value: object) -> str:
    return " ".join(str(value).split()).rstrip(".")[:300]
