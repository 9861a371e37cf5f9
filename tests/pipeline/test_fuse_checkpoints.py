"""Checkpoints in a real S3 store: where they lie, who finds them, what a half-written one is worth."""

import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fusechat.launch import Launch
from fusechat.store import Store
from fusechat_stages import entry, fuse
from fusechat_stages.artifacts import FolderInput, Output, Stopped
from fusechat_stages.entry import run_local
from fusechat_stages.training.checkpoints import StoreFiles, newest

from tests.fuse_case import RECIPE, RUNTIME, Case, make_case

ADDRESS = "fuse/" + "c" * 64
PARAMS = {**RECIPE, "epochs": 2}


class StopsAt(Output):
    """SIGTERM during a step."""

    step = 10**9

    def progress(self, done: float, total: float, unit: str, **facts: object) -> None:
        super().progress(done, total, unit, **facts)
        if done >= self.step - 1:
            self._stop.set()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


def attempt(store: Store, case: Case, name: str, folder: Path, stop_at: int = 10**9) -> StopsAt:
    out = StopsAt(store, ADDRESS, name, folder / name, runtime=RUNTIME)
    out.step = stop_at
    inputs = {role: FolderInput(path) for role, path in case.inputs().items()}
    if stop_at > 6:
        fuse.run(PARAMS, inputs, out)
        return out
    with pytest.raises(Stopped, match=f"saved at step {stop_at}"):
        fuse.run(PARAMS, inputs, out)
    return out


def test_another_attempt_goes_on_from_the_newest_complete_checkpoint(
    store: Store, case: Case, tmp_path: Path
):
    attempt(store, case, "one", tmp_path, stop_at=3)
    attempt(store, case, "two", tmp_path, stop_at=5)
    keys = [found.key for found in store.keys(f"{ADDRESS}/checkpoints/")]
    assert {key.removeprefix(f"{ADDRESS}/checkpoints/").rpartition("/")[0] for key in keys} == {
        "one/3",
        "two/5",
    }
    # A later one that was cut off before its manifest does not count.
    store.put_bytes(f"{ADDRESS}/checkpoints/three/6/.metadata", b"half")
    found = newest(StoreFiles(store), ADDRESS)
    assert (found.step, len(found.log)) == (5, 5)

    last = attempt(store, case, "four", tmp_path)
    run_local("fuse", PARAMS, case.inputs(), tmp_path / "straight", RUNTIME)
    for name in ("model.safetensors", "training.jsonl"):
        sent = next(file for file in last.files if file.name == name)
        store.download(sent, tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert last.deterministic
    assert "metrics.json" not in {file.name for file in last.files}
    assert json.loads((tmp_path / "straight" / "metrics.json").read_text()) == last.metrics


def test_a_stage_that_is_stopped_before_it_began_fetches_nothing_and_ends_as_143(store: Store):
    """Its inputs do not even exist; with them it would be 66."""
    stop = threading.Event()
    stop.set()
    told = Launch("fuse", fuse.VERSION, ADDRESS, store.uri, PARAMS, {"model": "fetch/" + "d" * 64})
    assert entry._recorded(told, store, stop) == 143
    (record,) = [store.get_json(found.key) for found in store.keys(f"{ADDRESS}/attempts/")]
    assert (record["exitCode"], record["error"]) == (143, "stopped: before it began")


def test_progress_tells_a_checkpoint_as_soon_as_it_is_published_and_where_an_attempt_began(
    store: Store, case: Case, tmp_path: Path
):
    """All of it within the 15 seconds in which nothing else would be told."""
    attempt(store, case, "one", tmp_path, stop_at=3)
    told = store.get_json(f"{ADDRESS}/progress.json")
    assert (told["from"], told["done"], told["checkpointStep"]) == (0, 3, 3)
    saved = datetime.fromisoformat(told["lastCheckpoint"])
    assert timedelta(0) <= datetime.now(UTC) - saved < timedelta(minutes=5)
    assert newest(StoreFiles(store), ADDRESS).saved == told["lastCheckpoint"]

    class Reads(StopsAt):
        """What the store says after each report."""

        def progress(self, done: float, total: float, unit: str, **facts: object) -> None:
            super().progress(done, total, unit, **facts)
            said.append(store.get_json(f"{ADDRESS}/progress.json"))

    said: list[dict[str, object]] = []
    out = Reads(store, ADDRESS, "two", tmp_path / "two", runtime={**RUNTIME, "checkpointSeconds": 1e-9})
    fuse.run(PARAMS, {role: FolderInput(path) for role, path in case.inputs().items()}, out)
    first, last = said[0], said[-1]
    assert (first["from"], first["done"], first["checkpointStep"]) == (3, 3, 3)
    assert first["lastCheckpoint"] == told["lastCheckpoint"], "the earlier attempt's, until there is another"
    assert (last["from"], last["checkpointStep"]) in {(3, 4), (3, 5)}
    assert last["done"] > 4
