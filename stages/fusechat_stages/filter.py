"""Stage filter: one pair's aligned rows -> which samples are used, and why the others are not.

A selection, never copied rows. Per block `block-00000.json`: {"kept": [position in the block], "dropped":
{reason: [position]}}. A pair is judged on its own, so that a new source leaves the other pairs alone.
params: {"profile"}. inputs: pivot (extract), aligned (align), and with `filter.commonRows` the other sources'
aligned rows as common.0, common.1, ...: then a sample is kept only if every source can be used on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusechat_stages import shards
from fusechat_stages.artifacts import Input, Output
from fusechat_stages.shards import Aligned

VERSION = 1

NOT_FINITE, NO_ROWS, NO_SOURCE, NOT_COMMON = "notFinite", "noRows", "notInSource", "notCommon"


def run(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Output) -> None:
    """Select block by block. Raises BadData through `shards` for files that are not aligned blocks."""
    names = [name for name in inputs["aligned"].names() if name.startswith("block-")]
    for block in out.blocks(len(names)):
        aligned = shards.read_aligned(inputs["aligned"].path(shards.block_name(block)))
        reasons = judge(aligned)
        for role in sorted(name for name in inputs if name.startswith("common.")):
            other = judge(shards.read_aligned(inputs[role].path(shards.block_name(block))))
            reasons = np.where((reasons == "") & (other != ""), NOT_COMMON, reasons)
        kept = np.flatnonzero(reasons == "")
        dropped = {str(r): np.flatnonzero(reasons == r).tolist() for r in np.unique(reasons) if r}
        path = out.folder / shards.block_name(block, "json")
        path.write_text(json.dumps({"kept": kept.tolist(), "dropped": dropped}))
        out.publish_block(block, {path.name: path}, _metrics(aligned, kept, dropped))
        out.progress(block + 1, len(names), "blocks", **{"from": out.first_block})


def summarise(sums: dict[str, Any]) -> dict[str, Any]:
    """Shares from the sums over blocks."""
    samples, kept = sums.get("samples", 0), sums.get("kept", 0)
    return {
        **sums,
        "keptShare": kept / samples if samples else 0.0,
        "winShare": sums.get("sourceWins", 0) / kept if kept else 0.0,
    }


def judge(aligned: Aligned) -> np.ndarray:
    """The reason each sample is dropped for, "" where it is kept: str[S].

    A sample that only one side has carries no row or only empty ones; a metric or a score that is not
    finite would end in a NaN loss (the release's filter_nan.py looks at the metric alone).
    """
    rows_S = np.diff(aligned.row_offsets)
    used_R = aligned.kind != shards.EMPTY
    stored_RK = aligned.topk_ids >= 0
    bad_R = (stored_RK & ~np.isfinite(aligned.scores)).any(axis=1) | ~np.isfinite(aligned.tail)
    finite_S = np.isfinite(aligned.ce_pivot) & np.isfinite(aligned.ce_source)
    used_S = _per_sample(used_R, aligned.row_offsets)
    bad_S = _per_sample(bad_R & used_R, aligned.row_offsets) > 0
    conditions = [rows_S == 0, used_S == 0, bad_S | ~finite_S]
    return np.select(conditions, [NO_ROWS, NO_SOURCE, NOT_FINITE], default="")


def _per_sample(flags_R: np.ndarray, row_offsets: np.ndarray) -> np.ndarray:
    """int64[S]: how many of a sample's rows are flagged."""
    total = np.concatenate([[0], np.cumsum(flags_R, dtype=np.int64)])
    return total[row_offsets[1:]] - total[row_offsets[:-1]]


def _metrics(aligned: Aligned, kept: np.ndarray, dropped: Mapping[str, list[int]]) -> dict[str, Any]:
    wins = int((aligned.ce_source[kept] < aligned.ce_pivot[kept]).sum())
    return {
        "samples": aligned.samples,
        "kept": len(kept),
        "sourceWins": wins,
        "dropped": {reason: len(positions) for reason, positions in dropped.items()},
    }
