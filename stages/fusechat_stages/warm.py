"""Imported by the local runner's server: loads, without starting a thread, what every model step imports.

Each forked step then starts in milliseconds. A model family that is not named here costs its own import.
"""

import pyarrow
import safetensors.torch
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.optim
import transformers.models.auto.modeling_auto
import transformers.models.auto.tokenization_auto
import transformers.models.gemma2.modeling_gemma2
import transformers.models.gpt_neox.modeling_gpt_neox
import transformers.models.llama.modeling_llama
import transformers.models.mistral.modeling_mistral
import transformers.models.qwen2.modeling_qwen2
from fusechat.store_s3 import connect, place

import fusechat_stages.align
import fusechat_stages.entry
import fusechat_stages.evaluate
import fusechat_stages.extract
import fusechat_stages.filter
import fusechat_stages.fuse
import fusechat_stages.merge
import fusechat_stages.report

# Its description of S3 (a large JSON) is read here once, and by no step again. Nothing is connected.
connect(place("s3://warm", "http://127.0.0.1", None, {}), ("", ""))

__all__ = ["fusechat_stages", "pyarrow", "safetensors", "torch", "transformers"]
