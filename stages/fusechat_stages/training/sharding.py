"""A model loaded, put on its device, and sharded by FSDP2 with the policy that the recipe asks for.

Called by the training loop in every rank. Corrected bfloat16: master weights, optimiser state and gradient
reduction in float32, computation in bfloat16, buffers (the rotary tables) as loaded. Published: bfloat16
through and through. One process in float32 is not sharded at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fusechat.errors import UsageError
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from fusechat_stages import models
from fusechat_stages.training.head import Fusion
from fusechat_stages.training.job import Job, World
from fusechat_stages.training.recipe import Recipe

TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for a rank: longer than loading or saving the largest model takes."""


def is_sharded(recipe: Recipe, world: World) -> bool:
    """More than one rank, or a policy (bfloat16 over float32 masters) that FSDP2 is the one to carry out."""
    return world.size > 1 or (recipe.dtype == "bfloat16" and not recipe.published)


@contextmanager
def process_group(job: Job, world: World) -> Iterator[None]:
    """The ranks' process group; of one rank too, for FSDP2 and checkpoints then have one way to do things.
    Gloo on CPUs; CUDA has NCCL beside it."""
    if world.size == world.local_size:
        # One machine talks to itself: whatever its host name resolves to, and where it has no network.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device_of(job, world).type == "cuda" else "gloo",
        init_method=_rendezvous(job, world),
        rank=world.rank,
        world_size=world.size,
        timeout=TIMEOUT,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _rendezvous(job: Job, world: World) -> str:
    if world.size > world.local_size:
        # PyTorchJob and our own Jobs set the plain names, Kubeflow Trainer those with PET_.
        first = os.environ.get("MASTER_ADDR") or os.environ.get("PET_MASTER_ADDR")
        if not first:
            raise UsageError(
                "fuse runs on several machines and MASTER_ADDR is not set; its launcher must name the first"
            )
        port = os.environ.get("MASTER_PORT") or os.environ.get("PET_MASTER_PORT") or "23456"
        return f"tcp://{first}:{port}"
    # A file needs no free port. Its name must be new for every group, or old ranks' entries are read.
    return f"file://{(job.scratch / 'rendezvous').absolute()}"


def device_of(job: Job, world: World) -> torch.device:
    """This rank's device: the configured kind, else what `models.pick_device` finds."""
    kind = torch.device(job.means.device or models.pick_device()).type
    return torch.device(kind, world.local_rank) if kind == "cuda" else torch.device(kind)


def load(job: Job, world: World) -> Fusion:
    """The pivot as a trainable `Fusion`. Ranks of one machine load in turn, so that one copy is in memory."""
    device = device_of(job, world)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for turn in range(world.local_size):
        if turn == world.local_rank:
            fusion = _loaded(job, world, device)
        if world.size > 1:
            dist.barrier()
    return fusion


def _loaded(job: Job, world: World, device: torch.device) -> Fusion:
    recipe, dtype = job.recipe, "bfloat16" if job.recipe.published else "float32"
    sharded = is_sharded(recipe, world)
    where = "cpu" if sharded else device
    model = models.load_model(job.model, dtype, device=where, attention=_attention(job))
    _check_dtypes(model, getattr(torch, dtype))
    _set_mode(model, job.means.gradientCheckpointing)
    fusion = Fusion(model)
    if sharded:
        shard(fusion, recipe, device)
    return fusion


def _attention(job: Job) -> str:
    """By the dtype computed in, which is not the dtype loaded. ValueError where flash-attn is asked for and
    is not there."""
    from transformers.utils import is_flash_attn_2_available

    asked = job.means.attention
    if asked == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            "fuse.attention is flash_attention_2, but flash-attn cannot be used here (not installed, or no "
            "CUDA device); install the extra `flash-attn` on a GPU, or set attention to auto"
        )
    computed = models.DTYPES[job.recipe.dtype]
    return "flash_attention_2" if models.attention_for(asked, computed) == "flash_attention_2" else asked


def _check_dtypes(model: nn.Module, dtype: torch.dtype) -> None:
    wrong = [name for name, p in model.named_parameters() if p.dtype != dtype]
    assert not wrong, f"{wrong[:3]} are not {dtype}"
    tables = [b for name, b in model.named_buffers() if "inv_freq" in name]
    assert all(b.dtype == torch.float32 for b in tables), "rotary tables must be float32"


def _set_mode(model: nn.Module, gradient_checkpointing: bool) -> None:
    """No dropout, whatever the pivot's config says: a step must not depend on how it was split. Checkpointing
    asks its layers whether they are training, so only they are told so."""
    model.requires_grad_(True)
    model.eval()
    if not gradient_checkpointing:
        return
    # transformers renamed it and warns of the old name.
    named = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    next(getattr(model, name) for name in named if hasattr(model, name))({"use_reentrant": False})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def shard(fusion: Fusion, recipe: Recipe, device: torch.device) -> None:
    """FSDP2: each decoder layer a group of its own, all else in the root's. Gradients are summed over ranks,
    for the scale of every row already is the whole step's."""
    policy = MixedPrecisionPolicy()
    if recipe.dtype == "bfloat16" and not recipe.published:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers(fusion.model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(fusion, mesh=mesh, mp_policy=_root(policy))
    for module in fusion.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    assert all(isinstance(p, DTensor) for p in fusion.parameters())


def _root(policy: MixedPrecisionPolicy) -> MixedPrecisionPolicy:
    """The root's own: its output is the loss, in float32; its input is ids and scores, not to be rounded."""
    return MixedPrecisionPolicy(
        param_dtype=policy.param_dtype,
        reduce_dtype=policy.reduce_dtype,
        output_dtype=torch.float32,
        cast_forward_inputs=False,
    )


def layers(model: nn.Module) -> list[nn.Module]:
    """The modules that the model's own class says must not be split: its decoder layers."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in names]
    if found:
        return found
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor on the CPU; a collective where it is sharded."""
    full: Any = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()


def tokenizer_size(folder: Path) -> int:
    """One more than the highest id of the pivot's tokenizer (ids may have gaps); the model's embedding may
    have more rows."""
    return max(models.load_tokenizer(folder).get_vocab().values()) + 1
