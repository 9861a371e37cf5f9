"""What could lose data, done on purpose: kills at random moments, races, removal beside publishing.

The law everywhere: what was acknowledged is there with its bytes, what is published is whole, and nothing
that went wrong keeps the next attempt from publishing.
"""

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import urlsplit

import psutil
import pytest
from fusechat import store_gc
from fusechat.errors import FusechatError
from fusechat.store import Part, Store

from tests.s3 import ADDRESS, an_artifact, put, start_s3

ROUNDS = 6
SIZES = [10, 5_000, 300_000, 4_000_000, 20_000_000]


@pytest.fixture
def own(tmp_path):
    """A server of the test's own, to be killed."""
    with start_s3(tmp_path / "s3") as server:
        yield server


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.005)


def digest(body):
    return hashlib.sha256(body).hexdigest()


def whole(store, manifest):
    """Whether everything a manifest names is there, byte for byte."""
    bodies = ((file, store.get_bytes(file.key)) for file in manifest.files)
    return all(body is not None and digest(body) == file.sha256 for file, body in bodies)


# A connection breaks


@pytest.mark.parametrize(
    "write",
    [
        lambda store, folder: put(store, "one", "weights", b"w" * 600_000, folder),
        lambda store, _: store.put_json("runs/one.json", {"steps": ["x" * 1000]}),
        lambda store, _: store.put_json("runs/one.json", {"steps": ["x" * 1000]}, create_only=True),
    ],
    ids=["upload", "put_json", "create_only"],
)
def test_a_request_that_breaks_off_before_its_body_leaves_the_object_that_is_there(store, tmp_path, write):
    sent = []
    store.client.meta.events.register("before-send.s3.PutObject", lambda request, **_: sent.append(request))
    write(store, tmp_path)
    (request,) = sent
    where = urlsplit(request.url)
    key = where.path.removeprefix(f"/{store.place.bucket}/{store.place.prefix}/")
    before = store.get_bytes(key)
    headers = {"Host": where.netloc, **{k: v for k, v in request.headers.items() if k != "Expect"}}
    lines = [f"PUT {where.path} HTTP/1.1", *(f"{k}: {as_text(v)}" for k, v in headers.items()), "", ""]
    with socket.create_connection((where.hostname, where.port)) as late:
        late.sendall("\r\n".join(lines).encode())
        late.shutdown(socket.SHUT_WR)
        assert b" 4" in late.recv(100)
    assert store.get_bytes(key) == before


def as_text(value):
    return value.decode() if isinstance(value, bytes) else value


# The server is killed


def test_nothing_that_was_published_is_lost_when_the_server_is_killed_at_random_moments(
    own, tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    published = {}
    for number in range(ROUNDS):
        stop = threading.Event()
        with ThreadPoolExecutor(3) as pool:
            for worker in range(3):
                pool.submit(_publish_on_and_on, own.uri, f"{number}{worker}", stop, published, tmp_path)
            time.sleep(random.uniform(0.2, 1.0))
            kill(own.pid)
            stop.set()
        assert own.ensure()
    assert len(published) >= ROUNDS
    with monkeypatch.context() as patch:
        patch.delenv("AWS_MAX_ATTEMPTS")
        store = Store(own.uri)
        for address, manifest in published.items():
            assert store.manifest(address) == manifest
            assert store.verify(manifest) == []
            assert whole(store, manifest)


def _publish_on_and_on(uri, worker, stop, published, folder):
    store, chance, count = Store(uri), random.Random(worker), 0
    while not stop.is_set():
        count += 1
        address = f"extract/{int(worker) * 10_000 + count:064d}"
        body = chance.randbytes(chance.choice(SIZES))
        try:
            entry = put(store, f"a{worker}", f"{count}.bin", body, folder, address)
            manifest = an_artifact(entry, attempt=f"a{worker}", address=address)
            published[address] = store.publish(manifest)
        except FusechatError:
            continue


def test_of_publishers_whose_server_is_killed_meanwhile_no_two_believe_that_they_won(own, tmp_path):
    for number in range(ROUNDS):
        address = f"extract/{number:064d}"
        gate = threading.Barrier(5)

        def publish(attempt, address=address, gate=gate):
            store = Store(own.uri)
            entry = put(store, attempt, "x", attempt.encode(), tmp_path, address)
            gate.wait()
            return store.publish(an_artifact(entry, attempt=attempt, address=address))

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(publish, f"attempt-{n}") for n in range(4)]
            gate.wait()
            time.sleep(random.uniform(0, 0.02))
            kill(own.pid)
            own.ensure()
            winners = {future.result().attempt for future in running}  # each one waited the restart out
        assert len(winners) == 1
        found = Store(own.uri).manifest(address)
        assert {found.attempt} == winners
        assert whole(Store(own.uri), found)


def test_an_upload_goes_on_after_its_server_was_killed(own, tmp_path):
    body = random.Random(5).randbytes(120 << 20)
    (tmp_path / "x").write_bytes(body)
    store = Store(own.uri)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(store.upload, ADDRESS, "one", "x", tmp_path / "x")
        for _ in range(2):
            time.sleep(random.uniform(0.1, 0.6))
            kill(own.pid)
            own.ensure()
        entry = running.result()
    assert entry.sha256 == digest(body)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(store.download, entry, tmp_path / "back")
        time.sleep(random.uniform(0.05, 0.3))
        kill(own.pid)
        own.ensure()
        running.result()
    assert digest((tmp_path / "back").read_bytes()) == digest(body)


# A publisher is killed

PUBLISHER = """
import pathlib, sys, uuid
from fusechat.store import Part, Store
sys.path.insert(0, sys.argv[3])
from tests.s3 import ADDRESS, an_artifact
store, folder, attempt = Store(sys.argv[1]), pathlib.Path(sys.argv[2]), str(uuid.uuid4())
print("ready", flush=True)
for block in range(4):
    if block not in store.parts(ADDRESS):
        files = tuple(store.upload(ADDRESS, attempt, f"{block}-{n}", folder / f"{n}") for n in range(2))
        store.publish_part(ADDRESS, Part(block, attempt, files, {"rows": 1}))
parts = store.parts(ADDRESS)
store.publish(an_artifact(*(f for b in range(4) for f in parts[b].files), attempt=attempt))
"""


def test_an_attempt_that_is_killed_at_any_moment_publishes_nothing_half_and_stands_in_nobodys_way(
    store, tmp_path, pytestconfig
):
    for name, size in (("0", 20 << 20), ("1", 1000)):
        (tmp_path / name).write_bytes(random.Random(name).randbytes(size))
    command = [sys.executable, "-c", PUBLISHER, store.uri, str(tmp_path), str(pytestconfig.rootpath)]
    for _ in range(ROUNDS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            time.sleep(random.uniform(0, 1.5))
            process.kill()
        if manifest := store.manifest(ADDRESS):
            assert whole(store, manifest)
        for part in store.parts(ADDRESS).values():
            assert whole(store, part)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    manifest = store.manifest(ADDRESS)
    assert len(manifest.files) == 8
    assert whole(store, manifest)
    # What the killed left is garbage that gc finds, and all that it finds.
    store_gc.gc(store, {ADDRESS}, 0, delete=True)
    assert {found.key for found in store.keys(f"{ADDRESS}/data/")} == {file.key for file in manifest.files}
    assert store_gc.gc(store, {ADDRESS}, 0) == store_gc.Garbage((), (), 0)
    assert whole(store, manifest)


# Removal beside publishing


def test_a_loser_removes_nothing_that_a_winner_of_another_address_named(store, tmp_path):
    """Attempts of two artifacts may share an id (one process, two steps): keys lie below their address."""
    other = "merge/" + "b" * 64
    theirs = store.publish(
        an_artifact(put(store, "same", "x", b"1", tmp_path, other), attempt="same", address=other)
    )
    store.publish(an_artifact(put(store, "first", "x", b"2", tmp_path), attempt="first"))
    store.publish(an_artifact(put(store, "same", "x", b"3", tmp_path), attempt="same"))
    assert whole(store, theirs)
    assert whole(store, store.manifest(ADDRESS))


def test_an_attempt_whose_name_begins_like_the_losers_keeps_its_data(store, tmp_path):
    won = store.publish(an_artifact(put(store, "one-more", "x", b"1", tmp_path), attempt="one-more"))
    store.publish(an_artifact(put(store, "one", "x", b"2", tmp_path), attempt="one"))
    assert whole(store, won)


def test_garbage_is_collected_beside_publishers_without_loss(store, tmp_path):
    """Young artifacts are safe without a reference, old ones with one."""
    kept = store.publish(an_artifact(put(store, "one", "x", b"1", tmp_path)))
    stop = threading.Event()

    def collect():
        mine = Store(store.uri)
        while not stop.is_set():
            store_gc.gc(mine, {kept.address}, 1, delete=True)
            store_gc.gc(mine, {kept.address, *coming}, 0, delete=True)

    coming = [f"extract/{number:064d}" for number in range(12)]
    with ThreadPoolExecutor(1) as pool:
        collecting = pool.submit(collect)
        made = []
        for address in coming:
            part = Part(0, "one", (put(store, "one", "b", address.encode(), tmp_path, address),), {})
            store.publish_part(address, part)
            made.append(store.publish(an_artifact(*part.files, address=address)))
        stop.set()
        collecting.result()
    assert all(whole(store, manifest) and store.verify(manifest) == [] for manifest in [kept, *made])


def test_a_run_that_mends_a_damaged_artifact_does_not_withdraw_what_another_has_just_mended(store, tmp_path):
    for number in range(8):
        address = f"extract/{number:064d}"
        bad = store.publish(
            an_artifact(put(store, "bad", "x", b"1", tmp_path, address), attempt="bad", address=address)
        )
        store.delete(file.key for file in bad.files)
        gate = threading.Barrier(3)

        def mend(attempt, address=address, gate=gate, bad=bad):
            mine = Store(store.uri)
            gate.wait()
            found = mine.manifest(address)
            if found is None or mine.verify(found):
                mine.withdraw(address)
                entry = put(mine, attempt, "x", attempt.encode(), tmp_path, address)
                mine.publish(replace(bad, files=(entry,), attempt=attempt))

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(mend, ["one", "two", "three"]))
        assert whole(store, store.manifest(address))
