"""The samples that a fusion trains on, compiled once into flat files that every rank maps.

Called by fuse before any rank starts. Reads extract's and align's blocks one at a time and keeps of each row
only the distribution that MinCE chose, so that training reads every position of the dataset at random with
no memory that grows with it. Knows the formats and no model.

Shapes: S samples, N tokens, R rows, K kept tokens; `chosen` is 0 for the pivot and n for source n - 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fusechat.errors import BadData

from fusechat_stages import shards
from fusechat_stages.artifacts import Input
from fusechat_stages.shards import Aligned, Rows
from fusechat_stages.training.recipe import Recipe

FILES = {
    "tokens": np.int32,
    "position": np.int32,
    "topk_ids": np.int32,
    "scores": np.float16,
    "tail": np.float32,
}


@dataclass(frozen=True)
class Examples:
    """All samples, mapped. Row r sits at input position `position[r]` and predicts the token after it."""

    tokens: np.ndarray  # int32[N]
    position: np.ndarray  # int32[R], within the sample
    topk_ids: np.ndarray  # int32[R, K], -1 in an empty slot; K = 0 for a control
    scores: np.ndarray  # float16[R, K]
    tail: np.ndarray  # float32[R], unmapped mass included
    token_offsets: np.ndarray  # int64[S + 1]
    row_offsets: np.ndarray  # int64[S + 1]
    inputs: np.ndarray  # int32[S], input positions needed: the last row's and all before it
    distilled: np.ndarray  # int32[S], rows that carry a distribution
    chosen: np.ndarray  # int16[S]

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def rows(self) -> np.ndarray:
        """int64[S]: supervised rows of each sample."""
        return np.diff(self.row_offsets)


def compile_examples(
    recipe: Recipe,
    pivot: Input,
    aligned: Sequence[Input],
    selections: Sequence[Input],
    folder: Path,
) -> Examples:
    """Write the flat files into `folder` and map them.

    BadData if the inputs are not of one dataset or no sample is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, list[np.ndarray]] = {
        "tokens": [],
        "rows": [],
        "inputs": [],
        "distilled": [],
        "chosen": [],
    }
    names = sorted(n for n in pivot.names() if n.startswith("block-") and n.endswith(".arrow"))
    width = 0
    for name in names:
        rows = shards.read_rows(pivot.path(name))
        others = [shards.read_aligned(a.path(name)) for a in aligned]
        kept = _kept(rows, [s.path(name.replace(".arrow", ".json")) for s in selections])
        _check(name, recipe, rows, others)
        part, facts = _compiled(recipe, rows, others, kept)
        width = part["topk_ids"].shape[1]
        for field, array in part.items():
            with (folder / field).open("ab") as file:
                np.ascontiguousarray(array, FILES[field]).tofile(file)
        for field, values in facts.items():
            index[field].append(values)
    return _indexed(
        folder, {k: np.concatenate(v) if v else np.zeros(0, int) for k, v in index.items()}, width
    )


def _indexed(folder: Path, index: Mapping[str, np.ndarray], width: int) -> Examples:
    if len(index["rows"]) == 0:
        raise BadData(
            "no sample is left to train on: every one lacks a supervised token or was dropped by filter; "
            "see the filter steps' reports for the reasons"
        )
    np.savez(
        folder / "index.npz",
        token_offsets=np.concatenate([[0], np.cumsum(index["tokens"])]).astype(np.int64),
        row_offsets=np.concatenate([[0], np.cumsum(index["rows"])]).astype(np.int64),
        inputs=index["inputs"].astype(np.int32),
        distilled=index["distilled"].astype(np.int32),
        chosen=index["chosen"].astype(np.int16),
        width=np.int64(width),
    )
    return open_examples(folder)


def open_examples(folder: Path) -> Examples:
    """Map what `compile_examples` wrote; every rank calls it for itself."""
    with np.load(folder / "index.npz") as file:
        index = dict(file)
    width = int(index.pop("width"))
    arrays = {name: _mapped(folder / name, dtype) for name, dtype in FILES.items()}
    for name in ("topk_ids", "scores"):
        arrays[name] = arrays[name].reshape(len(arrays["position"]), width)
    if width == 0:
        arrays["tail"] = np.zeros(len(arrays["position"]), np.float32)
    return Examples(**arrays, **index)


def _mapped(path: Path, dtype: type) -> np.ndarray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _kept(rows: Rows, selections: Sequence[Path]) -> np.ndarray:
    """Positions within the block that every selection keeps and that have a row: int64[s]."""
    kept = np.arange(rows.samples)
    for path in selections:
        kept = np.intersect1d(kept, np.array(json.loads(path.read_text())["kept"], dtype=np.int64))
    return kept[np.diff(rows.row_offsets)[kept] > 0]


def _check(name: str, recipe: Recipe, rows: Rows, others: Sequence[Aligned]) -> None:
    for block in (rows, *others) if recipe.distils and not recipe.published else ():
        if block.meta.get("scores") != "logprobs":
            raise BadData(
                f"{name}: scores are {block.meta.get('scores')!r}, profile Corrected needs 'logprobs'; run "
                "extract and align under the same profile"
            )
    for n, other in enumerate(others):
        if not (
            np.array_equal(rows.index, other.index) and np.array_equal(rows.row_offsets, other.row_offsets)
        ):
            raise BadData(
                f"{name}: aligned.{n} has other samples or rows than the pivot's block; it was aligned to "
                "another extract: run align again"
            )


def _compiled(
    recipe: Recipe, rows: Rows, others: Sequence[Aligned], kept: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One block's flat arrays and its per-sample facts, cut at the recipe's maximum length."""
    row_index = ranges(rows.row_offsets[kept], np.diff(rows.row_offsets)[kept])
    owner = np.repeat(np.arange(len(kept)), np.diff(rows.row_offsets)[kept])
    fits = rows.positions()[row_index] + 1 < recipe.maxLength
    row_index, owner = row_index[fits], owner[fits]
    counts = np.bincount(owner, minlength=len(kept))
    chosen = _choice(recipe, others, kept)

    use = counts > 0
    renumber = np.cumsum(use) - 1
    kept, counts, chosen, owner = kept[use], counts[use], chosen[use], renumber[owner]
    position = rows.positions()[row_index]
    last = np.zeros(len(kept), np.int64)
    np.maximum.at(last, owner, position)
    tokens = last + 2  # the last row's own token and the one it predicts
    part = {"tokens": rows.input_ids[ranges(rows.input_offsets[kept], tokens)], "position": position}
    part |= _distributions(recipe, rows, others, row_index, chosen[owner])
    stored = (part["topk_ids"] >= 0).any(axis=1) if recipe.distils else np.zeros(len(owner), bool)
    distilled = np.bincount(owner[stored], minlength=len(kept))
    facts = {"tokens": tokens, "rows": counts, "inputs": last + 1, "distilled": distilled, "chosen": chosen}
    return part, facts


def _choice(recipe: Recipe, others: Sequence[Aligned], kept: np.ndarray) -> np.ndarray:
    if not others:
        return np.zeros(len(kept), np.int64)
    pivot_SN = np.stack([other.ce_pivot[kept] for other in others], axis=1)
    source_SN = np.stack([other.ce_source[kept] for other in others], axis=1)
    return min_ce(pivot_SN, source_SN, published=recipe.published, with_pivot=recipe.withPivot)


def min_ce(pivot_SN: np.ndarray, source_SN: np.ndarray, *, published: bool, with_pivot: bool) -> np.ndarray:
    """Which distribution each sample learns: 0 the pivot's, n source n - 1's: int64[S].

    Published compares cross-entropies per own token in bfloat16. Corrected compares, for each pair, both
    models over the bytes that both scored: so what is compared across sources is how much better than the
    pivot each one is. Ties go to the pivot, then to the first source; NaN never wins.
    """
    pivot_SN, source_SN = (
        np.where(np.isfinite(a), a, np.inf).astype(np.float32) for a in (pivot_SN, source_SN)
    )
    if published:
        scores = np.concatenate([_bfloat16(pivot_SN[:, :1]), _bfloat16(source_SN)], axis=1)
    else:
        gain = np.where(np.isinf(source_SN), np.inf, source_SN - pivot_SN)
        scores = np.concatenate([np.zeros_like(pivot_SN[:, :1]), gain], axis=1)
    if not with_pivot:
        return np.argmin(scores[:, 1:], axis=1) + 1
    return np.argmin(scores, axis=1)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return np.where(np.isfinite(values), rounded.astype(np.uint32).view(np.float32), values)


def _distributions(
    recipe: Recipe, rows: Rows, others: Sequence[Aligned], row_index: np.ndarray, chosen: np.ndarray
) -> dict[str, np.ndarray]:
    """The chosen ids, scores and tail of every row. Published fills a row that alignment left empty with
    the pivot's, as the release does; Corrected leaves it empty and it is not distilled."""
    if not recipe.distils:
        return {"topk_ids": np.zeros((0, 0), np.int32), "scores": np.zeros((0, 0)), "tail": np.zeros(0)}
    width = max([rows.topk_ids.shape[1], *(o.topk_ids.shape[1] for o in others)])
    ids = _wide(rows.topk_ids[row_index], width, -1)
    scores = _wide(rows.scores[row_index], width, -np.inf)
    tail = rows.tail[row_index].astype(np.float32)
    for n, other in enumerate(others, start=1):
        here = chosen == n
        if recipe.published:
            here &= (other.topk_ids[row_index] >= 0).any(axis=1)
        source = row_index[here]
        ids[here] = _wide(other.topk_ids[source], width, -1)
        scores[here] = _wide(other.scores[source], width, -np.inf)
        tail[here] = other.tail[source] + other.unmapped[source]
    return {"topk_ids": ids, "scores": scores, "tail": tail}


def _wide(array: np.ndarray, width: int, fill: float) -> np.ndarray:
    missing = width - array.shape[1]
    return np.pad(array, ((0, 0), (0, missing)), constant_values=fill) if missing else np.array(array)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenation of arange(start, start + length) for every pair: int64."""
    starts, lengths = np.asarray(starts, np.int64), np.asarray(lengths, np.int64)
    first = np.cumsum(lengths) - lengths
    return np.repeat(starts - first, lengths) + np.arange(int(lengths.sum()), dtype=np.int64)
