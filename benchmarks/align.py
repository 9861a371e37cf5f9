"""The align stage and its parts against the release's way of doing it (see targets "Pipeline").

`python benchmarks/align.py [--quick] [--write]`. The peer is a plain restatement, written here, of what the
release does cell by cell and pair by pair in Python; it runs in the same process on the same text. The
original's own figures (measured once, on a machine of this kind) stand in the notes. Times are CPU seconds
of one thread, since the bars are per core.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from align_data import ANY_END, Pair, block, conversations, tokenizers
from fusechat_stages import align_tokens
from fusechat_stages.entry import run_local
from fusechat_stages.numerics import dtw, vocabulary
from fusechat_stages.numerics.vocabulary import PairCounts
from fusechat_stages.shards import block_name
from harness import Row, Stats, peak_rss, publish, quick, ratio, summarise
from rapidfuzz.distance import Levenshtein

NOTES = (
    "The peer is this file's plain Python restatement. The original's own figures: DTW 6.2-7.7 s a sample of "
    "2048 x 2048 (1.5-2.7 us a cell, done twice), the stage 15-19 ms a token, MinED 62,000 CPU s.",
    "Stage figures include reading and writing blocks and the tables made of both vocabularies; loading the "
    "two tokenizers is left out and given beside. All times are CPU seconds of one thread.",
)


def measure(fn: Callable[[], object], repeat: int = 3, warm: int = 0) -> Stats:
    """CPU seconds of `fn()`."""
    seconds = []
    for _ in range(warm + repeat):
        begin = time.process_time()
        fn()
        seconds.append(time.process_time() - begin)
    return summarise(seconds[warm:])


def plain_dtw(source: list[str], pivot: list[str]) -> list[list[int]]:
    """The peer: every cell in Python, an edit distance for each, then the back-trace."""
    n, m = len(source), len(pivot)
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0
    for i in range(n):
        for j in range(m):
            before = min(total[i, j + 1], total[i + 1, j], total[i, j])
            total[i + 1, j + 1] = Levenshtein.distance(source[i], pivot[j]) + before
    i, j, matched = n - 1, m - 1, [[] for _ in range(m)]
    while i > 0 or j > 0:
        matched[j].insert(0, i)
        step = int(np.argmin([total[i, j], total[i + 1, j], total[i, j + 1]]))
        i, j = (i - 1, j - 1) if step == 0 else (i, j - 1) if step == 1 else (i - 1, j)
    matched[0].insert(0, 0)
    return matched


def warping(pair: Pair) -> Row:
    """One sample of 2048 x 2048 tokens."""
    n = 256 if quick() else 2048
    text = "\n".join(answer for _, answer in conversations())[: 12 * n]
    sides = []
    for tokenizer in (pair.source, pair.pivot):
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids[:n]
        strings = align_tokens.decoded(tokenizer, set(ids))
        sides.append([strings[i] for i in ids])
    cells = len(sides[0]) * len(sides[1])
    ours = measure(lambda: dtw.align_strings(*sides), repeat=7, warm=1)
    peer = measure(lambda: plain_dtw(*sides), repeat=1)
    first, last = dtw.align_strings(*sides)
    same = [list(range(a, b + 1)) for a, b in zip(first.tolist(), last.tolist(), strict=True)] == plain_dtw(
        *sides
    )
    ns = ours.median / cells * 1e9
    return Row(
        f"token alignment by DTW, {len(sides[0])} x {len(sides[1])}, identical: {same}",
        f"{peer.median:.2f} s, {peer.median / cells * 1e9:.0f} ns a cell",
        f"{ours.median * 1000:.1f} ms ({ours.min * 1000:.1f}-{ours.max * 1000:.1f}), {ns:.1f} ns a cell",
        ratio(ours.median, peer.median),
        "<= 25 ns a cell",
        same and ns <= 25,
    )


class Stage:
    """A folder with both models and a block of extracts of each, under both profiles."""

    def __init__(self, root: Path, pair: Pair, samples: int) -> None:
        self.root, self.tokens = root, 0
        self.models = {f"{side}Model": root / f"{side}Model" for side in ("pivot", "source")}
        talks = conversations()[:samples]
        told = {
            "Corrected": ("openchat_3.5", "qwen", "logprobs"),
            "Published": ("openchat_3.5", ANY_END, "logits"),
        }
        for side, tokenizer in (("pivot", pair.pivot), ("source", pair.source)):
            tokenizer.save_pretrained(root / f"{side}Model")
            for profile, (pivot, source, scores) in told.items():
                (root / profile / side).mkdir(parents=True)
                template = pivot if side == "pivot" else source
                made = block(root / profile / side / block_name(0), tokenizer, template, talks, scores=scores)
                if side == "pivot":
                    self.tokens, self.rows = len(made.input_ids), len(made.ce)

    def run(self, profile: str, op: str, method: str, **more: Path) -> Path:
        """One op; returns its folder."""
        out = self.root / f"out-{op}-{method}"
        shutil.rmtree(out, ignore_errors=True)
        source = "qwen" if profile == "Corrected" else ANY_END
        params = {
            "op": op,
            "profile": profile,
            "method": method,
            "pivotTemplate": "openchat_3.5",
            "sourceTemplate": source,
        }
        sides = {} if op == "map" else {side: self.root / profile / side for side in ("pivot", "source")}
        run_local("align", params, {**self.models, **sides, **more}, out)
        return out


def stage_rows(pair: Pair, root: Path) -> list[Row]:
    stage = Stage(root, pair, 40 if quick() else 805)
    load = measure(lambda: _load(stage), repeat=3)
    corrected = measure(lambda: stage.run("Corrected", "rows", "Bytes"), repeat=3, warm=1)
    counts = stage.run("Published", "count", "MS")
    table = stage.run("Published", "map", "MS", counts=counts)

    def published() -> None:
        again = stage.run("Published", "count", "MS")
        stage.run("Published", "rows", "MS", map=table, counts=again)

    both = measure(published, repeat=3)
    peer = _plain_stage_seconds(pair)
    rate = stage.tokens / (corrected.median - load.median)
    each = (both.median - 2 * load.median) / stage.tokens
    return [
        Row(
            f"align stage, Corrected, {stage.tokens} tokens, {stage.rows} rows",
            f"{1 / peer:.0f} tokens/s",
            f"{rate:,.0f} tokens/s (whole call {corrected}, of it tokenizers {load.median:.2f} s)",
            f"{peer * rate:,.0f}x",
            ">= 200,000 tokens/s",
            rate >= 200_000 if pair.real else None,
        ),
        Row(
            "align stage, Published MS, count and rows",
            f"{peer * 1000:.1f} ms a token",
            f"{each * 1e6:.1f} us a token ({1 / each:,.0f} tokens/s)",
            f"{peer / each:,.0f}x",
            ">= 100x",
            peer / each >= 100,
        ),
    ]


def scaling_row(pair: Pair, root: Path) -> Row:
    """Blocks of 400 samples, one, four and sixteen of them: the stage's time and memory."""
    stage = Stage(root, pair, 20 if quick() else 400)
    seconds, peaks = [], []
    for blocks in (1, 4, 16):
        for side in ("pivot", "source"):
            for number in range(1, blocks):
                folder = root / "Corrected" / side
                shutil.copyfile(folder / block_name(0), folder / block_name(number))
        seconds.append(measure(lambda: stage.run("Corrected", "rows", "Bytes"), warm=1).median)
        peaks.append(peak_rss(lambda: stage.run("Corrected", "rows", "Bytes"), over_start=True) / 1e6)
    slopes = (seconds[1] - seconds[0]) / 3, (seconds[2] - seconds[1]) / 12
    times, sizes = (" / ".join(f"{x:{form}}" for x in xs) for xs, form in ((seconds, ".2f"), (peaks, ".0f")))
    return Row(
        "align stage, Corrected, 1 / 4 / 16 blocks",
        "-",
        f"{times} s; {sizes} MB over the start",
        f"{slopes[1] / slopes[0]:.2f}x a block, {peaks[2] / peaks[0]:.2f}x memory",
        "linear, flat",
        None if quick() else slopes[1] <= 1.25 * slopes[0] and peaks[2] <= 1.15 * peaks[0],
    )


def _load(stage: Stage) -> None:
    from fusechat_stages.align import _tokenizer
    from fusechat_stages.artifacts import FolderInput

    for folder in stage.models.values():
        _tokenizer(FolderInput(folder))


def _plain_stage_seconds(pair: Pair) -> float:
    """Seconds a token at 2048 x 2048 of the release's way: its DTW, twice, and nothing else of it."""
    n = 256
    text = "\n".join(answer for _, answer in conversations())[: 12 * n]
    sides = []
    for tokenizer in (pair.source, pair.pivot):
        ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids[:n]
        strings = align_tokens.decoded(tokenizer, set(ids))
        sides.append([strings[i] for i in ids])
    cell = measure(lambda: plain_dtw(*sides), repeat=3).median / n**2
    return 2 * 2048 * cell


def statistics_row() -> Row:
    """Counts of many blocks merged and turned into the MS map: 32,002 x 151,646 and 8 M distinct pairs."""
    pivots, sources, blocks = 32_002, 151_646, 8 if quick() else 46
    with tempfile.TemporaryDirectory() as folder:
        for number in range(blocks):
            _counts(Path(folder) / f"counts-{number:05d}.npy", number, pivots, sources)
        pieces = [f"p{i:x}" for i in range(pivots)], [f"s{i:x}" for i in range(sources)]

        def merge() -> None:
            parts = [
                PairCounts(*np.load(path, mmap_mode="r"), pivots) for path in sorted(Path(folder).iterdir())
            ]
            vocabulary.surface_map(
                parts, pieces[1], pieces[0], source_marker="Ġ", pivot_marker="▁", default=0
            )

        peak = peak_rss(merge, over_start=True)
        seconds = measure(merge, repeat=1)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    dense = pivots * sources * 8
    return Row(
        f"vocabulary statistics, {pivots:,} x {sources:,}, {blocks} blocks, {size / 2**20:.0f} MiB",
        f"MemoryError at {dense / 1e9:.1f} GB",
        f"{peak / 1e6:.0f} MB over the start, {seconds.median:.1f} s",
        f"{dense / max(peak, 1):,.0f}x",
        "<= 200 MB",
        peak <= 200e6,
    )


def _counts(path: Path, seed: int, pivots: int, sources: int) -> None:
    rng = np.random.default_rng(seed)
    common = (rng.pareto(0.6, 400_000) * 10).astype(np.int64) % sources
    keys = np.unique(common * pivots + (rng.pareto(0.9, 400_000) * 3 + common // 5).astype(np.int64) % pivots)
    np.save(path, np.stack([keys, rng.integers(1, 50, len(keys))]))


def nearest_row(pair: Pair) -> Row:
    """The MinED map of the whole source vocabulary; the peer does a hundred tokens, one pair at a time."""
    pivot, source = align_tokens.pieces(pair.pivot), align_tokens.pieces(pair.source)
    markers = {"source_marker": "Ġ", "pivot_marker": "▁"}
    some = source[:: len(source) // (500 if quick() else 20)]
    equal = vocabulary.equal_map(source, pivot, **markers)
    open_ids = int((equal < 0).sum())
    begin = time.process_time()
    table = vocabulary.nearest_map(some if quick() else source, pivot, default=0, **markers)
    ours = time.process_time() - begin
    begin = time.process_time()
    plain = [_plain_nearest(piece, pivot) for piece in some[:20]]
    peer = (time.process_time() - begin) / len(plain) * open_ids
    where = {piece: i for i, piece in enumerate(some if quick() else source)}
    same = [int(table[where[piece]]) for piece in some[:20]] == plain
    return Row(
        f"MinED vocabulary map, {len(source):,} -> {len(pivot):,} (sample equal to brute force: {same})",
        f"{peer:,.0f} CPU s (20 tokens, scaled)",
        f"{ours:.1f} CPU s",
        ratio(ours, peer),
        "<= 120 CPU s",
        None if quick() or not pair.real else same and ours <= 120,
    )


def _plain_nearest(piece: str, pivot: list[str]) -> int:
    wanted = piece.replace("Ġ", "▁")
    distances = [Levenshtein.distance(wanted, other) for other in pivot]
    return int(np.argmin(distances))


def main() -> None:
    pair = tokenizers()
    with tempfile.TemporaryDirectory() as root:
        rows = [statistics_row(), warping(pair), *stage_rows(pair, Path(root, "stage"))]
        rows += [scaling_row(pair, Path(root, "scaling")), nearest_row(pair)]
    size = f"Vocabularies: {len(pair.pivot):,} and {len(pair.source):,} tokens"
    hint = "" if pair.real else "; set FUSECHAT_TOKENIZERS for the published ones"
    publish("align", rows, [*NOTES, f"{size}{hint}."])


if __name__ == "__main__":
    main()
