"""Stage fuse: the pivot, fine-tuned on gold text and on the better of two distributions -> a target model.

params and runtime: `training.recipe`. inputs: model (fetch), pivot (extract), aligned.N (align), selection.N
(filter); the control (strategy SFT) has model and pivot only. output: a model folder in full safetensors
(float32; Published bfloat16) under the pivot's tensor names, config and tokenizer byte for byte the pivot's,
and `training.jsonl`, a line per optimiser step.

Bytes are promised for one process, at equal host, threads and micro-batch: sums over ranks, and kernels of an
accelerator, add in an order that nobody fixes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusechat_stages.artifacts import Input, Output, Stopped
from fusechat_stages.training.examples import Examples, compile_examples
from fusechat_stages.training.job import Job, World
from fusechat_stages.training.recipe import Means, Recipe

VERSION = 1


def run(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Output) -> None:
    """Compile the samples, train on as many processes as the runtime says, publish the model.

    ValueError and BadData for parameters, data and weights that cannot be trained on; Stopped after SIGTERM,
    when a last checkpoint is saved.
    """
    recipe, means = Recipe.read(params, out.runtime), Means.read(out.runtime)
    aligned, selections = _roles(recipe, inputs)
    scratch = _fresh(out.folder / "examples")
    examples = compile_examples(recipe, inputs["pivot"], aligned, selections, scratch)
    job = _job(recipe, means, inputs["model"].folder(), scratch, out)
    _check_ids(job, examples)
    del examples
    if out.stopping:  # to load the model and what was saved of it may take longer than the grace
        raise Stopped("before this attempt's first step; what an earlier one saved is kept")
    node = _node(means)
    metrics = _trained(job, out, node)
    if node > 0:
        out.block_count = 1  # the first machine publishes; entry leaves what lacks a block unpublished
        return
    for path in sorted(job.target.iterdir()):
        out.add(path.name, path)
    out.deterministic = means.processes * means.nodes == 1 and _on_cpu(job)
    out.metrics.update(metrics)


def _roles(recipe: Recipe, inputs: Mapping[str, Input]) -> tuple[list[Input], list[Input]]:
    """aligned.0.. and selection.0.. in order; ValueError where they do not fit the strategy."""
    aligned = [inputs[f"aligned.{n}"] for n in range(len(inputs)) if f"aligned.{n}" in inputs]
    selections = [inputs[f"selection.{n}"] for n in range(len(inputs)) if f"selection.{n}" in inputs]
    most = {"SFT": 0, "Pairwise": 1}.get(recipe.strategy, len(inputs))
    least = 0 if recipe.strategy == "SFT" else 1
    if not least <= len(aligned) <= most:
        raise ValueError(
            f"fuse: strategy {recipe.strategy} takes {least if least == most else f'at least {least}'} "
            f"aligned inputs, got {len(aligned)}; give aligned.0, aligned.1, ... in the sources' order"
        )
    return aligned, selections


def _fresh(folder: Path) -> Path:
    """An empty folder: an earlier attempt in the same scratch may have left half of one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _job(recipe: Recipe, means: Means, model: Path, examples: Path, out: Output) -> Job:
    from fusechat_stages.training.sharding import tokenizer_size

    place = getattr(out.store, "place", None)
    store = {"uri": out.store.uri, "endpoint": place.endpoint, "region": place.region} if place else None
    return Job(
        recipe,
        means,
        examples,
        model,
        out.folder,
        _fresh(out.folder / "target"),
        tokenizer_size(model),
        out.address,
        out.attempt,
        store,
    )


def _check_ids(job: Job, examples: Examples) -> None:
    highest = int(examples.tokens.max())
    if highest >= job.vocabulary:
        raise ValueError(
            f"the pivot's extract has token id {highest}, its tokenizer only {job.vocabulary} ids; the "
            "extract was made with another tokenizer: run it again on this model"
        )


def _trained(job: Job, out: Output, node: int) -> dict[str, Any]:
    if job.means.processes * job.means.nodes > 1:
        from fusechat_stages.training.ranks import run_ranks

        return run_ranks(job, out, job.means.nodes, node)
    from fusechat_stages.training.loop import train
    from fusechat_stages.training.sharding import process_group

    (out.folder / "rendezvous").unlink(missing_ok=True)
    with process_group(job, World()):
        return train(job, World(), out)


def _node(means: Means) -> int:
    """Which of the machines this one is: as PyTorchJob, TrainJob or an Indexed Job tell their Pods."""
    if means.nodes == 1:
        return 0
    told = [os.environ.get(name) for name in ("PET_NODE_RANK", "RANK", "JOB_COMPLETION_INDEX")]
    return int(next((value for value in told if value), "0"))


def _on_cpu(job: Job) -> bool:
    from fusechat_stages.training.sharding import device_of

    return device_of(job, World()).type == "cpu"
