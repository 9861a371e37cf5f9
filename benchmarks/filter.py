"""Filter, same-vocabulary join and the multi-teacher choice, per sample. Peer: rows read as Python objects.

The release keeps a sample's distributions as nested lists in a `datasets` table and maps Python functions
over it; so does the peer here, on our own blocks. `--quick`: fewer samples, no scaling.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fusechat_stages import shards
from fusechat_stages.align_published import join_block
from fusechat_stages.artifacts import FolderInput
from fusechat_stages.entry import run_local
from fusechat_stages.training.examples import compile_examples
from fusechat_stages.training.recipe import Recipe
from harness import Row, measure, peak_rss, publish, quick

BAR_MS = 0.2
TEACHERS = 5
ROWS, K = 300, 10
PEER_SAMPLES = 64


def main() -> None:
    samples = 128 if quick() else shards.BLOCK_SAMPLES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pivot, aligned = make(folder / "1x", samples, blocks=1)
        small, small_aligned = make(folder / "peer", PEER_SAMPLES, blocks=1)
        rows = [
            row(
                "filter",
                timed(lambda: filtered(pivot, aligned[0], folder), samples),
                peer_filter(small_aligned[0]),
            ),
            row("join, same vocabulary", timed(lambda: joined(pivot), samples), peer_join(small)),
            row(
                f"multi-teacher choice of {TEACHERS}, and its files for the training",
                timed(lambda: chosen(pivot, aligned, folder), samples),
                peer_choice(small, small_aligned),
            ),
        ]
        if not quick():
            rows += scaling(folder)
    publish(
        "filter",
        rows,
        [f"Samples of {ROWS} rows, k = {K}; milliseconds a sample, reading and writing included."],
    )


def row(what: str, ours_ms: float, peer_ms: float) -> Row:
    return Row(
        f"{what}, per sample", f"{peer_ms:.1f} ms", f"{ours_ms:.3f} ms", f"{peer_ms / ours_ms:.0f}x",
        f"<= {BAR_MS} ms", ours_ms <= BAR_MS,
    )  # fmt: skip


def timed(fn: Any, samples: int) -> float:
    return 1000 * measure(fn, repeat=3).median / samples


def filtered(pivot: Path, aligned: Path, folder: Path) -> None:
    run_local("filter", {"profile": "Corrected"}, {"pivot": pivot, "aligned": aligned}, folder / "filtered")


def joined(pivot: Path) -> None:
    for path in sorted(pivot.glob("*.arrow")):
        block = shards.read_rows(path)
        block = replace(block, meta={**block.meta, "scores": "logits"})
        aligned, _ = join_block(block, block)
        shards.write_aligned(path.with_suffix(".joined"), aligned)


def chosen(pivot: Path, aligned: list[Path], folder: Path) -> None:
    for i, one in enumerate(aligned):
        run_local(
            "filter", {"profile": "Corrected"}, {"pivot": pivot, "aligned": one}, folder / f"selection-{i}"
        )
    out = Path(tempfile.mkdtemp(dir=folder))
    selections = [FolderInput(folder / f"selection-{i}") for i in range(len(aligned))]
    recipe = Recipe(strategy="MultiTeacher")
    compile_examples(recipe, FolderInput(pivot), [FolderInput(a) for a in aligned], selections, out)


def peer_table(folder: Path) -> list[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_file(str(folder / shards.block_name(0))).to_list()


def peer_filter(aligned: Path) -> float:
    return timed(lambda: [s for s in peer_table(aligned) if not math.isnan(s["ce_source"])], PEER_SAMPLES)


def peer_join(pivot: Path) -> float:
    def join() -> None:
        other = {s["id"]: s for s in peer_table(pivot)}
        merged = [{**s, "fused_ids": other[s["id"]]["topk_ids"], "fused_scores": other[s["id"]]["scores"]}
                  for s in peer_table(pivot)]  # fmt: skip
        json.dumps([s["fused_ids"] for s in merged])

    return timed(join, PEER_SAMPLES)


def peer_choice(pivot: Path, aligned: list[Path]) -> float:
    def choose() -> None:
        tables = [peer_table(pivot), *(peer_table(a) for a in aligned)]
        for mine, *others in zip(*tables, strict=True):
            best = min(range(len(others)), key=lambda i: others[i]["ce_source"])
            np.array(
                others[best]["scores"]
                if others[best]["ce_source"] < others[0]["ce_pivot"]
                else mine["scores"]
            )

    return timed(choose, PEER_SAMPLES)


def scaling(folder: Path) -> list[Row]:
    """Filter over 1, 4 and 16 blocks: time by block, peak memory over the start."""
    seconds, peaks = [], []
    for blocks in (1, 4, 16):
        pivot, aligned = make(folder / f"scale-{blocks}", 512, blocks)
        seconds.append(measure(lambda p=pivot, a=aligned: filtered(p, a[0], folder), repeat=3).median)
        peaks.append(peak_rss(lambda p=pivot, a=aligned: filtered(p, a[0], folder), over_start=True) / 1e6)
    times, memory = (" / ".join(f"{v:.3g}" for v in values) for values in (seconds, peaks))
    growth = seconds[2] / seconds[0] / 16
    flat = peaks[2] <= 1.5 * max(peaks[0], 1)
    ours = f"{times} s; {memory} MB over the start"
    return [
        Row("filter, 1 / 4 / 16 blocks of 512", "-", ours, f"{growth:.2f}x a block", "linear, flat", flat)
    ]


def make(folder: Path, samples: int, blocks: int) -> tuple[Path, list[Path]]:
    """An extract of the pivot and the aligned rows of every teacher, invented."""
    rng = np.random.default_rng(0)
    pivot, aligned = folder / "pivot", [folder / f"aligned-{i}" for i in range(TEACHERS)]
    for path in (pivot, *aligned):
        path.mkdir(parents=True)
    for block in range(blocks):
        rows = write_pivot(pivot / shards.block_name(block), samples, rng)
        for path in aligned:
            write_aligned(path / shards.block_name(block), rows, rng)
    return pivot, aligned


def write_pivot(path: Path, samples: int, rng: np.random.Generator) -> shards.Rows:
    writer = shards.RowsWriter(path, k=K, meta={"scores": "logprobs", "vocab": 32000})
    for s in range(samples):
        turn = shards.Turn(20, 20 + ROWS, 0, ROWS * 4)
        writer.append(
            f"s{s}", s, rng.integers(0, 32000, ROWS + 20), [turn],
            topk_ids=rng.integers(0, 32000, (ROWS, K)), scores=np.full((ROWS, K), -3.0),
            tail=np.full(ROWS, 0.5),
            ce=rng.random(ROWS), end_byte=np.arange(1, ROWS + 1) * 4,
        )  # fmt: skip
    return writer.close()


def write_aligned(path: Path, rows: shards.Rows, rng: np.random.Generator) -> None:
    R, S = len(rows.tail), rows.samples
    shards.write_aligned(
        path,
        shards.Aligned(
            ids=rows.ids, index=rows.index, row_offsets=rows.row_offsets, topk_ids=rows.topk_ids,
            scores=rows.scores, tail=rows.tail, unmapped=np.zeros(R, np.float32), kind=np.ones(R, np.uint8),
            ce_pivot=rng.random(S).astype(np.float32), ce_source=rng.random(S).astype(np.float32),
            meta={"scores": "logprobs"},
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
