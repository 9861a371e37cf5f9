"""Stage merge: the targets become one model in weight space (arXiv 2408.07990, section 3.3).

params: {method, profile, ...} (numerics.merge_settings). inputs: base (the pivot, fetch) and target.0,
target.1, ... (fuse). runtime: {labels: the targets' names, run, pivot}. Output: a model folder with exactly
the pivot's tensor names, shapes and dtypes, in files that are blocks of their own, so that a stopped merge
goes on at the next file; the pivot's other files byte for byte; coefficients.json and README.md.

Weights are read by byte range and merged in tiles on every core: what is held in memory grows neither with
the model nor with its largest tensor (Published holds whole tensors, as the released code did).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fusechat_stages import merge_card
from fusechat_stages.artifacts import FolderOutput, Input, Output
from fusechat_stages.merge_plan import Shard, shards, tasks
from fusechat_stages.merge_tensors import INDEX, Place, Weights, index_json
from fusechat_stages.merge_work import PIVOT, Merger, one_thread_each
from fusechat_stages.numerics.merge_settings import Settings

VERSION = 2

OWN = ("README.md", "coefficients.json", "training.jsonl", "metrics.json")
WEIGHT_FILES = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".gguf",
    ".h5",
)


def run(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Output) -> None:
    """Merge file by file. ValueError for models that do not fit together or are not finite."""
    if out.shard[1] != 1:
        raise ValueError(f"merge runs in one piece, got {out.shard[1]} shards; leave its shards at 1")
    roles = [f"target.{i}" for i in range(sum(name.startswith("target.") for name in inputs))]
    settings = Settings.of(params, len(roles))
    labels = tuple(str(label) for label in out.runtime.get("labels") or roles)
    origin = merge_card.Origin(str(out.runtime.get("pivot", "")), labels)
    with ExitStack() as stack:
        models = [Weights(inputs["base"], PIVOT)]
        models += [Weights(inputs[role], label) for role, label in zip(roles, labels, strict=True)]
        for model in models:
            stack.callback(model.close)
        found = tasks(models[0], models[1:], settings.profile == "Published")
        for task in found:
            for label, target in zip(labels, task.targets, strict=False):
                if target is None:
                    print(
                        f"warning: {task.place.name} of {label} has another shape and is left out", flush=True
                    )
        planned = shards(found)
        stack.enter_context(one_thread_each())
        far = not all(model.folder for model in models)
        Merger(settings, labels, planned, out, far).run()
    _describe(inputs["base"], planned, settings, origin, out)


def summarise(sums: dict[str, Any]) -> dict[str, Any]:
    """Shares and means over the merged elements; the tensors' coefficients have a file of their own."""
    merged = max(sums.get("merged", 0), 1)
    weighted = sums.get("weighted", {})
    told = {key: value for key, value in sums.items() if key not in ("coefficients", "weighted", "moved")}
    return {
        **told,
        "movedShare": sums.get("moved", 0) / merged,
        "coefficients": {label: value / merged for label, value in weighted.items()},
    }


def _describe(
    base: Input, planned: list[Shard], settings: Settings, origin: merge_card.Origin, out: Output
) -> None:
    """All that is not weights."""
    for name in base.names():
        if name not in OWN and not name.endswith(WEIGHT_FILES):
            out.add(name, base.path(name))
    if len(planned) > 1:
        places: list[tuple[str, list[Place]]] = [(s.name, [t.place for t in s.tasks]) for s in planned]
        _add(out, INDEX, index_json(places))
    coefficients = _coefficients(out)
    _add(out, "coefficients.json", merge_card.coefficients_json(settings, origin, coefficients))
    _add(out, "README.md", merge_card.card(settings, origin, coefficients))


def _coefficients(out: Output) -> dict[str, list[float]]:
    """Those of every block, also of those that an earlier attempt published."""
    if isinstance(out, FolderOutput):
        published = list(out.parts.values())
    else:
        published = [part.metrics for part in out.store.parts(out.address).values()]
    return {name: values for metrics in published for name, values in metrics["coefficients"].items()}


def _add(out: Output, name: str, text: str) -> None:
    path: Path = out.folder / name
    path.write_text(text)
    out.add(name, path)
