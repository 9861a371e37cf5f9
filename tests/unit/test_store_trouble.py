"""The store against a server that fails: what is tried again, what is told, and that no answer is misread."""

import hashlib
import re
import socket
from dataclasses import replace

import pytest
from fusechat import transfer
from fusechat.errors import MissingInput, TemporaryFailure, Unavailable
from fusechat.store import FileEntry, Part, Store
from fusechat.store_manifest import manifest_json, part_json, text

from tests.s3 import ADDRESS, HANG_UP, Answer, an_artifact, answering, refusal

OTHERS = text(manifest_json(an_artifact(attempt="other")))


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "K",
        "AWS_SECRET_ACCESS_KEY": "S",
        "AWS_SESSION_TOKEN": "",
        "AWS_MAX_ATTEMPTS": "2",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("time.sleep", lambda _: None)


class Bucket:
    """The least of an S3 server: whole objects, created once; `trouble` says what goes wrong."""

    def __init__(self, trouble=lambda asked, times: None):
        self.objects, self.trouble, self.times = {}, trouble, {}

    def __call__(self, asked):
        key = asked.path.split("?")[0].removeprefix("/fuse/")
        times = self.times[asked.method, key] = self.times.get((asked.method, key), 0) + 1
        said = self._do(asked, key)
        return self.trouble(asked, times) or said

    def _do(self, asked, key):
        if asked.method == "PUT":
            if "If-None-Match" in asked.headers and key in self.objects:
                return refusal(412, "PreconditionFailed")
            self.objects[key] = asked.body
            return Answer(headers={"ETag": '"1"'})
        if key not in self.objects:
            return refusal(404, "NoSuchKey") if asked.method == "GET" else Answer(404)
        body = self.objects[key]
        if span := re.match(r"bytes=(\d+)-(\d+)", asked.headers.get("Range", "")):
            return Answer(206, body[int(span[1]) : int(span[2]) + 1])
        return Answer(200, body)


def serving(trouble=lambda asked, times: None):
    return answering(Bucket(trouble))


@pytest.mark.parametrize(
    ("status", "code"), [(500, "InternalError"), (502, ""), (503, "SlowDown"), (504, "")]
)
def test_a_server_that_fails_is_asked_so_often_and_no_more(status, code):
    with answering(lambda _: refusal(status, code)) as (endpoint, asked):
        store = Store("s3://fuse", endpoint=endpoint)
        for use in (
            lambda: store.manifest(ADDRESS),
            lambda: list(store.keys("")),
            lambda: store.put_bytes("k", b""),
        ):
            asked.clear()
            with pytest.raises(Unavailable, match=f"answered {status}.*: the S3 service is failing"):
                use()
            assert len(asked) == 2


def test_a_server_that_fails_once_is_asked_again():
    with serving(lambda _, times: refusal(503, "SlowDown") if times == 1 else None) as (endpoint, _):
        store = Store("s3://fuse", endpoint=endpoint)
        store.put_bytes("k", b"1")
        assert store.get_bytes("k") == b"1"


def test_no_server_is_one_sentence_that_names_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"{endpoint} cannot be reached .* correct AWS_ENDPOINT_URL"):
            Store("s3://fuse", endpoint=endpoint).manifest(ADDRESS)


# Creating once


@pytest.mark.parametrize(
    "answer", [HANG_UP, refusal(500, "InternalError"), refusal(412, "PreconditionFailed")]
)
def test_our_own_manifest_is_recognised_when_the_answer_to_writing_it_was_lost(answer):
    with serving(lambda asked, _: answer if asked.method == "PUT" else None) as (endpoint, asked):
        mine = an_artifact(attempt="mine")
        assert Store("s3://fuse", endpoint=endpoint).publish(mine) == mine
        assert not [each for each in asked if each.method in ("DELETE", "POST")]


def test_our_own_part_is_recognised_too():
    with serving(lambda asked, times: HANG_UP if asked.method == "PUT" and times == 1 else None) as (
        endpoint,
        _,
    ):
        part = Part(0, "mine", (FileEntry("x", "x", 1, "0" * 64),), {})
        assert Store("s3://fuse", endpoint=endpoint).publish_part(ADDRESS, part) == part


def test_another_ones_manifest_is_not_taken_for_ours_when_the_answer_was_lost():
    bucket = Bucket(lambda asked, _: HANG_UP if asked.method == "PUT" else None)
    bucket.objects[f"{ADDRESS}/manifest.json"] = OTHERS
    bucket.objects[f"{ADDRESS}/"] = b""
    with answering(bucket) as (endpoint, _):
        assert not Store("s3://fuse", endpoint=endpoint).put_json(
            f"{ADDRESS}/manifest.json", manifest_json(an_artifact(attempt="mine")), create_only=True
        )
    assert bucket.objects[f"{ADDRESS}/manifest.json"] == OTHERS


def test_a_write_that_failed_and_left_nothing_is_a_failure():
    with (
        answering(lambda asked: HANG_UP if asked.method == "PUT" else refusal(404, "NoSuchKey")) as (
            endpoint,
            _,
        ),
        pytest.raises(TemporaryFailure, match="broke while writing"),
    ):
        Store("s3://fuse", endpoint=endpoint).publish(an_artifact())


def test_when_looking_fails_too_the_first_failure_is_told():
    def failing(asked):
        return refusal(500, "Writing") if asked.method == "PUT" else refusal(503, "Looking")

    with answering(failing) as (endpoint, _), pytest.raises(Unavailable, match="500 Writing"):
        Store("s3://fuse", endpoint=endpoint).publish(an_artifact())


def test_a_conflict_with_a_request_under_way_is_tried_again():
    conflict = refusal(409, "ConditionalRequestConflict")

    def busy(asked):
        if asked.method == "GET":
            return refusal(404, "NoSuchKey")
        return conflict if len([a for a in seen if a.method == "PUT"]) < 3 else Answer()

    with answering(busy) as (endpoint, seen):
        assert Store("s3://fuse", endpoint=endpoint).put_json("k", 1, create_only=True)

    with (
        answering(lambda asked: conflict if asked.method == "PUT" else refusal(404, "NoSuchKey")) as (
            endpoint,
            asked,
        ),
        pytest.raises(TemporaryFailure, match="409 ConditionalRequestConflict"),
    ):
        Store("s3://fuse", endpoint=endpoint).put_json("k", 1, create_only=True)
    assert len([a for a in asked if a.method == "PUT"]) == 4


def test_a_refused_write_is_not_looked_after():
    with answering(lambda _: refusal(403, "AccessDenied")) as (endpoint, asked):
        with pytest.raises(Unavailable, match="403 AccessDenied"):
            Store("s3://fuse", endpoint=endpoint).publish(an_artifact())
        assert [each.method for each in asked] == ["PUT"]


# Transfers


def entry_of(body):
    return FileEntry("x", "x", len(body), hashlib.sha256(body).hexdigest())


@pytest.mark.parametrize("size", [1000, 40_000], ids=["small", "large"])
def test_an_answer_that_breaks_off_is_gone_on_with(tmp_path, monkeypatch, size):
    monkeypatch.setattr(transfer, "PART_BYTES", 10_000)
    monkeypatch.setattr(transfer, "RANGE_BYTES", 10_000)
    body = bytes(range(250)) * (size // 250)
    bucket, ends = Bucket(), []
    bucket.objects["x"] = body

    def cut(asked):
        said = bucket(asked)
        ends.append(asked.headers["Range"].split("-")[1])
        return replace(said, cut=len(said.body) // 3) if ends.count(ends[-1]) < 3 else said

    with answering(cut) as (endpoint, _):
        Store("s3://fuse", endpoint=endpoint).download(entry_of(body), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == body
    assert set(map(ends.count, ends)) == {3}


def test_an_answer_that_always_breaks_off_is_a_temporary_failure(tmp_path):
    body = bytes(1000)
    with answering(lambda _: Answer(206, body, cut=300)) as (endpoint, asked):
        store = Store("s3://fuse", endpoint=endpoint)
        for use in (
            lambda: store.download(entry_of(body), tmp_path / "back"),
            lambda: store.read(entry_of(body), 0, 1000),
            lambda: store.get_bytes("x"),
        ):
            asked.clear()
            with pytest.raises(TemporaryFailure, match="broke while reading x"):
                use()
            assert len(asked) == len(transfer.PAUSES)
    assert list(tmp_path.iterdir()) == []


def begun(asked):
    """A multipart upload's answers until its parts are there."""
    if asked.method == "POST" and asked.path.endswith("?uploads"):
        return Answer(
            body=b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
        )
    return Answer(headers={"ETag": '"1"'})


@pytest.mark.parametrize(("there", "good"), [(30_000, True), (20_000, False), (None, False)])
def test_an_upload_is_done_when_the_answer_to_completing_it_was_lost(tmp_path, monkeypatch, there, good):
    monkeypatch.setattr(transfer, "PART_BYTES", 10_000)
    (tmp_path / "x").write_bytes(bytes(30_000))

    def losing(asked):
        if asked.method == "POST" and "uploadId" in asked.path:
            return refusal(404, "NoSuchUpload")
        if asked.method == "HEAD":
            return Answer(404) if there is None else Answer(headers={"Content-Length": str(there)})
        return begun(asked)

    with answering(losing) as (endpoint, asked):
        store = Store("s3://fuse", endpoint=endpoint)
        if good:
            assert store.upload(ADDRESS, "one", "x", tmp_path / "x").size == 30_000
        else:
            with pytest.raises(MissingInput, match="404"):
                store.upload(ADDRESS, "one", "x", tmp_path / "x")
        assert ("DELETE" in [each.method for each in asked]) is not good


def test_an_upload_whose_server_goes_away_ends_with_the_first_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "PART_BYTES", 10_000)
    (tmp_path / "x").write_bytes(bytes(50_000))

    def leaving(asked):
        return HANG_UP if asked.method != "POST" else begun(asked)

    with (
        answering(leaving) as (endpoint, asked),
        pytest.raises(TemporaryFailure, match="broke while writing"),
    ):
        Store("s3://fuse", endpoint=endpoint).upload(ADDRESS, "one", "x", tmp_path / "x")
    assert "DELETE" in [each.method for each in asked]


def test_a_part_that_reads_as_published_is_what_was_written():
    part = Part(2, "one", (FileEntry("x", "x", 1, "0" * 64),), {"rows": 1})
    bucket = Bucket()
    with answering(bucket) as (endpoint, _):
        Store("s3://fuse/p", endpoint=endpoint).publish_part(ADDRESS, part)
    assert bucket.objects == {f"p/{ADDRESS}/parts/00002.json": text(part_json(part))}
