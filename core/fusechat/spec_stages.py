"""What a FusionRun says of each stage: extract, align, filter, fuse, merge, evaluate; the paper's defaults.

Used by spec.py. The defaults are the flags of FuseChat's README (arXiv 2408.07990), where it names one.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fusechat.spec_types import (
    Base,
    DataUri,
    HttpUrl,
    Line,
    ModelName,
    Revision,
    SecretKey,
    Seed,
    Share,
)

AlignMethod = Literal["MS", "EM", "MinED", "Bytes"]
Dtype = Literal["bfloat16", "float32"]
MergeMethod = Literal["sce", "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp", "varm"]
Subject = Literal["Pivot", "Sources", "Controls", "Targets", "Fused"]
SUBJECTS: tuple[Subject, ...] = ("Pivot", "Sources", "Controls", "Targets", "Fused")
Length = Annotated[int, Field(ge=16, le=1 << 20)]


class Extract(Base):
    """How next-token distributions are taken from a model."""

    top_k: Annotated[int, Field(ge=1, le=1000)] = Field(
        10, description="Most likely tokens kept of each distribution."
    )
    max_length: Length = Field(2048, description="Tokens of a conversation; what is longer is cut.")
    dtype: Dtype = Field(
        "bfloat16", description="Numbers a model computes in, here and when it is evaluated."
    )
    tokens_per_batch: Annotated[int, Field(ge=16, le=1 << 22)] = Field(
        16384, description="Tokens of one forward pass, padding included. Changes memory and speed only."
    )


class Align(Base):
    """How a source's tokens and vocabulary are brought to the pivot's."""

    method: AlignMethod | None = Field(
        None,
        description="Bytes (rows that condition on the same bytes; profile Corrected and its default), or "
        "the release's MS (mapping statistics, the default of Published), EM (exact match) or MinED (least "
        "edit distance), for profile Published.",
    )


class Filter(Base):
    """Which samples reach the training."""

    common_rows: bool = Field(
        False,
        description="Keep only samples that every source has. Joins all sources: a new one recomputes all.",
    )


class Fuse(Base):
    """The training that turns the pivot into a target."""

    strategy: Literal["Pairwise", "MultiTeacher"] = Field(
        "Pairwise",
        description="Pairwise: one target a source. MultiTeacher: one target, the best of all per sample.",
    )
    loss: Literal["ce", "kl"] = Field("ce", description="Distance of the student to the fused distribution.")
    lm_weight: Share = Field(
        0.9, description="Weight of the gold tokens' cross-entropy; the distributions' is 1 - lmWeight."
    )
    temperature: Annotated[float, Field(ge=0.01, le=100.0)] = Field(
        1.0, description="Softens the teachers' kept tokens before they are compared."
    )
    choice: Literal["MinCE"] = Field(
        "MinCE", description="Per sample, the distribution with the least cross-entropy on the gold text."
    )
    with_pivot: bool = Field(
        True, description="Whether the pivot's own distribution takes part in the choice."
    )
    epochs: Annotated[int, Field(ge=1, le=1000)] = Field(3, description="Passes over the kept samples.")
    learning_rate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        5e-6, description="Peak learning rate of AdamW."
    )
    scheduler: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="What the learning rate does after the warm-up."
    )
    warmup_ratio: Share = Field(0.03, description="Share of the steps in which the rate rises from 0.")
    weight_decay: Share = Field(0.0, description="Weight decay of AdamW.")
    global_batch: Annotated[int, Field(ge=1, le=65536)] = Field(
        128, description="Samples of one optimiser step over all processes; part of the address."
    )
    micro_batch: Annotated[int, Field(ge=1, le=4096)] = Field(
        4, description="Samples of one forward pass of one process. Changes memory and speed only."
    )
    max_length: Length | None = Field(None, description="Tokens of a sample. Unset: extract.maxLength.")
    seed: Seed = Field(42, description="Seed of the order of samples.")
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="Numbers of the forward pass; profile Corrected keeps float32 weights."
    )
    max_grad_norm: Annotated[float, Field(ge=0.0, le=1e6)] = Field(
        1.0, description="Gradients are scaled down to this norm; 0 leaves them."
    )
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass: less memory, a third more time."
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="Kernel of the attention; auto takes flash-attn where it is installed, else sdpa."
    )
    checkpoint_minutes: Annotated[int, Field(ge=1, le=1440)] = Field(
        10, description="Minutes between checkpoints, which are written beside the training."
    )
    processes: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Processes of one node. Unset: resources.fuse.gpus, or 1."
    )
    nodes: Annotated[int, Field(ge=1, le=512)] = Field(1, description="Pods that train one target together.")


class Merge(Base):
    """How the targets become one model in weight space."""

    method: MergeMethod = Field(
        "sce",
        description="sce (select, calculate, erase; FuseChat's), varm (by variation ratio), linear, "
        "task_arithmetic, ties, dare_linear, dare_ties, or slerp (exactly two targets).",
    )
    variant: Literal["fuseai", "paper", "mergekit"] = Field(
        "fuseai",
        description="Of sce: fuseai made FuseChat-7B-v2.0, paper is Algorithm 1, mergekit that of >= 0.1.0.",
    )
    select_topk: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.1,
        alias="selectTopK",
        description="Of sce: share of the elements, those that vary most between targets, that count.",
    )
    density: Share = Field(0.5, description="Of ties and dare: share of each target's changes that is kept.")
    weights: dict[ModelName, Annotated[float, Field(ge=-100.0, le=100.0)]] = Field(
        default_factory=dict,
        max_length=50,
        description="Weight of each source's target, by the source's name, for linear, task_arithmetic, ties "
        "and dare; a target that is not named has 1.",
    )
    lambda_: Annotated[float, Field(ge=-100.0, le=100.0)] = Field(
        1.0, alias="lambda", description="Factor of the merged change, for task_arithmetic, ties and dare."
    )
    t: Share = Field(0.5, description="Of slerp: where between the first (0) and the second target (1).")
    normalize: bool | None = Field(
        None,
        description="Divide by the sum of the weights. Unset: as the method does in mergekit (linear and "
        "ties do, the others do not).",
    )
    seed: Seed = Field(42, description="Seed of dare's random choice.")


class ExactMatch(Base):
    """Questions whose answers can be compared."""

    uri: DataUri = Field(description="Questions: records with messages or question, answer, category.")
    revision: Revision | None = Field(None, description="Commit or digest; unset: resolved once.")
    split: Line | None = Field(None, description="Split of the dataset, by name.")
    max_new_tokens: Annotated[int, Field(ge=1, le=65536)] = Field(
        256, description="Tokens a model may answer with."
    )
    limit: Annotated[int, Field(ge=1, le=10**9)] | None = Field(
        None, description="Only the first so many questions."
    )


class Perplexity(Base):
    """Conversations on which the models' cross-entropy is taken."""

    uri: DataUri = Field(description="Conversations, in the dataset's format.")
    revision: Revision | None = Field(None, description="Commit or digest; unset: resolved once.")
    split: Line | None = Field(None, description="Split of the dataset, by name.")
    limit: Annotated[int, Field(ge=1, le=10**9)] | None = Field(
        None, description="Only the first so many conversations."
    )


class Judge(Base):
    """A model that grades answers, behind an OpenAI-compatible endpoint."""

    model: Line = Field("gpt-4-0125-preview", description="Name of the model at the endpoint.")
    base_url: HttpUrl = Field(
        "https://api.openai.com/v1", alias="baseURL", description="Address of the endpoint."
    )
    secret_ref: SecretKey | None = Field(None, description="Where its key is.")
    parallel: Annotated[int, Field(ge=1, le=1024)] = Field(8, description="Requests at one time.")
    requests_per_minute: Annotated[int, Field(ge=1, le=10**6)] | None = Field(
        None, description="Most requests sent in a minute."
    )


class MTBench(Base):
    """MT-Bench: 80 two-turn questions, graded 1 to 10 by a judge."""

    judge: Judge = Field(description="Who grades.")
    uri: DataUri | None = Field(
        None, description="Questions, prompts and references in FastChat's folder layout."
    )
    revision: Revision | None = Field(None, description="Commit or digest of them; unset: resolved once.")
    max_new_tokens: Annotated[int, Field(ge=1, le=65536)] = Field(
        1024, description="Tokens a model may answer with, each turn."
    )


class AlpacaEval(Base):
    """AlpacaEval 2.0: 805 instructions, win rates against a reference model's answers."""

    judge: Judge = Field(description="Who compares.")
    uri: DataUri | None = Field(None, description="Instructions with the reference model's outputs.")
    revision: Revision | None = Field(None, description="Commit or digest of them; unset: resolved once.")
    max_new_tokens: Annotated[int, Field(ge=1, le=65536)] = Field(
        2048, description="Tokens a model may answer with."
    )


class Evaluate(Base):
    """What is measured, and of which models; each model under its own template."""

    subjects: tuple[Subject, ...] = Field(
        SUBJECTS, min_length=1, max_length=5, description="Models that are measured."
    )
    exact_match: ExactMatch | None = Field(None, description="Share of questions answered exactly.")
    perplexity: Perplexity | None = Field(None, description="Perplexity on held-out conversations.")
    mt_bench: MTBench | None = Field(None, description="MT-Bench.")
    alpaca_eval: AlpacaEval | None = Field(None, description="AlpacaEval 2.0.")
