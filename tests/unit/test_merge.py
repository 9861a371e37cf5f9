"""Stage merge: which tensors meet, what is refused, files out, resuming, and reading by range."""

import json
import re
import struct

import pytest
import torch
from fusechat.errors import MissingInput
from fusechat.store import FileEntry
from fusechat_stages import merge, merge_plan, merge_source, merge_work
from fusechat_stages.artifacts import FolderInput, FolderOutput, Input, Stopped
from fusechat_stages.entry import run_local
from safetensors.torch import load_file, save_file

EMBEDDING, HEAD, LAYER = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"
SCE = {"method": "sce", "selectTopK": 0.5}


def tensors(seed, rows=8, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    shapes = {EMBEDDING: (rows, 4), LAYER: (6, 4), "model.norm.weight": (4,), HEAD: (rows, 4)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def model(folder, weights, config=None, **files):
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def case(tmp_path, *targets, base=None, config=None):
    """Inputs of run_local: a pivot and targets, given as weights."""
    found = {"base": model(tmp_path / "base", tensors(0) if base is None else base, tokenizer__json="{}\n\n")}
    for j, weights in enumerate(targets):
        found[f"target.{j}"] = model(tmp_path / f"target{j}", weights, config)
    return found


def run(tmp_path, inputs, **params):
    out = tmp_path / "out"
    metrics = run_local(
        "merge", {**SCE, **params}, inputs, out, {"labels": ["ann", "bob"][: len(inputs) - 1]}
    )
    return out, metrics


def changed(weights, **tensors_by_name):
    """The weights with some replaced (None: removed); `__` stands for a dot."""
    for name, value in tensors_by_name.items():
        name = name.replace("__", ".")
        weights = {n: t for n, t in weights.items() if n != name}
        if value is not None:
            weights[name] = value
    return weights


def test_the_output_has_the_pivots_names_shapes_dtypes_and_files(tmp_path):
    inputs = case(tmp_path, tensors(1, dtype=torch.float32), tensors(2, dtype=torch.float32))
    out, metrics = run(tmp_path, inputs)
    merged, base = load_file(out / "model.safetensors"), tensors(0)
    assert {n: (t.shape, t.dtype) for n, t in merged.items()} == {
        n: (t.shape, t.dtype) for n, t in base.items()
    }
    for name in ("config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (inputs["base"] / name).read_bytes()
    names = {path.name for path in out.iterdir()}
    assert names == {
        "README.md",
        "coefficients.json",
        "config.json",
        "metrics.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert metrics["parameters"] == metrics["merged"] == 92
    assert metrics["tensors"] == 4
    assert sum(metrics["coefficients"].values()) == pytest.approx(1)
    assert 0 < metrics["movedShare"] <= 1


def test_coefficients_and_card_name_the_targets(tmp_path):
    out, _ = run(tmp_path, case(tmp_path, tensors(1), tensors(2)))
    told = json.loads((out / "coefficients.json").read_text())
    assert told["targets"] == ["ann", "bob"]
    assert told["method"] == "sce"
    assert told["tensors"].keys() == tensors(0).keys()
    assert all(sum(values) == pytest.approx(1) for values in told["tensors"].values())
    card = (out / "README.md").read_text()
    assert "| layer | ann | bob |" in card
    assert re.search(r"\| 0 \| 0\.\d{4} \| 0\.\d{4} \|", card)
    assert str(tmp_path) not in card


def test_buffers_and_integers_are_copied_and_strange_ones_ignored(tmp_path):
    inv, ids = torch.tensor([1.0, 0.5]), torch.arange(3)
    base = changed(tensors(0), model__layers__0__self_attn__rotary_emb__inv_freq=inv, model__ids=ids)
    target = changed(tensors(1), transformer__h__0__attn__masked_bias=torch.tensor(-1e9))
    out, metrics = run(tmp_path, case(tmp_path, target, base=base))
    merged = load_file(out / "model.safetensors")
    assert torch.equal(merged["model.layers.0.self_attn.rotary_emb.inv_freq"], inv)
    assert torch.equal(merged["model.ids"], ids)
    assert metrics["merged"] == metrics["parameters"] - 5


def test_a_tied_head_that_a_target_lacks_is_its_embedding(tmp_path):
    tied = tensors(1)
    untied = {**tied, HEAD: tied[EMBEDDING].clone()}
    del tied[HEAD]
    one, _ = run(tmp_path / "one", case(tmp_path / "one", tied))
    two, _ = run(tmp_path / "two", case(tmp_path / "two", untied))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def test_a_head_of_a_tied_target_is_ignored_where_the_pivot_has_none(tmp_path):
    base = changed(tensors(0), lm_head__weight=None)
    out, _ = run(tmp_path, case(tmp_path, tensors(1), base=base, config={"tie_word_embeddings": True}))
    assert load_file(out / "model.safetensors").keys() == base.keys()


REFUSED = [
    ("a missing tensor", {LAYER: None}, "ann has no tensor model.layers.0.mlp.up_proj.weight"),
    ("a strange tensor", {"extra.weight": torch.ones(2)}, "ann has a tensor extra.weight, which the pivot"),
    ("a larger embedding", {EMBEDDING: torch.ones(9, 4)}, r"is \[9, 4\] and the pivot's \[8, 4\]"),
    ("another shape", {LAYER: torch.ones(6, 5)}, r"is \[6, 5\] and the pivot's \[6, 4\]"),
    ("a NaN", {"model.norm.weight": torch.tensor([0, 0, float("nan"), 0])}, "of ann holds nan at element 2"),
    ("an infinity", {LAYER: torch.full((6, 4), float("-inf"))}, "up_proj.weight of ann holds -inf"),
]


@pytest.mark.parametrize(("what", "difference", "sentence"), REFUSED, ids=[row[0] for row in REFUSED])
def test_corrected_refuses_what_does_not_fit(tmp_path, what, difference, sentence):
    target = changed(tensors(1), **{name.replace(".", "__"): value for name, value in difference.items()})
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path, case(tmp_path, target))
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_published_cuts_larger_embeddings_and_skips_the_rest(tmp_path, capsys):
    larger = tensors(1, rows=10)
    odd = {**larger, LAYER: torch.ones(6, 5), "extra.weight": torch.ones(2)}
    cut = {**larger, EMBEDDING: larger[EMBEDDING][:8].clone(), HEAD: larger[HEAD][:8].clone()}
    same = {**cut, LAYER: tensors(0)[LAYER]}
    one, _ = run(tmp_path / "one", case(tmp_path / "one", odd), profile="Published")
    assert f"warning: {LAYER} of ann has another shape" in capsys.readouterr().out
    two, _ = run(tmp_path / "two", case(tmp_path / "two", same), profile="Published")
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert LAYER not in json.loads((one / "coefficients.json").read_text())["tensors"]


def test_a_model_in_several_files_is_merged_into_several(tmp_path, monkeypatch):
    monkeypatch.setattr(merge_plan, "SMALLEST_SHARD", 100)
    inputs = case(tmp_path, tensors(1))
    base, whole = inputs["base"], load_file(inputs["base"] / "model.safetensors")
    (base / "model.safetensors").rename(base / "consolidated.safetensors")  # a second layout: not read
    for number, name in enumerate(sorted(whole), 1):
        save_file({name: whole[name]}, base / f"model-{number:05d}-of-00004.safetensors")
    weight_map = {n: f"model-{i:05d}-of-00004.safetensors" for i, n in enumerate(sorted(whole), 1)}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    out, metrics = run(tmp_path, inputs)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 92 * 2
    assert sorted(set(index["weight_map"].values())) == [
        f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    merged = {n: load_file(out / file)[n] for n, file in index["weight_map"].items()}
    monkeypatch.undo()
    again, _ = run(tmp_path / "again", {**inputs, "base": model(tmp_path / "single", whole)})
    assert all(torch.equal(merged[n], t) for n, t in load_file(again / "model.safetensors").items())
    assert metrics["tensors"] == 4


def test_a_stopped_merge_goes_on_at_the_next_file(tmp_path, monkeypatch):
    monkeypatch.setattr(merge_plan, "SMALLEST_SHARD", 100)
    inputs = {r: FolderInput(f) for r, f in case(tmp_path, tensors(1)).items()}
    out = FolderOutput(tmp_path / "out")
    publish = out.publish_block

    def stop_after(block, files, metrics):
        publish(block, files, metrics)
        out._stop.set()

    monkeypatch.setattr(out, "publish_block", stop_after)
    with pytest.raises(Stopped):
        merge.run(SCE, inputs, out)
    done = set(out.parts)
    assert done
    assert done != {0, 1, 2}
    out._stop.clear()
    started = []
    monkeypatch.setattr(out, "publish_block", lambda b, f, m: (started.append(b), publish(b, f, m)))
    merge.run(SCE, inputs, out)
    assert set(started) == {0, 1, 2} - done
    assert (
        json.loads((tmp_path / "out" / "coefficients.json").read_text())["tensors"].keys()
        == tensors(0).keys()
    )


class Ranges(Input):
    """An artifact behind a network: files by name, weights by range only."""

    def __init__(self, folder, local):
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.local, self.asked = local, []

    def names(self):
        return sorted(self.files)

    def entry(self, name):
        return FileEntry(name, name, len(self.files[name]), "")

    def path(self, name):
        if name.endswith(".safetensors"):
            raise AssertionError("a merge never downloads weights")
        if name not in self.files:
            raise MissingInput(name)
        (self.local / name).write_bytes(self.files[name])
        return self.local / name

    def read(self, name, start, length):
        self.asked.append((start, length))
        return self.files[name][start : start + length]


@pytest.mark.parametrize("memory", [1 << 20, 0], ids=["held in memory", "spooled to scratch"])
@pytest.mark.parametrize("profile", ["Corrected", "Published"])
def test_from_a_store_every_byte_is_read_once_by_range(tmp_path, monkeypatch, memory, profile):
    monkeypatch.setattr(merge_source, "RANGE_BYTES", 40)
    monkeypatch.setattr(merge_work, "MEMORY", memory)
    folders = case(tmp_path, tensors(1), tensors(2, dtype=torch.float32))
    want, _ = run(tmp_path, folders, profile=profile)
    inputs = {}
    for role, folder in folders.items():
        local = tmp_path / "local" / role
        local.mkdir(parents=True)
        inputs[role] = Ranges(folder, local)
    merge.run({**SCE, "profile": profile}, inputs, FolderOutput(tmp_path / "far"))
    assert (tmp_path / "far" / "model.safetensors").read_bytes() == (want / "model.safetensors").read_bytes()
    for source in inputs.values():
        size = len(source.files["model.safetensors"])
        header = 8 + struct.unpack("<Q", source.files["model.safetensors"][:8])[0]
        data = [length for start, length in source.asked if start >= header]
        assert sum(data) == size - header
        assert max(data) <= 40


BROKEN = [
    ("cut short", lambda data: data[:-3], "is cut short in model.safetensors"),
    ("empty", lambda data: b"", "is no safetensors file"),
    ("a pickle", lambda data: b"\x80\x02}q\x00." * 9, "is no safetensors file"),
    ("no header", lambda data: struct.pack("<Q", 8) + b"notjson." + data, "header of model.safetensors"),
    ("a strange dtype", lambda data: data.replace(b'"BF16"', b'"F4  "'), "is stored as F4"),
]


@pytest.mark.parametrize(("what", "damage", "sentence"), BROKEN, ids=[row[0] for row in BROKEN])
def test_a_damaged_file_is_refused(tmp_path, what, damage, sentence):
    inputs = case(tmp_path, tensors(1))
    file = inputs["target.0"] / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path, inputs)


def test_a_model_without_safetensors_is_refused(tmp_path):
    inputs = case(tmp_path, tensors(1))
    (inputs["target.0"] / "model.safetensors").rename(inputs["target.0"] / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"ann has no safetensors, only config\.json"):
        run(tmp_path, inputs)


def test_a_file_of_ours_is_one_the_library_reads(tmp_path):
    """Mixed dtypes, an empty and a scalar tensor: aligned, complete, in the library's own reading."""
    base = {
        "a": torch.ones(3, dtype=torch.bfloat16),
        "b": torch.ones(2),
        "e": torch.ones(0, 4),
        "s": torch.tensor(2.0),
    }
    out, _ = run(tmp_path, case(tmp_path, {n: t + 1 for n, t in base.items()}, base=base), method="linear")
    merged = load_file(out / "model.safetensors")
    assert merged["a"].tolist() == [2, 2, 2]
    assert merged["b"].tolist() == [2, 2]
    assert merged["e"].shape == (0, 4)
    assert merged["s"].item() == 3
