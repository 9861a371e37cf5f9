"""The store on a real S3 server: what is published is whole, the first one wins, losers leave nothing."""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from fusechat import store_gc, transfer
from fusechat.errors import BadData, CorruptInput, MissingInput, TemporaryFailure, Unavailable, UsageError
from fusechat.store import FileEntry, Part, Store

from tests.s3 import ADDRESS, an_artifact, put

PART = 5 << 20
"""The least that S3, and SeaweedFS with it, takes as a part of a file."""

RANGE = 1 << 20


@pytest.fixture
def small_parts(monkeypatch):
    """Parts and ranges of 5 MiB: the machinery of large files on smaller ones."""
    monkeypatch.setattr(transfer, "PART_BYTES", PART)
    monkeypatch.setattr(transfer, "RANGE_BYTES", PART)


def keys(store, prefix=""):
    return [found.key for found in store.keys(prefix)]


def uploads(store):
    """Multipart uploads that were begun and neither completed nor aborted."""
    answer = store.client.list_multipart_uploads(Bucket=store.place.bucket, Prefix=store.place.key(""))
    return answer.get("Uploads", [])


# Files


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART + 12345, 9 * PART])
def test_a_file_comes_back_as_it_went(store, tmp_path, small_parts, size):
    body = random.Random(size).randbytes(size)
    entry = put(store, "one", "a/b.bin", body, tmp_path)
    assert entry == FileEntry(
        "a/b.bin", f"{ADDRESS}/data/one/a/b.bin", size, hashlib.sha256(body).hexdigest()
    )
    store.download(entry, tmp_path / "new" / "folder" / "back")
    assert (tmp_path / "new" / "folder" / "back").read_bytes() == body
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["back"]
    assert uploads(store) == []


def test_a_range_is_read_as_of_a_file(store, tmp_path, small_parts):
    body = random.Random(1).randbytes(3 * PART)
    entry = put(store, "one", "x", body, tmp_path)
    for start, length in [
        (0, 10),
        (PART - 5, 10),
        (3 * PART - 1, 1),
        (3 * PART - 5, 100),
        (3 * PART, 5),
        (7, 0),
    ]:
        assert store.read(entry, start, length) == body[start : start + length]


def test_a_file_of_the_same_name_of_another_attempt_is_another_object(store, tmp_path):
    one, two = put(store, "one", "x", b"1", tmp_path), put(store, "two", "x", b"2", tmp_path)
    assert store.read(one, 0, 1) == b"1"
    assert store.read(two, 0, 1) == b"2"


def test_an_upload_that_breaks_off_leaves_nothing(store, tmp_path, small_parts, monkeypatch):
    source = tmp_path / "x"
    source.write_bytes(bytes(4 * PART))
    client, sent = store.client, []
    real = client.upload_part

    def failing(**request):
        sent.append(request["PartNumber"])
        if request["PartNumber"] == 3:
            raise ConnectionResetError
        return real(**request)

    monkeypatch.setattr(client, "upload_part", failing)
    with pytest.raises(TemporaryFailure, match=r"the connection to .* broke while writing"):
        store.upload(ADDRESS, "one", "x", source)
    assert 3 in sent
    assert uploads(store) == []
    assert keys(store) == []


def test_a_file_that_grows_while_it_is_sent_is_not_taken(store, tmp_path, small_parts, monkeypatch):
    source = tmp_path / "x"
    source.write_bytes(bytes(3 * PART))
    real = transfer._fill

    def growing(file, buffer):
        os.truncate(source, 2 * PART)
        return real(file, buffer)

    monkeypatch.setattr(transfer, "_fill", growing)
    with pytest.raises(TemporaryFailure, match="x changed while it was being written"):
        store.upload(ADDRESS, "one", "x", source)


def test_a_download_that_was_killed_goes_on_where_it_stopped(store, tmp_path):
    body = random.Random(2).randbytes(40 * RANGE)
    entry = put(store, "one", "x", body, tmp_path)
    target = tmp_path / "back"
    script = f"""
import os, pathlib, signal
from fusechat import store_partfile, transfer
from fusechat.store import FileEntry, Store
transfer.RANGE_BYTES, transfer.STREAMS = {RANGE}, 1
real = store_partfile.PartFile.add
def add(self, start):
    real(self, start)
    if start == 20 * {RANGE}:
        os.kill(os.getpid(), signal.SIGKILL)
store_partfile.PartFile.add = add
Store({store.uri!r}).download({entry!r}, pathlib.Path({str(target)!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -9
    assert not target.exists()
    asked = _ranges_asked_for(store, lambda: store.download(entry, target))
    assert target.read_bytes() == body
    assert min(asked) == 21 * RANGE
    assert len(asked) == 19
    assert not list(tmp_path.glob("back.part*"))


def _ranges_asked_for(store, work):
    starts: list[int] = []

    def note(params, **_):
        if span := params["headers"].get("Range"):
            starts.append(int(span.removeprefix("bytes=").split("-")[0]))

    events = store.client.meta.events
    events.register("before-call.s3.GetObject", note)
    saved, transfer.RANGE_BYTES = transfer.RANGE_BYTES, RANGE
    try:
        work()
    finally:
        transfer.RANGE_BYTES = saved
        events.unregister("before-call.s3.GetObject", note)
    return starts


def test_what_a_killed_download_left_is_not_trusted(store, tmp_path, small_parts):
    body = random.Random(3).randbytes(3 * PART)
    entry = put(store, "one", "x", body, tmp_path)
    target = tmp_path / "back"
    facts = {"key": entry.key, "size": entry.size, "sha256": entry.sha256, "range": PART}
    Path(f"{target}.part").write_bytes(bytes(3 * PART))
    Path(f"{target}.part.done").write_text(f"{json.dumps(facts, sort_keys=True)}\n0\n{PART}\n")
    store.download(entry, target)
    assert target.read_bytes() == body


def test_processes_that_want_the_same_file_at_the_same_place_do_not_disturb_each_other(
    store, tmp_path, small_parts
):
    body = random.Random(4).randbytes(4 * PART)
    entry = put(store, "one", "x", body, tmp_path)
    with ThreadPoolExecutor(6) as pool:  # a lock of ours is per open file, not per process
        list(pool.map(lambda _: Store(store.uri).download(entry, tmp_path / "back"), range(6)))
    assert (tmp_path / "back").read_bytes() == body
    assert not list(tmp_path.glob("back.part*"))


@pytest.mark.parametrize("size", [100, 2 * PART], ids=["small", "large"])
def test_a_corrupt_object_is_found_out_reported_and_withdrawn(store, tmp_path, small_parts, size):
    entry = put(store, "one", "x", bytes(size), tmp_path)
    published = store.publish(an_artifact(entry))
    store.put_bytes(entry.key, b"\1" + bytes(size - 1))
    with pytest.raises(CorruptInput, match=r"is corrupt: .* must run again") as caught:
        store.download(entry, tmp_path / "back")
    assert entry.key in str(caught.value)
    assert caught.value.exit_code == 66
    assert not list(tmp_path.glob("*back*"))
    assert store.verify(published) == ["x"]
    store.withdraw(ADDRESS)
    again = store.publish(an_artifact(put(store, "two", "x", bytes(size), tmp_path), attempt="two"))
    assert (again.attempt, store.verify(again)) == ("two", [])
    store.download(again.entry("x"), tmp_path / "back")


def test_an_object_of_another_size_is_corrupt(store, tmp_path, small_parts):
    entry = put(store, "one", "x", bytes(3 * PART), tmp_path)
    store.put_bytes(entry.key, bytes(PART + 1))
    with pytest.raises(CorruptInput, match="has not the size that its manifest says"):
        store.download(entry, tmp_path / "back")


def test_an_object_that_is_gone_is_a_missing_input(store, tmp_path):
    entry = put(store, "one", "x", b"1", tmp_path)
    store.delete([entry.key])
    for use in (lambda: store.download(entry, tmp_path / "back"), lambda: store.read(entry, 0, 1)):
        with pytest.raises(MissingInput, match="the object is gone; the step that makes it must run again"):
            use()


def test_a_transfer_takes_no_more_memory_for_a_larger_file(store, tmp_path):
    script = f"""
import pathlib, re, sys
from fusechat.store import Store
store, source = Store({store.uri!r}), pathlib.Path(sys.argv[1])
store.get_json("warm")
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
before = peak()
entry = store.upload("extract/" + "a" * 64, "one", "x", source)
store.download(entry, source.with_name("back"))
print((peak() - before) >> 10)
"""
    peaks = []
    for megabytes in (100, 400):
        (tmp_path / "x").write_bytes(bytes(megabytes << 20))
        told = subprocess.run([sys.executable, "-c", script, tmp_path / "x"], capture_output=True, check=True)
        peaks.append(int(told.stdout))
    assert peaks[1] < 1.3 * peaks[0] + 16
    assert peaks[1] < (transfer.STREAMS + 2) * (transfer.PART_BYTES >> 20) + 40


# Publishing


def test_an_artifact_is_absent_until_it_is_published_and_whole_afterwards(store, tmp_path):
    manifest = an_artifact(put(store, "one", "x", b"1", tmp_path))
    assert store.manifest(ADDRESS) is None
    assert store.publish(manifest) == manifest
    assert store.manifest(ADDRESS) == manifest
    assert store.verify(manifest) == []


def test_of_eight_that_publish_at_once_one_wins_and_the_losers_leave_nothing(store, tmp_path):
    for round_number in range(5):
        address = f"extract/{round_number:064d}"
        gate = threading.Barrier(8)

        def publish(attempt, address=address, gate=gate):
            mine = Store(store.uri)
            files = [put(mine, attempt, name, attempt.encode(), tmp_path, address) for name in ("x", "y")]
            gate.wait()
            return mine.publish(an_artifact(*files, attempt=attempt, address=address))

        with ThreadPoolExecutor(8) as pool:
            seen = list(pool.map(publish, [f"attempt-{n}" for n in range(8)]))
        assert len({winner.attempt for winner in seen}) == 1
        winner = seen[0]
        assert store.manifest(address) == winner
        assert keys(store, f"{address}/data/") == sorted(file.key for file in winner.files)
        assert store.read(winner.entry("x"), 0, 100) == winner.attempt.encode()


def test_of_eight_that_publish_one_block_at_once_one_wins_and_the_losers_leave_nothing(store, tmp_path):
    gate = threading.Barrier(8)

    def publish(attempt):
        mine = Store(store.uri)
        files = (put(mine, attempt, "b", attempt.encode(), tmp_path),)
        gate.wait()
        return mine.publish_part(ADDRESS, Part(3, attempt, files, {"rows": 1}))

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(publish, [f"attempt-{n}" for n in range(8)]))
    assert len({part.attempt for part in seen}) == 1
    assert store.parts(ADDRESS) == {3: seen[0]}
    assert keys(store, f"{ADDRESS}/data/") == [seen[0].files[0].key]


def test_publishing_again_changes_nothing_and_deletes_nothing(store, tmp_path):
    manifest = an_artifact(put(store, "one", "x", b"1", tmp_path))
    store.publish(manifest)
    assert store.publish(manifest) == manifest
    part = Part(0, "one", (put(store, "one", "b", b"1", tmp_path),), {})
    store.publish_part(ADDRESS, part)
    assert store.publish_part(ADDRESS, part) == part
    assert store.verify(manifest) == []
    assert len(keys(store, f"{ADDRESS}/data/")) == 2


def test_a_shard_that_loses_the_manifest_keeps_the_blocks_it_won(store, tmp_path):
    mine = Part(0, "one", (put(store, "one", "b0", b"0", tmp_path),), {})
    theirs = Part(1, "two", (put(store, "two", "b1", b"1", tmp_path),), {})
    stray = put(store, "one", "stray", b"s", tmp_path)
    for part in (mine, theirs):
        store.publish_part(ADDRESS, part)
    files = (*mine.files, *theirs.files)
    store.publish(an_artifact(*files, attempt="two"))
    winner = store.publish(an_artifact(*files, stray, attempt="one"))
    assert winner.attempt == "two"
    assert store.verify(winner) == []
    assert stray.key not in keys(store)


def test_a_part_that_somebody_published_is_kept_when_the_winning_manifest_does_not_name_it(store, tmp_path):
    part = Part(0, "one", (put(store, "one", "b0", b"0", tmp_path),), {})
    store.publish_part(ADDRESS, part)
    store.publish(an_artifact(attempt="two"))
    store.publish(an_artifact(attempt="one"))
    assert part.files[0].key in keys(store)


def test_parts_come_back_by_number_and_in_any_number(store):
    parts = {n: Part(n, "one", (), {"rows": n}) for n in range(30)}
    for part in parts.values():
        store.publish_part(ADDRESS, part)
    assert store.parts(ADDRESS) == parts
    assert keys(store, f"{ADDRESS}/parts/")[7] == f"{ADDRESS}/parts/00007.json"


@pytest.mark.parametrize("harm", ["gone", "shorter"])
def test_a_hit_whose_file_is_damaged_is_seen_and_can_be_made_again(store, tmp_path, harm):
    good = Part(0, "one", (put(store, "one", "good", b"11", tmp_path),), {})
    bad = Part(1, "one", (put(store, "one", "bad", b"22", tmp_path),), {})
    for part in (good, bad):
        store.publish_part(ADDRESS, part)
    manifest = store.publish(an_artifact(*good.files, *bad.files))
    store.delete([bad.files[0].key]) if harm == "gone" else store.put_bytes(bad.files[0].key, b"2")
    assert store.verify(manifest) == ["bad"]
    store.withdraw(ADDRESS)
    assert store.manifest(ADDRESS) is None
    assert store.parts(ADDRESS) == {0: good}


def test_a_sound_artifact_cannot_be_withdrawn(store, tmp_path):
    manifest = store.publish(an_artifact(put(store, "one", "x", b"1", tmp_path)))
    assert store.withdraw(ADDRESS) == []
    assert store.manifest(ADDRESS) == manifest


def test_a_manifest_that_is_none_is_bad_data_with_its_place(store):
    store.put_bytes(f"{ADDRESS}/manifest.json", b"{half")
    with pytest.raises(BadData, match=r"manifest.json in s3://.* is not JSON"):
        store.manifest(ADDRESS)
    store.put_json(f"{ADDRESS}/manifest.json", {"format": 1})
    with pytest.raises(BadData, match="is not a document of fusechat"):
        store.manifest(ADDRESS)


# Objects


def test_a_document_is_created_once(store):
    assert store.get_json("k") is None
    assert store.put_json("k", {"a": 1}, create_only=True)
    assert not store.put_json("k", {"a": 2}, create_only=True)
    assert store.get_json("k") == {"a": 1}
    assert store.put_json("k", {"a": 3})
    assert store.get_json("k") == {"a": 3}


def test_a_listing_of_more_than_a_thousand_keys_is_whole_and_in_order(store):
    wanted = [f"many/{n:05d}" for n in range(2100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put_bytes(key, b"12"), wanted))
    found = list(store.keys("many/"))
    assert [each.key for each in found] == wanted
    assert {each.size for each in found} == {2}
    assert abs(found[0].modified.timestamp() - time.time()) < 600
    store.delete(wanted)
    assert keys(store) == []


def test_stores_beside_each_other_do_not_see_each_other(s3, store):
    other = Store(store.uri + "-too")
    other.put_bytes("x", b"1")
    assert keys(store) == []
    assert Store(s3.uri).get_bytes(f"{other.place.prefix}/x") == b"1"


def test_deleting_what_is_not_there_is_no_error(store):
    store.delete(["a", "b"])
    store.delete([])


# Garbage


def test_garbage_is_told_first_and_then_removed(store, tmp_path):
    kept = store.publish(an_artifact(put(store, "one", "x", b"1", tmp_path)))
    lost = an_artifact(address="merge/" + "b" * 64)
    lost = store.publish(replace(lost, files=(put(store, "one", "y", b"22", tmp_path, lost.address),)))
    store.put_json("refs/here/1.json", {"addresses": [kept.address]})
    begun = store.client.create_multipart_upload(
        Bucket=store.place.bucket, Key=store.place.key(f"{lost.address}/data/two/z")
    )
    keep = store_gc.references(store)
    assert keep == {kept.address}
    assert store_gc.gc(store, keep, 1).keys == ()
    told = store_gc.gc(store, keep, 0)
    assert told.artifacts == (lost.address,)
    assert told.uploads == ((f"{lost.address}/data/two/z", begun["UploadId"]),)
    assert store.manifest(lost.address) == lost
    assert store_gc.gc(store, keep, 0, delete=True) == told
    assert store.manifest(lost.address) is None
    assert keys(store, "merge/") == []
    assert uploads(store) == []
    assert store.verify(kept) == []
    assert store.get_json("refs/here/1.json")


def test_what_only_a_run_needs_that_is_gone_goes_with_its_references(store, tmp_path):
    one, other = (
        store.publish(replace(made, files=(put(store, "one", "x", b"1", tmp_path, made.address),)))
        for made in (an_artifact(address="merge/" + letter * 64) for letter in "ab")
    )
    store.put_json("refs/west/1.json", {"addresses": [one.address, other.address]})
    store.put_json("refs/west/2.json", {"addresses": [other.address]})
    store.put_json("refs/westend/3.json", {"addresses": [other.address]})
    assert store_gc.runs_of(store, "west") == {"1": "refs/west/1.json", "2": "refs/west/2.json"}
    told = store_gc.collect(store, ["refs/west/1.json"], 0, delete=False)
    assert told.startswith("would delete (say --delete): the references of 1 run, 1 artifacts, 2 objects")
    assert store_gc.references(store) == {one.address, other.address}
    done = store_gc.collect(store, ["refs/west/1.json"], 0, delete=True)
    assert done == told.replace("would delete (say --delete)", "deleted")
    assert keys(store, "refs/") == ["refs/west/2.json", "refs/westend/3.json"]
    assert (store.manifest(one.address), store.manifest(other.address)) == (None, other)
    with pytest.raises(UsageError, match=r"no refs/west/1.json in s3://.*; there are: refs/west/2.json, "):
        store_gc.collect(store, ["refs/west/1.json"], 0, delete=True)


# Trouble


def test_a_missing_bucket_is_one_sentence(s3, tmp_path, monkeypatch):
    store = Store("s3://nosuchbucket/x")
    entry = FileEntry("x", "x", 1, "0" * 64)
    for use in (
        lambda: store.manifest(ADDRESS),
        lambda: put(store, "one", "x", b"1", tmp_path),
        lambda: store.put_json("k", 1, create_only=True),
        lambda: list(store.keys("")),
        lambda: store.download(entry, tmp_path / "back"),
    ):
        with pytest.raises(
            Unavailable, match=r"bucket 'nosuchbucket' does not exist at .*; create it or correct"
        ):
            use()


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_one_sentence(store, tmp_path, monkeypatch, name):
    assert keys(store) == []  # it has connected, with the right ones
    monkeypatch.setenv(name, "wrong")
    stranger = Store(store.uri)
    for use in (
        lambda: stranger.manifest(ADDRESS),
        lambda: put(stranger, "one", "x", b"1", tmp_path),
        lambda: stranger.publish(an_artifact()),
        lambda: list(stranger.keys("")),
    ):
        with pytest.raises(Unavailable, match=r"answered 403 \w+ while .* check the credentials"):
            use()
    assert keys(store) == []


def test_no_credentials_are_one_sentence(store, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(Unavailable, match=r"there are no S3 credentials for s3://.*: set AWS_ACCESS_KEY_ID"):
        Store(store.uri).manifest(ADDRESS)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(store, tmp_path, small_parts, monkeypatch):
    entry = put(store, "one", "x", bytes(2 * PART), tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5}))
    with pytest.raises(TemporaryFailure, match="10 MiB more are needed, 0 MiB are free"):
        store.download(entry, tmp_path / "back")
    assert not (tmp_path / "back").exists()
