"""Fuse on two processes: real FSDP2 over gloo, the curve of one process, and what happens when one dies."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fusechat.errors import BadData
from fusechat_stages.entry import run_local
from fusechat_stages.training.job import Job
from fusechat_stages.training.ranks import run_ranks
from safetensors.torch import load_file

from tests.fuse_case import RECIPE, RUNTIME, Case, make_case

TWO = {**RUNTIME, "processes": 2}
PARAMS = {**RECIPE, "epochs": 30, "learningRate": 1e-3}
"""120 steps: enough for a signal to meet the run before its end."""

STAGE = """
import json, signal, sys
from pathlib import Path
from fusechat_stages import entry, fuse
from fusechat_stages.artifacts import FolderInput, FolderOutput
params, inputs, out, runtime = json.loads(sys.argv[1])
output = FolderOutput(Path(out), runtime)
signal.signal(signal.SIGTERM, lambda *_: output._stop.set())
try:
    fuse.run(params, {role: FolderInput(Path(path)) for role, path in inputs.items()}, output)
except BaseException as error:
    code, told = entry._failure(error)
    print(told, file=sys.stderr)
    sys.exit(code)
"""

RANK = """
import json, sys
from pathlib import Path
from torch.distributed.tensor import DTensor
from fusechat_stages.training.job import Job, World
from fusechat_stages.training.loop import Trainer
from fusechat_stages.training.sharding import process_group
told = json.loads(Path(sys.argv[1]).read_text())
job, world = Job.parse(told["job"]), World(int(sys.argv[2]), 2, int(sys.argv[2]), 2)
with process_group(job, world):
    trainer = Trainer(job, world)
    kinds = {type(p).__name__ for p in trainer.fusion.parameters()}
    held = sum(p.to_local().numel() for p in trainer.fusion.parameters())
    whole = sum(p.numel() for p in trainer.fusion.parameters())
    layers = [type(m).__name__ for m in trainer.fusion.modules() if type(m).__name__.startswith("FSDP")]
    print(json.dumps([sorted(kinds), held, whole, layers]), flush=True)
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"), samples=32, tied=True)


@pytest.fixture(scope="module")
def alone(case: Case) -> Path:
    """The run of one process, undisturbed."""
    run_local("fuse", PARAMS, case.inputs(), case.root / "alone", RUNTIME)
    return case.root / "alone"


def curve(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "training.jsonl").read_text().splitlines()]


def close(folder: Path, other: Path) -> bool:
    a, b = (load_file(f / "model.safetensors") for f in (folder, other))
    return a.keys() == b.keys() and all((a[n] - b[n]).abs().max() < 1e-4 for n in a)


def start(case: Case, out: Path, **runtime: object) -> subprocess.Popen[bytes]:
    """The stage in a process of its own, which takes SIGTERM and ends as entry does."""
    roles = {role: str(path) for role, path in case.inputs().items()}
    told = json.dumps([PARAMS, roles, str(out), {**TWO, **runtime}])
    return subprocess.Popen([sys.executable, "-c", STAGE, told], stderr=subprocess.PIPE)


def checkpoint_of(out: Path, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait for the first complete checkpoint."""
    deadline = time.monotonic() + seconds
    while not list(out.glob(".scratch/local/*/checkpoints/*/*/manifest.json")):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ranks_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def test_two_processes_give_the_curve_and_the_weights_of_one(case: Case, alone: Path):
    metrics = run_local("fuse", PARAMS, case.inputs(), case.root / "two", TWO)
    assert curve(case.root / "two") == pytest.approx(curve(alone), abs=1e-4)
    assert close(case.root / "two", alone)
    one = json.loads((alone / "metrics.json").read_text())
    assert metrics["winShare"] == one["winShare"]
    assert metrics["tokens"] == one["tokens"]


def test_parameters_are_dtensors_of_which_each_rank_holds_its_part(case: Case, tmp_path: Path):
    """So that it cannot pass as DDP, nor as one process that thinks it is two."""
    (tmp_path / "scratch").mkdir()
    job = job_of(case, tmp_path)
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"job": job.text()}))
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(path), str(rank)], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    told = [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert [kinds for kinds, *_ in told] == [["DTensor"]] * 2
    (_, first, whole, layers), (_, second, _, _) = told
    assert first + second == whole
    assert 0.4 * whole < first < 0.6 * whole
    assert layers == ["FSDPFusion", "FSDPLlamaDecoderLayer", "FSDPLlamaDecoderLayer"]


def job_of(case: Case, root: Path, model: Path | None = None) -> Job:
    from fusechat_stages.artifacts import FolderInput
    from fusechat_stages.training.examples import compile_examples
    from fusechat_stages.training.recipe import Means, Recipe

    recipe = Recipe.read(PARAMS, TWO)
    inputs = {role: FolderInput(path) for role, path in case.inputs().items()}
    compile_examples(
        recipe, inputs["pivot"], [inputs["aligned.0"]], [inputs["selection.0"]], root / "examples"
    )
    return Job(
        recipe, Means.read(TWO), root / "examples", model or case.root / "model", root / "scratch",
        root / "target", 48, "local/" + "0" * 64, "attempt",
    )  # fmt: skip


@pytest.fixture(scope="module")
def killed(case: Case) -> Path:
    """The output folder of a run of two processes that was killed after a checkpoint; no rank outlives it."""
    out = case.root / "killed"
    process = start(case, out, checkpointSeconds=0.001)
    checkpoint_of(out, process)
    ranks = ranks_of(process.pid)
    process.kill()
    process.communicate()
    assert len(ranks) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < deadline, "a rank outlived its parent"
        time.sleep(0.05)
    return out


@pytest.mark.parametrize("processes", [1, 2], ids="resumed by {}".format)
def test_a_killed_run_of_two_resumes_at_another_world_size(
    case: Case,
    alone: Path,
    killed: Path,
    tmp_path: Path,
    processes: int,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    out = tmp_path / "out"
    monkeypatch.setenv("FUSECHAT_PROGRESS_FILE", str(tmp_path / "progress.json"))
    shutil.copytree(killed, out)
    run_local("fuse", PARAMS, case.inputs(), out, {**RUNTIME, "processes": processes})
    step = int(re.search(r"resumed at step (\d+)", capfd.readouterr().out)[1])
    told = json.loads((tmp_path / "progress.json").read_text())
    assert (told["from"], told["done"], told["checkpointStep"]) == (step, 120, step)
    assert told["lastCheckpoint"].endswith("Z")
    assert curve(out) == pytest.approx(curve(alone), abs=1e-4)
    assert close(out, alone)


def test_sigterm_saves_once_more_and_ends_with_143(case: Case, alone: Path, tmp_path: Path):
    out = tmp_path / "out"
    process = start(case, out, checkpointSeconds=0.001)
    checkpoint_of(out, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said.decode()
    assert "saved at step" in said.decode()
    run_local("fuse", PARAMS, case.inputs(), out, RUNTIME)
    assert curve(out) == pytest.approx(curve(alone), abs=1e-4)


def test_a_workers_65_stays_65_with_its_sentence(case: Case, tmp_path: Path):
    (tmp_path / "scratch").mkdir()
    job = job_of(case, tmp_path, model=tmp_path / "nowhere")
    with pytest.raises(BadData, match=r"nowhere: no config.json in it"):
        run_ranks(job, Quiet())


def test_a_worker_that_is_killed_ends_the_run_with_its_signal(case: Case, tmp_path: Path):
    out = tmp_path / "out"
    process = start(case, out, checkpointSeconds=0.001)
    checkpoint_of(out, process)
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGKILL, said.decode()


class Quiet:
    stopping = False

    def progress(self, *_: object, **__: object) -> None:
        pass
