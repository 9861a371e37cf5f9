"""Pins and copies: the same bytes have one pin wherever they lie; other bytes are refused."""

import json

import numpy as np
import pytest
from fusechat_stages.entry import run_local
from safetensors.numpy import save_file

RECORD = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": np.zeros(4, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "train.log").write_text("not taken")
    return folder


def resolve(tmp_path, **origin):
    asked = {"origins": {"x": {"revision": None, **origin}}, "nonce": "n"}
    return run_local("resolve", asked, {}, tmp_path / "resolved")["pins"]["x"]


def fetch(tmp_path, uri, pin, kind="model", **params):
    out = tmp_path / "fetched"
    return run_local("fetch", {"kind": kind, "pin": pin, **params}, {}, out, {"uri": uri}), out


def test_a_model_is_fetched_whole_and_only_what_we_take(tmp_path, model):
    pin = resolve(tmp_path, kind="model", uri=f"file://{model}")
    metrics, out = fetch(tmp_path, f"file://{model}", pin)
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "metrics.json",
    }
    assert metrics["files"] == 3
    assert (out / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_pin_is_of_the_content_and_not_of_the_place(tmp_path, model):
    before = resolve(tmp_path, kind="model", uri=f"file://{model}")
    moved = model.rename(tmp_path / "elsewhere")
    (moved / "train.log").write_text("other")
    assert resolve(tmp_path, kind="model", uri=f"file://{moved}") == before
    (moved / "config.json").write_text("{ }")
    assert resolve(tmp_path, kind="model", uri=f"file://{moved}") != before


def test_a_model_that_changed_after_it_was_pinned_is_refused(tmp_path, model):
    pin = resolve(tmp_path, kind="model", uri=f"file://{model}")
    (model / "config.json").write_text("{ }")
    with pytest.raises(ValueError, match="it changed since"):
        fetch(tmp_path, f"file://{model}", pin)


def test_data_becomes_blocks_of_2048(tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(RECORD) + "\n" for _ in range(2049)))
    pin = resolve(tmp_path, kind="dataset", uri=f"file://{data}")
    metrics, out = fetch(tmp_path, f"file://{data}", pin, kind="dataset")
    assert metrics == {"samples": 2049, "blocks": 2}
    assert len((out / "block-00001.jsonl").read_text().splitlines()) == 1


def test_a_split_is_chosen_by_name(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in (("train-00000.jsonl", 3), ("test-00000.jsonl", 2)):
        (folder / name).write_text("".join(json.dumps(RECORD) + "\n" for _ in range(count)))
    pin = resolve(tmp_path, kind="dataset", uri=f"file://{folder}", split="test")
    metrics, _ = fetch(tmp_path, f"file://{folder}", pin, kind="dataset", split="test", limit=1)
    assert metrics["samples"] == 1


def remove(name):
    return lambda model: (model / name).unlink()


def pickled(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (remove("config.json"), "no config.json among"),
        (remove("model.safetensors"), "no weights; expected"),
        (pickled, r"only pickled weights \(pytorch_model.bin\)"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path, model, spoil, says):
    spoil(model)
    with pytest.raises(ValueError, match=says):
        resolve(tmp_path, kind="model", uri=f"file://{model}")


@pytest.mark.parametrize(
    ("kind", "uri", "says"),
    [
        ("model", "file:///nowhere/at/all", "no such file or folder"),
        ("dataset", "file:///nowhere/at/all", "no such file or folder"),
        ("model", "ftp://x/y", "unknown scheme"),
    ],
)
def test_a_place_that_is_not_there_is_named(tmp_path, kind, uri, says):
    with pytest.raises(ValueError, match=says):
        resolve(tmp_path, kind=kind, uri=uri)


def test_an_empty_dataset_is_refused(tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text("\n")
    pin = resolve(tmp_path, kind="dataset", uri=f"file://{data}")
    with pytest.raises(ValueError, match="no record in 1 file"):
        fetch(tmp_path, f"file://{data}", pin, kind="dataset")
