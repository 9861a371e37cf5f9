"""`fusechat get` against a real store: whole folders, nothing overwritten, what is there is kept."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fusechat.cli import main
from fusechat.get import get, split
from fusechat.store import Store

from tests.s3 import ADDRESS, an_artifact, put

MODEL = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "tokenizer/vocab.txt": b"a\nb\n"}


@pytest.fixture
def published(store, tmp_path):
    """The store, with a model of three files at ADDRESS."""
    files = [put(store, "one", name, body, tmp_path) for name, body in MODEL.items()]
    store.publish(an_artifact(*files))
    return store


def uri(store: Store) -> str:
    return f"{store.uri.rstrip('/')}/{ADDRESS}"


def folder_of(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_a_uri_becomes_a_folder_and_a_second_time_nothing_is_fetched(published, tmp_path, capsys):
    to = tmp_path / "new" / "fused"
    assert main(["get", uri(published), "--to", str(to)]) == 0
    assert folder_of(to) == MODEL
    assert "3 files" in capsys.readouterr().out.splitlines()[-1]
    before = {f: f.stat().st_mtime_ns for f in to.rglob("*")}
    assert main(["get", uri(published), "--to", str(to)]) == 0
    assert capsys.readouterr().out.count("there already") == 3
    assert {f: f.stat().st_mtime_ns for f in to.rglob("*")} == before


def test_what_is_missing_is_fetched_and_the_rest_is_kept(published, tmp_path):
    list(get(published, ADDRESS, tmp_path / "to"))
    (tmp_path / "to" / "model.safetensors").unlink()
    (tmp_path / "to" / "notes.txt").write_text("mine")
    said = list(get(published, ADDRESS, tmp_path / "to"))
    assert next(line for line in said if "already" not in line).startswith("model.safetensors  0.01 MB")
    assert folder_of(tmp_path / "to") == {**MODEL, "notes.txt": b"mine"}


@pytest.mark.parametrize("other", [b"[]", b"of another length", None])
def test_another_file_in_its_place_is_kept_and_nothing_is_written(published, tmp_path, capsys, other):
    to = tmp_path / "to"
    (to / "config.json").mkdir(parents=True) if other is None else to.mkdir()
    if other is not None:
        (to / "config.json").write_bytes(other)
    before = folder_of(to)
    assert main(["get", uri(published), "--to", str(to)]) == 64
    assert "config.json is another file than that of extract/aaaa" in capsys.readouterr().err
    assert folder_of(to) == before


def test_a_file_where_the_folder_should_be_is_refused(published, tmp_path, capsys):
    (tmp_path / "to").write_text("mine")
    assert main(["get", uri(published), "--to", str(tmp_path / "to")]) == 64
    assert "to is not a folder; choose another with --to" in capsys.readouterr().err


def test_nothing_at_the_address_is_a_missing_input(store, tmp_path, capsys):
    assert main(["get", uri(store), "--to", str(tmp_path / "to")]) == 66
    assert f"nothing is published at {ADDRESS} in {store.uri}" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_bytes_that_are_not_the_published_ones_do_not_arrive(published, tmp_path, capsys):
    entry = published.manifest(ADDRESS).entry("model.safetensors")
    published.put_bytes(entry.key, b"strange" * 1000)
    assert main(["get", uri(published), "--to", str(tmp_path / "to")]) == 66
    assert "is corrupt" in capsys.readouterr().err
    assert set(folder_of(tmp_path / "to")) == {"config.json"}


def test_one_that_is_killed_goes_on_where_it_was(store, tmp_path):
    """Forty files of 2 MB: SIGKILL once some are there, and what was there is not fetched again."""
    files = [put(store, "one", f"{n:02}.bin", os.urandom(2_000_000), tmp_path) for n in range(40)]
    store.publish(an_artifact(*files))
    to = tmp_path / "to"
    command = [sys.executable, "-m", "fusechat.cli", "get", uri(store), "--to", str(to)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while len(list(to.glob("*.bin"))) < 3:
        assert first.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    there = len(list(to.glob("*.bin")))
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.count("there already") == there
    assert {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in to.glob("*.bin")} == {
        entry.name: entry.sha256 for entry in files
    }


@pytest.mark.parametrize(
    "wrong",
    [
        "s3://fuse",
        "s3://fuse/",
        "s3://fuse/merge",
        "s3://fuse/merge/12",
        "s3://fuse/prefix/merge/" + "g" * 64,
    ],
)
def test_a_uri_of_no_artifact_is_refused(wrong, capsys):
    assert main(["get", wrong, "--to", "nowhere"]) == 64
    assert f"{wrong} is not the URI of an artifact; expected s3://BUCKET/PREFIX" in capsys.readouterr().err


def test_a_uri_names_its_store():
    assert split(f"s3://fuse/{ADDRESS}") == ("s3://fuse", ADDRESS)
    assert split(f"s3://fuse/a/b/{ADDRESS}/") == ("s3://fuse/a/b", ADDRESS)


@pytest.mark.parametrize("more", [["--step", "merge"], ["--store", "s3://other/"]])
def test_a_uri_takes_no_step_and_no_store(more, capsys):
    assert main(["get", f"s3://fuse/{ADDRESS}", "--to", "nowhere", *more]) == 64
    assert "leave --store and --step out" in capsys.readouterr().err


RUN = """
apiVersion: fusechat.io/v1alpha1
kind: FusionRun
metadata: {name: mine}
spec:
  pivot: {name: p, uri: file:///p}
  sources: [{name: a, uri: file:///a}]
  dataset: {uri: file:///d.jsonl}
"""


def recorded(home, store, state="Succeeded"):
    """A home whose last run of `mine` made its model in `store`."""
    step = {"name": "merge", "stage": "merge", "address": ADDRESS, "state": state}
    fused = {**step, "subject": {"kind": "Fused", "name": "fused"}}
    scored = {**fused, "name": "evaluate-fused", "stage": "evaluate", "address": "evaluate/" + "0" * 64}
    folder = home / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run": "mine", "store": store, "steps": [scored, fused]}))
    (home / "run.yaml").write_text(RUN)
    return ["get", str(home / "run.yaml"), "--home", str(home), "--to", str(home / "to")]


def test_a_run_knows_the_store_and_the_step_of_its_model(published, tmp_path):
    assert main(recorded(tmp_path / "home", published.uri)) == 0
    assert folder_of(tmp_path / "home" / "to") == MODEL


def test_a_run_that_has_no_model_yet_says_so(published, tmp_path, capsys):
    words = recorded(tmp_path / "home", published.uri, state="Failed")
    assert main(words) == 64
    assert "merge of mine is Failed, has made nothing; `fusechat run` goes on" in capsys.readouterr().err
    assert main([*words, "--step", "nonsense"]) == 64
    said = "mine has no step 'nonsense'; its steps are: evaluate-fused, merge"
    assert said in capsys.readouterr().err
    assert main([*words, "--home", str(tmp_path)]) == 64
    assert "mine has not been run from here" in capsys.readouterr().err
