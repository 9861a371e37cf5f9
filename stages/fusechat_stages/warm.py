"""Imported by the local runner's server: loads, without starting a thread, what every model step imports."""

import pyarrow
import safetensors.torch
import torch.optim
import transformers.models.auto.modeling_auto
import transformers.models.auto.tokenization_auto

import fusechat_stages.artifacts
import fusechat_stages.entry
import fusechat_stages.shards

__all__ = ["fusechat_stages", "pyarrow", "safetensors", "torch", "transformers"]
