"""Loading of models and tokenizers, their backbone and their head. The only importer of transformers.

Used by extract, align, fuse and evaluate. Knows folders of files and nothing of stores, templates or rows.
Safetensors only and no remote code: what is loaded here was written by strangers.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "spiece.model",
)


def needed(name: str) -> bool:
    """Whether a model folder's file is read here: what an input must bring from the store.

    Not the second copy of the weights that Mistral's repositories have (consolidated.safetensors).
    """
    if "/" in name or name.startswith("consolidated"):
        return False
    return name.endswith((".safetensors", ".json", ".jinja", ".model", ".tiktoken", ".txt"))


def pick_device() -> torch.device:
    """The accelerator if torch finds one, else the CPU.

    ValueError in a Pod with GPUs (FUSECHAT_GPUS) of which torch finds none: it would only hold them.
    """
    given = os.environ.get("FUSECHAT_GPUS") or "0"
    if torch.cuda.is_available() or given == "0":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    built = torch.version.cuda or "none, it is the CPU build"
    raise ValueError(
        f"the Pod was given {given} GPUs and torch {torch.__version__} finds none (its CUDA: {built}); build "
        "the stages image with TORCH_INDEX for your CUDA, or set gpus: 0 for the stage in spec.resources"
    )


def load_tokenizer(folder: Path | str) -> Any:
    """The folder's tokenizer as `PreTrainedTokenizerFast`, exactly as `tokenizer.json` says.

    Never through the class its config names: those rebuild the pre-tokenizer from their own idea of the
    model and give other ids. Only a folder without tokenizer.json is converted by its class. ValueError if
    there is none or it cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{folder.name}: no tokenizer in it, expected tokenizer.json; add the tokenizer's files"
        )
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(
                str(folder), local_files_only=True, clean_up_tokenization_spaces=False
            )
        else:
            found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            tokenizer = _as_fast(found)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ValueError(
            f"{folder.name}: its tokenizer cannot be read ({_first_line(error)}); "
            "save it again with a current transformers, with tokenizer.json"
        ) from error
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _as_fast(found: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    kept = {name: getattr(found, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    fast = PreTrainedTokenizerFast(tokenizer_object=found.backend_tokenizer, **kept)
    fast.chat_template = found.chat_template
    return fast


def load_model(
    folder: Path | str,
    dtype: str,
    device: torch.device | str | None = None,
    attention: str = "auto",
    tokenizer: Any = None,
) -> Any:
    """The folder's causal language model in evaluation mode, checked.

    `dtype` is "float32" or "bfloat16". `device` None: the accelerator, spread over all of them (and over
    host memory) by accelerate when the model does not fit one; else the CPU. `attention` "auto" takes
    flash-attn where it can run, else torch's sdpa. ValueError for weights that are pickles only, missing,
    not finite or of other shapes, for code that only the model's repository has, and for a tokenizer
    (`tokenizer`, or the folder's) with ids that the embedding has no row for.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known, expected one of {', '.join(DTYPES)}")
    _check_files(folder)
    model, report = _from_pretrained(folder, DTYPES[dtype], device, attention)
    _check_report(folder, report)
    _check_finite(folder, model)
    if tokenizer is None and any((folder / name).is_file() for name in TOKENIZER_FILES):
        tokenizer = load_tokenizer(folder)
    if tokenizer is not None:
        check_vocabulary(tokenizer, model)
    return model.eval()


def check_vocabulary(tokenizer: Any, model: Any) -> None:
    """ValueError if an ordinary token of the tokenizer has no row in the model's embedding.

    Control tokens may lie beyond it (Gemma 3's text models have one for images): a text that contains one
    fails where it is used.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    added = tokenizer.added_tokens_decoder
    beyond = [
        (i, token)
        for token, i in tokenizer.get_vocab().items()
        if i >= rows and not (i in added and added[i].special)
    ]
    if beyond:
        number, token = min(beyond)
        raise ValueError(
            f"the vocabulary is larger than the model: {len(beyond)} tokens such as {token!r} (id {number}) "
            f"where the embedding has {rows} rows; take the tokenizer that belongs to the model"
        )


def backbone(model: Any) -> nn.Module:
    """The part of a causal language model that makes the hidden states its head reads."""
    found = getattr(model, model.base_model_prefix, None)
    if not isinstance(found, nn.Module):
        raise ValueError(f"{type(model).__name__} has no separate backbone; it is not supported")
    return found


def hidden_states(model: Any, input_ids_BT: Tensor) -> Tensor:
    """[B, T, H]: what the head reads, for right-padded ids, with no attention mask.

    Under causal attention no position sees what stands to its right, so right padding needs no mask: the
    fast kernels apply, and a sample's values do not depend on what it is batched with (beyond rounding).
    """
    return backbone(model)(input_ids=input_ids_BT, use_cache=False, return_dict=True).last_hidden_state


def head_logits(model: Any, hidden_RH: Tensor) -> Tensor:
    """[R, V]: the model's own logits of R hidden states, soft-caps and logit scales included.

    It runs the model's own `forward` with the backbone put aside, so that nothing a family does after
    its head is lost, and no family has to be known by name.
    """
    prefix = model.base_model_prefix
    kept = model._modules[prefix]
    model._modules[prefix] = _Given(hidden_RH[None])
    try:
        # Of the class, not of the instance: accelerate's hooks there would move the tensors about.
        return type(model).forward(model, return_dict=True).logits[0]
    finally:
        model._modules[prefix] = kept


class _Given(nn.Module):
    """A backbone that has its hidden states already."""

    def __init__(self, hidden_1RH: Tensor) -> None:
        super().__init__()
        self._hidden = hidden_1RH

    def forward(self, *_: Any, **__: Any) -> Any:
        return _GivenOutput(last_hidden_state=self._hidden)


class _GivenOutput(dict[str, Any]):
    """What a backbone returns, for every family: the hidden states, and None for all else it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return self.get("last_hidden_state" if key == 0 else key)


def attention_for(attention: str, dtype: torch.dtype) -> str:
    """The transformers name of the attention to use: `auto` is flash-attn where it can run, else sdpa."""
    if attention != "auto":
        return attention
    from transformers.utils import is_flash_attn_2_available

    half = dtype in (torch.bfloat16, torch.float16)
    return (
        "flash_attention_2" if half and torch.cuda.is_available() and is_flash_attn_2_available() else "sdpa"
    )


def _check_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder.name}: no config.json in it; expected a transformers model folder")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder.name}: its weights are pickles only ({pickles[0]}), which can run code when loaded; "
            "expected *.safetensors; convert them (save_pretrained) or take a revision that has them"
        )
    raise ValueError(f"{folder.name}: no weights in it, expected *.safetensors")


def _from_pretrained(
    folder: Path, dtype: torch.dtype, device: Any, attention: str
) -> tuple[Any, dict[str, Any]]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    logging.getLogger("accelerate").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    kind = attention_for(attention, dtype)
    kwargs: dict[str, Any] = {
        "dtype": dtype, "use_safetensors": True, "trust_remote_code": False, "local_files_only": True,
        "ignore_mismatched_sizes": True, "output_loading_info": True,
    }  # fmt: skip
    if device is None and torch.cuda.is_available():
        kwargs["device_map"] = "auto"
    try:
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                str(folder), attn_implementation=kind, **kwargs
            )
        except ValueError as error:
            if attention != "auto" or "attention" not in str(error):
                raise
            model, report = AutoModelForCausalLM.from_pretrained(
                str(folder), attn_implementation="eager", **kwargs
            )
    except (ValueError, KeyError, OSError, RuntimeError, ImportError, SafetensorError) as error:
        if "out of memory" in str(error):
            raise
        raise ValueError(f"{folder.name}: the model cannot be loaded: {_why(folder, error)}") from error
    return (model if "device_map" in kwargs else model.to(device or pick_device())), report


def _why(folder: Path, error: Exception) -> str:
    config = json.loads((folder / "config.json").read_text())
    if "trust_remote_code" in str(error) or "auto_map" in config:
        return (
            f"model type {config.get('model_type')!r} needs its repository's own code, which is never run; "
            "use a copy in a format that transformers has (for InternLM2: Llama's)"
        )
    return f"{_first_line(error)} (model type {config.get('model_type')!r})"


def _check_report(folder: Path, report: dict[str, Any]) -> None:
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise ValueError(
            f"{folder.name}: {len(missing)} tensors are missing, such as {missing[0]}; fetch it whole"
        )
    for name, found, expected in sorted(report.get("mismatched_keys", ()), key=str):
        raise ValueError(
            f"{folder.name}: {name} has shape {list(found)}, but config.json says {list(expected)}; "
            "take the config that belongs to the weights"
        )


def _check_finite(folder: Path, model: Any) -> None:
    for name, weight in model.named_parameters():
        if weight.numel() == 0 or weight.device.type == "meta":
            continue
        low, high = torch.aminmax(
            weight.detach()
        )  # NaN in either if anywhere; no temporary of the weight's size
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ValueError(
                f"{folder.name}: weight {name} has NaN or infinite values; take another revision"
            )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
