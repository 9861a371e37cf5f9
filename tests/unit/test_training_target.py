"""The files of a target: names, order, tied heads, many files, old tables, and the share that moved."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from fusechat_stages.training import target as target_module
from fusechat_stages.training.target import write_target
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.fuse_case import make_pivot


def written(tmp_path: Path, model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Path, float]:
    out = tmp_path / "target"
    out.mkdir()
    return out, write_target(model, tmp_path / "pivot", out, dtype, leads=True)


def loaded(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return sorted(file.keys())


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_written_where_the_pivot_has_it(tmp_path: Path, tied: bool):
    make_pivot(tmp_path / "pivot", tied=tied)
    out, moved = written(tmp_path, loaded(tmp_path / "pivot"))
    assert names(out / "model.safetensors") == names(tmp_path / "pivot" / "model.safetensors")
    assert ("lm_head.weight" in names(out / "model.safetensors")) != tied
    assert moved == 0


def test_a_tied_head_that_the_pivot_stores_twice_is_stored_twice(tmp_path: Path):
    make_pivot(tmp_path / "pivot", tied=True)
    path = tmp_path / "pivot" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    model = loaded(tmp_path / "pivot")
    with torch.no_grad():
        model.lm_head.weight += 1
    out, _ = written(tmp_path, model)
    found = load_file(out / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    assert not torch.equal(found["lm_head.weight"], tensors["lm_head.weight"])


def test_an_old_files_rotary_table_is_copied(tmp_path: Path):
    make_pivot(tmp_path / "pivot")
    path = tmp_path / "pivot" / "model.safetensors"
    tensors = load_file(path)
    model = loaded(tmp_path / "pivot")
    table = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**tensors, table: torch.arange(4.0)}, path, metadata={"format": "pt"})
    out, _ = written(tmp_path, model)
    assert torch.equal(load_file(out / "model.safetensors")[table], torch.arange(4.0))


def test_moved_is_the_share_of_weights_that_differ(tmp_path: Path):
    make_pivot(tmp_path / "pivot", dtype=torch.bfloat16)
    model = loaded(tmp_path / "pivot")
    with torch.no_grad():
        model.lm_head.weight += 1e-6  # less than bfloat16 sees
    share = model.lm_head.weight.numel() / sum(p.numel() for p in model.parameters())
    out, moved = written(tmp_path, model)
    assert moved == pytest.approx(share, rel=0.02)
    assert torch.equal(load_file(out / "model.safetensors")["lm_head.weight"], model.lm_head.weight)


def test_a_model_over_the_limit_is_written_as_several_files_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(target_module, "SHARD_BYTES", 5000)
    make_pivot(tmp_path / "pivot")
    model = loaded(tmp_path / "pivot")
    out, _ = written(tmp_path, model)
    files = sorted(p.name for p in out.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == names(tmp_path / "pivot" / "model.safetensors")
    again = loaded(out).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_in_other_formats_are_not_copied(tmp_path: Path):
    make_pivot(tmp_path / "pivot")
    for name in ("pytorch_model.bin", "training.jsonl", "README.md", "vocab.txt"):
        (tmp_path / "pivot" / name).write_text("x")
    out, _ = written(tmp_path, loaded(tmp_path / "pivot"))
    there = {p.name for p in out.iterdir()}
    assert "vocab.txt" in there
    assert not there & {"pytorch_model.bin", "training.jsonl", "README.md"}


def test_experts_that_transformers_fuses_are_written_as_the_pivot_has_them(tmp_path: Path):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "pivot")
    pivot = load_file(tmp_path / "pivot" / "model.safetensors")
    assert any("experts.1.w2" in name for name in pivot)
    out, moved = written(tmp_path, loaded(tmp_path / "pivot"))
    found = load_file(out / "model.safetensors")
    assert found.keys() == pivot.keys()
    assert all(torch.equal(found[name], pivot[name]) for name in pivot)
    assert moved == 0
