"""Stage merge: the targets become one model in weight space (arXiv 2408.07990, section 3.3).

params: {method, profile, ...} (numerics.merge_settings). inputs: base (the pivot, fetch) and target.0,
target.1, ... (fuse). runtime: {labels: the targets' names, run, pivot}. Output: a model folder with exactly
the pivot's tensor names, shapes and dtypes, in files that are blocks of their own, so that a stopped merge
goes on at the next file; the pivot's other files byte for byte; coefficients.json and README.md.

Weights are read by byte range and merged in tiles on every core: what is held in memory grows neither with
the model nor with its largest tensor (Published holds whole tensors, as the released code did).
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fusechat_stages import merge_card
from fusechat_stages.artifacts import FolderOutput, Input, Output, Stopped
from fusechat_stages.merge_plan import Shard, Task, shards, tasks
from fusechat_stages.merge_source import opened, whole
from fusechat_stages.merge_tensors import INDEX, Place, ShardFile, Weights, bytes_of, index_json
from fusechat_stages.numerics import merge_published, merging
from fusechat_stages.numerics.merge_settings import Settings
from fusechat_stages.numerics.merge_tiles import TILE, Stream, Tile, Workspace

VERSION = 1

MEMORY = 192 << 20
"""Bytes of fetched tensors held in memory by all threads together; larger ones go to scratch."""

GETS = 8
"""Ranges fetched from the store at a time."""

PIVOT = "the pivot"
"""What complaints call the base."""

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


@dataclass(frozen=True)
class Merged:
    """What became of one tensor: elements, those that differ from the pivot's, a coefficient per target."""

    name: str
    elements: int
    moved: int
    coefficients: tuple[float, ...] | None


def run(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Output) -> None:
    """Merge file by file. ValueError for models that do not fit together or are not finite."""
    if out.shard[1] != 1:
        raise ValueError(f"merge runs in one piece, got {out.shard[1]} shards; leave its shards at 1")
    roles = [f"target.{i}" for i in range(sum(name.startswith("target.") for name in inputs))]
    settings = Settings.of(params, len(roles))
    labels = tuple(str(label) for label in out.runtime.get("labels") or roles)
    origin = merge_card.Origin(str(out.runtime.get("run", "")), str(out.runtime.get("pivot", "")), labels)
    with ExitStack() as stack:
        models = [Weights(inputs["base"], PIVOT)]
        models += [Weights(inputs[role], label) for role, label in zip(roles, labels, strict=True)]
        for model in models:
            stack.callback(model.close)
        planned = shards(tasks(models[0], models[1:], settings.profile == "Published"))
        stack.enter_context(_one_thread_each())
        _Merger(settings, labels, planned, out).run()
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


class _Merger:
    """Files one after the other, the tensors of a file in parallel; an upload overlaps the next file."""

    def __init__(
        self, settings: Settings, labels: tuple[str, ...], planned: list[Shard], out: Output
    ) -> None:
        self._settings, self._labels, self._planned, self._out = settings, labels, planned, out
        self._total = sum(task.place.numel for shard in planned for task in shard.tasks)
        self._done, self._lock = 0, threading.Lock()
        self._threads = _cores()
        self._local = threading.local()

    def run(self) -> None:
        with (
            ThreadPoolExecutor(GETS, "merge-get") as self._gets,
            ThreadPoolExecutor(self._threads, "merge") as pool,
        ):
            pending: deque[_Pending] = deque()
            try:
                for block in self._out.blocks(len(self._planned)):
                    pending.append(self._start(block, pool))
                    if len(pending) > 1:
                        self._finish(pending.popleft())
                while pending:
                    self._finish(pending.popleft())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _start(self, block: int, pool: ThreadPoolExecutor) -> _Pending:
        shard = self._planned[block]
        file = ShardFile(self._out.folder / shard.name, [task.place for task in shard.tasks])
        largest_first = sorted(shard.tasks, key=lambda task: -task.place.numel)
        return _Pending(block, file, [pool.submit(self._merge, task, file) for task in largest_first])

    def _finish(self, pending: _Pending) -> None:
        found = [future.result() for future in pending.futures]
        pending.file.close()
        self._out.publish_block(
            pending.block, {pending.file.path.name: pending.file.path}, self._metrics(found)
        )

    def _metrics(self, found: list[Merged]) -> dict[str, Any]:
        merged = [one for one in found if one.coefficients is not None]
        weighted = {
            label: sum(one.elements * (one.coefficients or ())[j] for one in merged)
            for j, label in enumerate(self._labels)
        }
        return {
            "tensors": len(found),
            "parameters": sum(one.elements for one in found),
            "merged": sum(one.elements for one in merged),
            "moved": sum(one.moved for one in merged),
            "weighted": weighted,
            "coefficients": {one.name: list(one.coefficients or ()) for one in merged},
        }

    def _merge(self, task: Task, file: ShardFile) -> Merged:
        """One tensor, in a thread of the pool."""
        if self._out.stopping:
            raise Stopped("stopped between two tensors; the finished files are kept")
        torch.set_num_threads(1)
        kept = [j for j, target in enumerate(task.targets) if target is not None]
        if len(kept) < (2 if self._settings.method == "slerp" else 1):
            result = self._copied(task, file)
        elif self._settings.profile == "Published":
            result = self._whole(task, kept, file)
        else:
            result = self._streamed(task, file)
        with self._lock:
            self._done += task.place.numel
        self._out.progress(self._done, self._total, "parameters")
        return result

    def _copied(self, task: Task, file: ShardFile) -> Merged:
        file.write(task.place.name, 0, bytes_of(whole(task.base, self._gets)))
        return Merged(task.place.name, task.place.numel, 0, None)

    def _whole(self, task: Task, kept: list[int], file: ShardFile) -> Merged:
        place = task.place
        base = whole(task.base, self._gets)
        cut = tuple(slice(size) for size in place.shape)
        targets = [whole(target, self._gets)[cut] for target in task.targets if target is not None]
        settings = replace(self._settings, weights=tuple(self._settings.weights[j] for j in kept))
        merged, facts = merge_published.merge_tensor(place.name, base, targets, settings)
        file.write(place.name, 0, bytes_of(merged.contiguous()))
        coefficients = [0.0] * len(task.targets)
        for j, coefficient in zip(kept, facts.coefficients, strict=True):
            coefficients[j] = coefficient
        return Merged(place.name, place.numel, int(torch.count_nonzero(merged != base)), tuple(coefficients))

    def _streamed(self, task: Task, file: ShardFile) -> Merged:
        place, moved = task.place, 0
        rounded_N = torch.empty(TILE, dtype=place.dtype)

        def write(tile: Tile, merged_N: torch.Tensor) -> None:
            nonlocal moved
            values_N = rounded_N[: tile.size].copy_(merged_N)
            moved += _differing(values_N, tile.raw_base)
            file.write(place.name, tile.start * place.dtype.itemsize, bytes_of(values_N))

        stored = [task.base, *(target for target in task.targets if target is not None)]
        with opened(stored, self._gets, MEMORY // self._threads, self._out.folder) as read:
            stream = Stream(place.name, [PIVOT, *self._labels], place.numel, read, self._space())
            facts = merging.merge_tensor(stream, self._settings, write)
        return Merged(place.name, place.numel, moved, facts.coefficients)

    def _space(self) -> Workspace:
        if not hasattr(self._local, "space"):
            self._local.space = Workspace(len(self._labels))
        space: Workspace = self._local.space
        return space


@dataclass(frozen=True)
class _Pending:
    block: int
    file: ShardFile
    futures: list[Future[Merged]]


def _differing(values_N: torch.Tensor, others_N: torch.Tensor) -> int:
    """Elements whose bits differ."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values_N.element_size()]
    return int((values_N.view(width).numpy() != others_N.view(width).numpy()).sum())


def _cores() -> int:
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Tensors are the unit of parallelism: torch's own threads would only fight ours."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
