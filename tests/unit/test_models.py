"""Loading of models: the head of every family kept whole, and bad folders refused with one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fusechat_stages import models
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests import tokenizers

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"final_logit_softcapping": 0.5, "sliding_window": 8},
    "phi3": {},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def tiny(family: str = "llama", seed: int = 0, **changes):
    """A random model of two layers."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES.get(family, {}), **changes})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_head_gives_the_models_own_logits(family):
    model = tiny(family)
    ids_BT = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    hidden_BTH = models.hidden_states(model, ids_BT)
    found = torch.stack([models.head_logits(model, hidden_TH) for hidden_TH in hidden_BTH])
    wanted = model(input_ids=ids_BT, use_cache=False).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert models.backbone(model) is model.model


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_right_padding_needs_no_mask(family):
    model = tiny(family)
    ids_1T = torch.randint(3, 96, (1, 9), generator=torch.Generator().manual_seed(2))
    padded_2T = torch.zeros((2, 14), dtype=torch.long)
    padded_2T[0, :9] = ids_1T[0]
    padded_2T[1] = 5
    alone = models.hidden_states(model, ids_1T)[0]
    torch.testing.assert_close(models.hidden_states(model, padded_2T)[0, :9], alone, rtol=0, atol=1e-5)


def test_the_head_can_be_trained_through():
    model = tiny("gemma2")
    hidden_RH = torch.randn(3, 32, requires_grad=True)
    models.head_logits(model, hidden_RH).sum().backward()
    assert hidden_RH.grad is not None
    assert hidden_RH.grad.abs().sum() > 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a tokenizer that fits it."""
    tokenizer = tokenizers.byte_level(300)
    tiny(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_and_its_tokenizer_come_back_as_they_were_saved(folder):
    tokenizer = models.load_tokenizer(folder)
    model = models.load_model(folder, "float32", tokenizer=tokenizer)
    assert model.dtype == torch.float32
    assert not model.training
    want = tokenizers.byte_level(300)
    text = "Hello, <|im_start|>user 你好"
    assert tokenizer(text).input_ids == want(text).input_ids
    assert tokenizer.eos_token == want.eos_token
    assert tokenizer.chat_template == want.chat_template
    assert models.load_model(folder, "bfloat16").dtype == torch.bfloat16


def test_a_tokenizer_is_what_its_file_says_whatever_class_its_config_names(folder):
    wanted = models.load_tokenizer(folder)("Hello  there").input_ids
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "LlamaTokenizer"}))
    found = models.load_tokenizer(folder)
    assert type(found).__name__ == type(tokenizers.byte_level()).__name__
    assert found("Hello  there").input_ids == wanted


def rewrite(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def not_finite(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].view(-1)[7].fill_(torch.nan))


def infinite(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors["model.norm.weight"][3].fill_(torch.inf))


def pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def fewer_rows(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    rewrite(folder, lambda t: t.update({n: w[:200].clone() for n, w in t.items() if w.shape[0] > 200}))


def missing_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.weight"))


def other_shape(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"model.norm.weight": torch.ones(7)}))


def cut_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    changed = {**config, "model_type": "internlm2", "auto_map": {"AutoModelForCausalLM": "modeling.X"}}
    (folder / "config.json").write_text(json.dumps(changed))


BAD = [
    (not_finite, "up_proj.weight has NaN or infinite values"),
    (infinite, "norm.weight has NaN or infinite values"),
    (pickle_only, r"pickles only .pytorch_model.bin.*expected .*safetensors"),
    (no_weights, "no weights in it"),
    (no_config, "no config.json in it"),
    (fewer_rows, r"vocabulary is larger than the model: .* where the embedding has 200 rows"),
    (missing_tensor, "1 tensors are missing, such as model.layers.0.self_attn.q_proj.weight"),
    (other_shape, r"model.norm.weight has shape \[7\], but config.json says \[32\]"),
    (cut_file, "cannot be loaded"),
    (remote_code, "'internlm2' needs its repository's own code, which is never run"),
]


@pytest.mark.parametrize(("spoil", "sentence"), BAD, ids=lambda value: getattr(value, "__name__", None))
def test_a_bad_model_is_refused_with_one_sentence(folder, spoil, sentence):
    spoil(folder)
    with pytest.raises(ValueError, match=sentence) as raised:
        models.load_model(folder, "float32")
    assert "\n" not in str(raised.value)


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(ValueError, match="dtype 'int8' is not known, expected one of float32, bfloat16"):
        models.load_model(folder, "int8")


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_a_bad_tokenizer_is_refused_with_one_sentence(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="its tokenizer cannot be read"):
        models.load_tokenizer(folder)


def test_a_folder_without_a_tokenizer_says_what_it_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer in it, expected tokenizer\.json"):
        models.load_tokenizer(tmp_path)


def test_attention_falls_back_to_sdpa_without_an_accelerator():
    assert models.attention_for("eager", torch.float32) == "eager"
    if not torch.cuda.is_available():
        assert models.attention_for("auto", torch.bfloat16) == "sdpa"


@pytest.mark.parametrize(
    ("name", "read"),
    [("model-00001-of-00002.safetensors", True), ("tokenizer.json", True), ("chat_template.jinja", True),
     ("consolidated.safetensors", False), ("pytorch_model.bin", False),
     ("original/params.json", False), ("README.md", False)],
)  # fmt: skip
def test_only_files_that_are_read_are_brought(name, read):
    assert models.needed(name) is read


@torch.inference_mode()
def test_a_family_whose_backbone_has_other_outputs_gives_its_logits_too():
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=96)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids_1T = torch.arange(3, 15)[None]
    found = models.head_logits(model, models.hidden_states(model, ids_1T)[0])
    torch.testing.assert_close(found, model(input_ids=ids_1T).logits[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("given", "sees"), [("", False), ("0", False), ("2", True)])
def test_a_device_is_picked_where_what_was_given_is_seen(monkeypatch, given, sees):
    monkeypatch.setenv("FUSECHAT_GPUS", given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees)
    assert models.pick_device().type == ("cuda" if sees else "cpu")


def test_gpus_that_torch_does_not_see_are_not_held_while_cpus_compute(monkeypatch):
    monkeypatch.setenv("FUSECHAT_GPUS", "8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"given 8 GPUs and torch .* finds none .*TORCH_INDEX.*gpus: 0"):
        models.pick_device()
