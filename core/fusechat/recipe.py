"""Which steps a FusionRun has, what each hashes (`params`, inputs) and what it does not (`runtime`).

Pure. Called by plan, which gives the steps their addresses. The only place where a field of the spec becomes
a parameter of a stage: what changes bytes goes into `params`, sizes, labels and devices into `runtime`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fusechat.pins import origins
from fusechat.spec import FusionRun, Model
from fusechat.steps import Step, Subject

SCORES = {"Corrected": "logprobs", "Published": "logits"}
MERGE_PARAMS: Mapping[str, tuple[str, ...]] = {
    "sce": ("variant", "selectTopK"),
    "linear": ("weights", "normalize"),
    "task_arithmetic": ("weights", "lambda", "normalize"),
    "ties": ("weights", "density", "lambda", "normalize"),
    "dare_linear": ("weights", "density", "lambda", "normalize", "seed"),
    "dare_ties": ("weights", "density", "lambda", "normalize", "seed"),
    "slerp": ("t",),
    "varm": (),
}
"""What each merge method hashes: a field that it does not read must not change its address."""


def steps(run: FusionRun, pins: Mapping[str, str]) -> Iterator[Step]:
    """Every step of the run after its inputs, not addressed yet; an origin that `pins` lacks has no pin."""
    spec = run.spec
    yield from _fetches(run, pins)
    for model in (spec.pivot, *spec.sources):
        yield _extract(run, model)
    for source in spec.sources:
        yield from _align(run, source)
    for source in spec.sources:
        yield _filter(run, source)
    yield from _targets(run)
    yield from _evaluations(run)


def _fetches(run: FusionRun, pins: Mapping[str, str]) -> Iterator[Step]:
    for name, origin in origins(run).items():
        params = {"kind": origin.kind, "pin": pins.get(name), **origin.params()}
        runtime = {"uri": origin.uri, "revision": origin.revision, "name": name}
        yield Step(f"fetch-{name}", "fetch", params, runtime=runtime, source=name)


def _extract(run: FusionRun, model: Model) -> Step:
    extract, pivot = run.spec.extract, run.spec.pivot
    params = {
        "profile": run.spec.profile,
        "template": _template(run, model),
        "topK": extract.top_k,
        "maxLength": extract.max_length,
        "dtype": extract.dtype,
        "scores": SCORES[run.spec.profile],
    }
    role = "pivot" if model is pivot else model.name
    inputs = {"model": f"fetch-{role}", "dataset": "fetch-dataset"}
    runtime = {"tokensPerBatch": extract.tokens_per_batch}
    return Step(
        f"extract-{role}",
        "extract",
        params,
        inputs,
        None,
        run.spec.dataset.shards,
        runtime,
        source=model.name,
    )


def _template(run: FusionRun, model: Model) -> Any:
    """Published: the pivot's template for all, its separator replaced by the model's own end token."""
    if run.spec.profile == "Corrected" or model is run.spec.pivot:
        return model.template
    return {"name": run.spec.pivot.template, "endOfTurn": "model"}


def _align(run: FusionRun, source: Model) -> Iterator[Step]:
    spec, shards = run.spec, run.spec.dataset.shards
    models = {"pivotModel": "fetch-pivot", "sourceModel": f"fetch-{source.name}"}
    sides = {"pivot": "extract-pivot", "source": f"extract-{source.name}"}
    shared = {
        "profile": spec.profile,
        "pivotTemplate": _template(run, spec.pivot),
        "sourceTemplate": _template(run, source),
    }

    def align(op: str, inputs: Mapping[str, str], count: int, **params: Any) -> Step:
        name = f"align-{source.name}" if op == "rows" else f"{op}-{source.name}"
        told = {"op": op, **shared, **params}
        return Step(name, "align", told, {**inputs, **models}, shards=count, source=source.name)

    method, learned = spec.align.method, {}
    if spec.profile == "Published":
        if method == "MS":
            yield align("count", sides, shards)
            learned = {"counts": f"count-{source.name}"}
        yield align("map", learned, 1, method=method)
        learned = {**learned, "map": f"map-{source.name}"}
    yield align("rows", {**sides, **learned}, shards, method=method, topK=spec.extract.top_k)


def _filter(run: FusionRun, source: Model) -> Step:
    spec = run.spec
    inputs = {"pivot": "extract-pivot", "aligned": f"align-{source.name}"}
    if spec.filter.common_rows:
        others = [other.name for other in spec.sources if other is not source]
        inputs |= {f"common.{i}": f"align-{name}" for i, name in enumerate(others)}
    params, shards = {"profile": spec.profile}, spec.dataset.shards
    return Step(f"filter-{source.name}", "filter", params, inputs, shards=shards, source=source.name)


def _targets(run: FusionRun) -> Iterator[Step]:
    spec, names = run.spec, [source.name for source in run.spec.sources]
    trained = {"model": "fetch-pivot", "pivot": "extract-pivot"}
    for control in spec.controls:
        params = _training(run, control)
        subject = Subject("Control", control.lower())
        yield Step(
            f"control-{control.lower()}", "fuse", params, trained, runtime=_ranks(run), subject=subject
        )
    if spec.fuse.strategy == "MultiTeacher":
        inputs = {**trained, **_aligned(names)}
        params, subject = _training(run, "MultiTeacher"), Subject("Fused", "fused")
        yield Step("fuse", "fuse", params, inputs, runtime={**_ranks(run), "sources": names}, subject=subject)
        return
    for name in names:
        runtime, subject = {**_ranks(run), "sources": [name]}, Subject("Target", name)
        inputs = {**trained, **_aligned([name])}
        params = _training(run, "Pairwise")
        yield Step(f"fuse-{name}", "fuse", params, inputs, None, 1, runtime, subject, source=name)
    yield _merge(run, names)


def _aligned(names: list[str]) -> dict[str, str]:
    roles = {f"aligned.{i}": f"align-{name}" for i, name in enumerate(names)}
    return roles | {f"selection.{i}": f"filter-{name}" for i, name in enumerate(names)}


def _training(run: FusionRun, strategy: str) -> dict[str, Any]:
    fuse = run.spec.fuse
    params = {
        "profile": run.spec.profile,
        "strategy": strategy,
        "epochs": fuse.epochs,
        "learningRate": fuse.learning_rate,
        "scheduler": fuse.scheduler,
        "warmupRatio": fuse.warmup_ratio,
        "weightDecay": fuse.weight_decay,
        "globalBatch": fuse.global_batch,
        "maxLength": run.spec.fuse.max_length,
        "maxGradNorm": fuse.max_grad_norm,
        "seed": fuse.seed,
        "dtype": fuse.dtype,
    }
    if strategy != "SFT":
        params |= {"loss": fuse.loss, "lmWeight": fuse.lm_weight, "temperature": fuse.temperature}
        params |= {"choice": fuse.choice, "withPivot": fuse.with_pivot}
    if run.spec.profile == "Published":
        # Its loss is a mean per micro-batch, so the split of the global batch changes the result.
        params |= {"microBatch": fuse.micro_batch, "worldSize": world_size(run)}
    return params


def world_size(run: FusionRun) -> int:
    """Processes that train one target together: what the user says, else one a GPU, else one."""
    fuse, asked = run.spec.fuse, run.spec.resources.fuse
    return fuse.nodes * (fuse.processes or (asked.gpus if asked and asked.gpus else 1))


def _ranks(run: FusionRun) -> dict[str, Any]:
    fuse = run.spec.fuse
    return {
        "microBatch": fuse.micro_batch,
        "processes": world_size(run) // fuse.nodes,
        "nodes": fuse.nodes,
        "checkpointSeconds": fuse.checkpoint_minutes * 60,
        "gradientCheckpointing": fuse.gradient_checkpointing,
        "attention": fuse.attention,
    }


def _merge(run: FusionRun, names: list[str]) -> Step:
    merge = run.spec.merge
    weights = [float(merge.weights.get(name, 1.0)) for name in names] if merge.weights else [1.0] * len(names)
    values: dict[str, Any] = {
        "variant": merge.variant,
        "selectTopK": merge.select_topk,
        "weights": weights,
        "density": merge.density,
        "lambda": merge.lambda_,
        "normalize": merge.normalize,
        "seed": merge.seed,
        "t": merge.t,
    }
    params: dict[str, Any] = {"method": merge.method, "profile": run.spec.profile}
    params |= {name: values[name] for name in MERGE_PARAMS[merge.method]}
    inputs = {"base": "fetch-pivot"} | {f"target.{i}": f"fuse-{name}" for i, name in enumerate(names)}
    runtime = {"labels": names, "pivot": run.spec.pivot.name}
    return Step("merge", "merge", params, inputs, runtime=runtime, subject=Subject("Fused", "fused"))


def subjects(run: FusionRun) -> list[tuple[Subject, str, Any]]:
    """(subject, the step with its model, its template) of all that the run evaluates, in table order."""
    spec = run.spec
    own = spec.pivot.template
    found = [(Subject("Pivot", spec.pivot.name), "fetch-pivot", own)]
    found += [(Subject("Source", s.name), f"fetch-{s.name}", s.template) for s in spec.sources]
    found += [(Subject("Control", c.lower()), f"control-{c.lower()}", own) for c in spec.controls]
    if spec.fuse.strategy == "MultiTeacher":
        found.append((Subject("Fused", "fused"), "fuse", own))
    else:
        found += [(Subject("Target", s.name), f"fuse-{s.name}", own) for s in spec.sources]
        found.append((Subject("Fused", "fused"), "merge", own))
    wanted = {name.rstrip("s") if name.endswith("s") else name for name in spec.evaluate.subjects}
    return [item for item in found if item[0].kind in wanted]


def _evaluations(run: FusionRun) -> Iterator[Step]:
    for benchmark, data, params in _benchmarks(run):
        for subject, model, template in subjects(run):
            told = {"benchmark": benchmark, "template": template, "dtype": run.spec.extract.dtype, **params}
            prefix = "evaluate" if benchmark == "exactMatch" else benchmark.lower()
            alone = subject.kind in ("Pivot", "Fused")
            name = f"{prefix}-{subject.kind.lower()}" + ("" if alone else f"-{subject.name}")
            runtime = {"subject": {"kind": subject.kind, "name": subject.name}}
            yield Step(name, "evaluate", told, {"model": model, **data}, runtime=runtime, subject=subject)


def not_scored(run: FusionRun) -> str:
    """What the spec asks for that no stage of this version does, as a sentence; "" where all is done."""
    evaluate = run.spec.evaluate
    asked = {"mtBench": evaluate.mt_bench, "alpacaEval": evaluate.alpaca_eval}
    if missing := [f"spec.evaluate.{name}" for name, judged in asked.items() if judged]:
        return f"{', '.join(missing)}: not available yet; remove it, or measure with exactMatch"
    return ""


def _benchmarks(run: FusionRun) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    evaluate = run.spec.evaluate
    if asked := evaluate.exact_match:
        yield "exactMatch", {"questions": "fetch-exactmatch"}, {"maxNewTokens": asked.max_new_tokens}
    if evaluate.perplexity:
        yield "perplexity", {"dataset": "fetch-perplexity"}, {"maxLength": run.spec.extract.max_length}
    if judged := evaluate.mt_bench:
        yield "mtBench", {}, {"maxNewTokens": judged.max_new_tokens, "judge": judged.judge.model}
    if compared := evaluate.alpaca_eval:
        yield "alpacaEval", {}, {"maxNewTokens": compared.max_new_tokens, "judge": compared.judge.model}
