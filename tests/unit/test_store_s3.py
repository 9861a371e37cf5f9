"""Where a store is, and what S3's and the network's failures are called: one sentence, one exit code."""

import errno

import pytest
from botocore import exceptions as boto
from botocore.exceptions import ClientError
from fusechat.errors import (
    BadData,
    CorruptInput,
    MissingInput,
    TemporaryFailure,
    Unavailable,
    UsageError,
)
from fusechat.store import Store
from fusechat.store_s3 import explained, place
from urllib3.exceptions import ProtocolError

HERE = place("s3://bucket/some/prefix", "http://s3.test:1", None, {})


def refused(status, code):
    return ClientError(
        {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject"
    )


@pytest.mark.parametrize(
    ("uri", "bucket", "prefix"),
    [
        ("s3://fuse", "fuse", ""),
        ("s3://fuse/", "fuse", ""),
        ("s3://fuse/a", "fuse", "a"),
        ("s3://fuse/a/b/", "fuse", "a/b"),
    ],
)
def test_a_uri_names_a_bucket_and_a_prefix(uri, bucket, prefix):
    found = place(uri, None, None, {})
    assert (found.bucket, found.prefix) == (bucket, prefix)
    assert found.key("x") == (f"{prefix}/x" if prefix else "x")
    assert place(found.uri, None, None, {}) == found


@pytest.mark.parametrize(
    "uri", ["", "fuse", "file:///x", "s3:///x", "s3:fuse", "https://fuse/x", "s3://b/x?y"]
)
def test_what_is_no_store_is_refused(uri):
    with pytest.raises(UsageError, match="s3://BUCKET"):
        Store(uri)


@pytest.mark.parametrize(
    ("argument", "environ", "want"),
    [
        (None, {}, None),
        (None, {"AWS_ENDPOINT_URL": "http://a"}, "http://a"),
        (None, {"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b"}, "http://b"),
        (None, {"AWS_ENDPOINT_URL": ""}, None),
        ("http://c", {"AWS_ENDPOINT_URL_S3": "http://b"}, "http://c"),
    ],
)
def test_the_endpoint_is_the_arguments_then_the_environments(argument, environ, want):
    assert place("s3://b", argument, None, environ).endpoint == want


def test_an_endpoint_without_a_scheme_is_refused():
    with pytest.raises(UsageError, match="http://"):
        place("s3://b", "localhost:8333", None, {})


@pytest.mark.parametrize(
    ("endpoint", "local", "exposed"),
    [
        (None, False, False),
        ("https://s3.test", False, False),
        ("http://s3.test:9000", False, True),
        ("http://127.0.0.1:8333", True, False),
        ("http://localhost:8333", True, False),
        ("http://[::1]:8333", True, False),
    ],
)
def test_every_byte_is_signed_only_where_a_wire_could_change_it(endpoint, local, exposed):
    found = place("s3://b", endpoint, None, {})
    assert (found.is_local, found.is_exposed) == (local, exposed)


CASES = [
    (refused(403, "AccessDenied"), Unavailable, "403 AccessDenied", "check the credentials"),
    (refused(403, "SignatureDoesNotMatch"), Unavailable, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
    (refused(403, "403"), Unavailable, "answered 403 while", "check the credentials"),
    (refused(400, "ExpiredToken"), Unavailable, "ExpiredToken", "check the credentials"),
    (refused(404, "NoSuchBucket"), Unavailable, "bucket 'bucket' does not exist", "create it"),
    (refused(404, "NoSuchKey"), MissingInput, "reading it", "must run again"),
    (refused(409, "ConditionalRequestConflict"), TemporaryFailure, "409", "run the step again"),
    (refused(429, "SlowDown"), TemporaryFailure, "429 SlowDown", "run the step again"),
    (refused(500, "InternalError"), Unavailable, "500 InternalError", "failing"),
    (refused(503, "SlowDown"), Unavailable, "503 SlowDown", "failing"),
    (refused(301, "PermanentRedirect"), Unavailable, "301 PermanentRedirect", "settings"),
    (boto.NoCredentialsError(), Unavailable, "no S3 credentials", "set AWS_ACCESS_KEY_ID"),
    (boto.EndpointConnectionError(endpoint_url="u"), Unavailable, "cannot be reached", "AWS_ENDPOINT_URL"),
    (boto.ConnectTimeoutError(endpoint_url="u"), Unavailable, "cannot be reached", "start the S3 server"),
    (boto.ReadTimeoutError(endpoint_url="u"), TemporaryFailure, "broke", "run the step again"),
    (boto.ConnectionClosedError(endpoint_url="u"), TemporaryFailure, "broke", "run the step again"),
    (boto.ProfileNotFound(profile="p"), Unavailable, "profile (p)", "settings"),
    (ProtocolError("cut"), TemporaryFailure, "broke", "run the step again"),
    (ConnectionResetError(), TemporaryFailure, "broke", "run the step again"),
    (OSError(errno.ENOSPC, "full"), TemporaryFailure, "disk is full", "scratch"),
]


@pytest.mark.parametrize(("failure", "kind", "what", "remedy"), CASES, ids=lambda v: str(v)[:30])
def test_every_failure_is_one_sentence_with_its_place_and_its_remedy(failure, kind, what, remedy):
    with pytest.raises(kind) as caught, explained(HERE, "reading it"):
        raise failure
    said = str(caught.value)
    assert what in said
    assert remedy in said
    assert "\n" not in said
    assert caught.value.__cause__ is failure
    if "disk" not in said:
        assert "http://s3.test:1" in said or "s3://bucket" in said or "'bucket'" in said


def test_what_is_not_a_failure_of_s3_passes_through():
    for error in (ValueError("ours"), KeyError("ours"), FileNotFoundError("ours"), UsageError("ours")):
        with pytest.raises(type(error), match="ours"), explained(HERE, "reading it"):
            raise error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError, 64),
        (BadData, 65),
        (MissingInput, 66),
        (CorruptInput, 66),
        (Unavailable, 69),
        (TemporaryFailure, 75),
    ],
)
def test_every_error_has_its_exit_code(error, code):
    assert error("x").exit_code == code


def test_bad_data_is_a_value_error_too():
    assert issubclass(BadData, ValueError)
