"""Stage processes on this machine: how they end, and what becomes of them when their server is killed."""

import os
import signal
from multiprocessing import forkserver

import pytest
from fusechat.processes import Processes, own_folder, wait_any

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore::UserWarning")]
WRONG = ["fuse", "--bad"]


def ended(process):
    while process.exit_code() is None:
        wait_any([process], 0.2)
    return process.exit_code()


def server() -> int:
    return forkserver._forkserver._forkserver_pid


@pytest.mark.parametrize("stage", ["filter", "fuse"])
def test_a_process_tells_how_it_ended_whether_spawned_or_forked(tmp_path, stage):
    process = Processes({}, 1).start("x", stage, WRONG, tmp_path / "work", tmp_path / "log")
    assert ended(process) == 64
    assert process.read("summary")["reason"] == "UsageError"
    assert "error: an argument is --name=value" in (tmp_path / "log").read_text()


def test_a_killed_server_is_started_again_and_its_processes_count_as_killed(tmp_path):
    processes = Processes({}, 1)
    processes.preload()
    os.kill(server(), signal.SIGKILL)
    lost = processes.start("x", "fuse", WRONG, tmp_path / "work", tmp_path / "log")
    os.kill(server(), signal.SIGKILL)
    assert ended(lost) in (-signal.SIGKILL, 64)
    again = processes.start("x", "fuse", WRONG, tmp_path / "work", tmp_path / "log")
    assert ended(again) == 64


def test_two_runners_of_one_run_never_share_a_folder_and_what_one_left_is_taken_again(tmp_path):
    work = tmp_path / "run" / "work"
    with own_folder(work) as first, own_folder(work) as second:
        (first / "kept").touch()
        assert first != second
        assert {first.parent, second.parent} == {work.parent}
    with own_folder(work) as again:
        assert again == first == work
        assert (again / "kept").exists(), "a stage whose runner died may still save"
