"""The trained model as files: the pivot's tensor names in full safetensors, and how much of it moved.

Called by the training loop at its end, in every rank (sharded tensors are gathered one at a time); the leader
writes. Knows safetensors and the pivot's folder, nothing of training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fusechat_stages.training.sharding import whole

SHARD_BYTES = 2 << 30
"""Most bytes of one file: what is held in memory beside the model while writing."""

WEIGHTS = (
    ".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".h5",
    ".msgpack",
)  # fmt: skip
"""Files of a model folder that hold weights or list them: not copied."""


def write_target(model: nn.Module, pivot: Path, target: Path, dtype: torch.dtype, *, leads: bool) -> float:
    """Write the model into `target` and return the share of its weights that are not the pivot's any more.

    Tensors have the pivot's names and order: a head tied to its embedding is written where the pivot's files
    have it. A tensor of the pivot that the model does not hold (an old file's rotary table) is copied. Every
    rank must call it; only the leader's return value counts.
    """
    writer = _Writer(target) if leads else None
    moved = total = 0
    for name, was, now in _tensors(model, pivot):
        now = now.to(dtype) if now.is_floating_point() else now
        if writer:
            writer.add(name, now)
            moved += int((now != was.to(now.dtype)).sum())
            total += now.numel()
    if writer:
        writer.close()
        _copy_rest(pivot, target)
    return moved / max(1, total)


def _tensors(model: nn.Module, pivot: Path) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, the pivot's tensor, the model's) in the order of the pivot's files."""
    have = _state(model)
    names = [name for path in weight_files(pivot) for name in _names(path)]
    if missing := [name for name in names if name not in have and _is_weight(name)]:
        have = _renamed(model, have, missing)
    for path in weight_files(pivot):
        with safe_open(path, "pt") as file:
            for name in _names(path):
                was = file.get_tensor(name)
                yield name, was, whole(have[name]) if name in have else was


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }


def _is_weight(name: str) -> bool:
    """Tables that old files carry beside the weights are computed by today's models."""
    return not name.endswith(("inv_freq", "masked_bias", "attn.bias"))


def _renamed(model: nn.Module, have: dict[str, torch.Tensor], missing: list[str]) -> dict[str, torch.Tensor]:
    """The state under the file's names, where transformers holds a family's weights in another shape (fused
    experts). Gathers the whole model at once."""
    from transformers.core_model_loading import revert_weight_conversion

    full = {name: whole(tensor) for name, tensor in have.items()}
    found = revert_weight_conversion(model, full)
    if still := [name for name in missing if name not in found]:
        raise ValueError(
            f"the pivot's file has a tensor {still[0]!r} that its loaded model lacks ({len(still)} such); "
            "the model's class does not fit its weights: correct config.json"
        )
    return {**full, **found}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder that its index names, or all of them where there is none."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = json.loads(index.read_text())["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    return sorted(folder.glob("*.safetensors"))


def _names(path: Path) -> list[str]:
    """Tensor names in the order of their bytes."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return sorted(header, key=lambda name: (header[name]["data_offsets"][0], name))


def _copy_rest(pivot: Path, target: Path) -> None:
    """Config, tokenizer, templates: byte for byte. Hidden files and folders stay behind."""
    for path in sorted(pivot.iterdir()):
        if path.is_file() and not path.name.endswith(WEIGHTS) and not _is_ours(path.name):
            shutil.copyfile(path, target / path.name)


def _is_ours(name: str) -> bool:
    return name.startswith(".") or name in (
        "metrics.json",
        "training.jsonl",
        "coefficients.json",
        "README.md",
    )


@dataclass
class _Writer:
    """Tensors in, safetensors files of bounded size out; an index where there is more than one."""

    folder: Path
    held: dict[str, torch.Tensor] = field(default_factory=dict)
    bytes: int = 0
    total: int = 0
    files: list[tuple[Path, list[str]]] = field(default_factory=list)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if self.held and self.bytes + tensor.nbytes > SHARD_BYTES:
            self._flush()
        shared = any(tensor.data_ptr() == other.data_ptr() for other in self.held.values())
        self.held[name] = tensor.clone() if shared else tensor.contiguous()
        self.bytes += tensor.nbytes
        self.total += tensor.nbytes

    def _flush(self) -> None:
        path = self.folder / f"part-{len(self.files)}.tmp"
        save_file(self.held, path, metadata={"format": "pt"})
        self.files.append((path, list(self.held)))
        self.held, self.bytes = {}, 0

    def close(self) -> None:
        self._flush()
        count = len(self.files)
        weight_map = {}
        for number, (path, names) in enumerate(self.files, start=1):
            name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            path.rename(self.folder / name)
            weight_map |= dict.fromkeys(names, name)
        if count > 1:
            index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
            (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
