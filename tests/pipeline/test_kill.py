"""Killed at any moment, a run goes on from where it was: same addresses, same bytes, nothing done twice."""

import contextlib
import os
import random
import signal
import time

import psutil
import pytest

from tests import tiny
from tests.cli import Home, reproducible

KILLS = int(os.environ.get("FUSECHAT_KILLS", "8"))
"""20 take some ten minutes on two cores: for a change of the runner, FUSECHAT_KILLS=20."""
pytestmark = pytest.mark.timeout(1200)


def descendants(pid: int) -> list[psutil.Process]:
    """The living processes below `pid`, but for multiprocessing's tracker, which does no work of ours."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in found if "resource_tracker" not in command(process)]


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return "resource_tracker"


def victims(runner: int, home: Home) -> dict[str, list[int]]:
    """Process ids by what they are: the runner, its stage processes, the S3 server of that home."""
    stages = [p.pid for p in descendants(runner)]
    servers = [p.pid for p in psutil.process_iter() if f"-dir={home.folder}" in command(p)]
    return {"runner": [runner], "stage": stages, "server": servers}


def kill_once(home: Home, path, rng: random.Random, what: str) -> bool:
    """Start a run, kill one process of kind `what` at a random moment; True if the run was finished before.

    After the runner's death its stages end by themselves; after another's, the runner must go on or say why.
    """
    process = home.start("run", path)
    time.sleep(rng.uniform(0.5, 7.0))
    if process.poll() is not None:
        process.communicate()
        return True
    found = victims(process.pid, home)[what]
    if found:
        chosen = rng.choice(found)
        orphans = descendants(process.pid) if what == "runner" else []
        with contextlib.suppress(ProcessLookupError):
            os.kill(chosen, signal.SIGKILL)
        if what == "runner":
            process.communicate(timeout=60)
            psutil.wait_procs(orphans, timeout=60)
            return False
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, f"a killed {what} must not fail the run:\n{out}"
    return True


def test_kills_at_random_moments_change_no_address_and_no_byte_and_nothing_finished_runs_again(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    path = tiny.build(models)
    undisturbed = Home(tmp_path / "undisturbed")
    assert undisturbed.fusechat("run", path).code == 0
    want = reproducible(undisturbed.manifests())

    rng = random.Random(7)
    killed, round_ = 0, 0
    while killed < KILLS:
        home = Home(tmp_path / f"home-{round_}")
        finished = False
        while not finished and killed < KILLS:
            # The runner most of all: a killed stage or server lets the run reach its end.
            what = "runner" if killed % 4 else ("stage", "server")[round_ % 2]
            finished = kill_once(home, path, rng, what)
            killed += 1
        ended = home.fusechat("run", path)
        assert ended.code == 0, ended.out
        assert reproducible(home.manifests()) == want
        for address, records in home.attempts().items():
            published = [r for r in records if r.get("published")]
            assert len(published) <= 1, (address, records)
            if published:
                late = [r for r in records if r["started"] > published[0]["ended"]]
                assert not late, f"{address} was finished and was started again"
        round_ += 1
