"""Profile Published of align against what FuseChat's own functions made of real tokenizers' text: exact."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fusechat_stages import align_published
from fusechat_stages.align_published import Strings
from fusechat_stages.numerics import dtw, rows, vocabulary
from fusechat_stages.numerics.matching import agreement, choose_positions
from fusechat_stages.numerics.vocabulary import PairCounts
from fusechat_stages.shards import Rows, RowsWriter, Turn

METHODS = {"aligned_default": "MS", "aligned_default_nomatrix": "MS", "aligned_hard": "EM"}


@dataclass(frozen=True)
class Case:
    """One golden file: pieces and decoded strings by id, and the samples."""

    data: dict[str, Any]
    pivot_pieces: list[str | None]
    source_pieces: list[str | None]
    strings: Strings

    @property
    def markers(self) -> dict[str, str]:
        found = self.data["strings"]
        return {"source_marker": found["blend_special"], "pivot_marker": found["base_special"]}

    @property
    def counts(self) -> PairCounts:
        pivot, source, counts = np.array(self.data["matrix"], dtype=np.int64).T
        keys = source * len(self.pivot_pieces) + pivot
        order = np.argsort(keys)
        return PairCounts(keys[order], counts[order], len(self.pivot_pieces))

    @property
    def equal(self) -> np.ndarray:
        """The release's map of equal strings; the file names the ids in use only."""
        found = np.full(len(self.source_pieces), -1, dtype=np.int32)
        for source, pivot in self.data["strings"]["blend_in_base"].items():
            found[int(source)] = pivot
        return found


@pytest.fixture(scope="module", params=["openchat_qwen", "openchat_solar"])
def case(request, shared: Path) -> Case:
    data = json.loads((shared / "golden" / "align" / f"{request.param}.json").read_text())
    pivots, sources = data["matrix_shape"]
    found = data["strings"]
    return Case(
        data,
        [found["base_raw"].get(str(i)) for i in range(pivots)],
        [found["blend_raw"].get(str(i)) for i in range(sources)],
        Strings(_numbered(found["base_dec"]), _numbered(found["blend_dec"])),
    )


def _numbered(strings: dict[str, str]) -> dict[int, str]:
    return {int(i): text for i, text in strings.items()}


def warped(case: Case, sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    source = [case.strings.source[i] for i in sample["blend_ids"]]
    return dtw.align_strings(source, [case.strings.pivot[i] for i in sample["base_ids"]])


@pytest.mark.parametrize("stripe", [2048, 37])
def test_the_token_mapping_is_the_releases(case, stripe, monkeypatch):
    monkeypatch.setattr(dtw, "STRIPE_ROWS", stripe)
    for sample in case.data["samples"]:
        first, last = warped(case, sample)
        ranges = [list(range(a, b + 1)) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
        assert ranges == sample["mapping"]


def test_the_vocabulary_map_is_the_releases(case):
    found = case.data["strings"]
    default = found["base_unk"] if found["base_unk"] is not None else found["base_eos"]
    forced = [(found["blend_bos"], found["base_bos"]), (found["blend_eos"], found["base_eos"])]
    target = vocabulary.surface_map(
        [case.counts], case.source_pieces, case.pivot_pieces, default=default, forced=forced, **case.markers
    )
    assert target.tolist() == case.data["blending_to_base"]


def test_the_counts_of_these_samples_are_within_the_releases_matrix(case):
    """The matrix is of 20 samples, half of them not in the file."""
    parts = []
    for sample in case.data["samples"]:
        ids = np.array(sample["base_ids"]), np.array(sample["blend_ids"])
        parts.append(vocabulary.count_pairs(*ids, *warped(case, sample), len(case.pivot_pieces)))
    merged, whole = vocabulary.merge_counts(parts), case.counts
    place = np.searchsorted(whole.keys_P, merged.keys_P)
    assert (whole.keys_P[place] == merged.keys_P).all()
    assert (whole.counts_P[place] >= merged.counts_P).all()
    assert merged.counts_P.sum() > 0.2 * whole.counts_P.sum()


def test_equal_pieces_are_the_releases(case):
    found = vocabulary.equal_map(case.source_pieces, case.pivot_pieces, **case.markers)
    mapped = np.flatnonzero(found >= 0)
    np.testing.assert_array_equal(found[mapped], case.equal[mapped])


def targets(case: Case, name: str) -> np.ndarray:
    mapped = np.array(case.data["blending_to_base"], dtype=np.int32)
    return case.equal if METHODS[name] == "EM" else np.where(case.equal >= 0, case.equal, mapped)


@pytest.mark.parametrize("name", METHODS)
def test_every_aligned_position_is_the_releases(case, name):
    """All positions of all samples, prompts and the last one included, from rows of every source position.

    Without a matrix the release takes no piece of a longer range; with EM neither.
    """
    mapped = np.array(case.data["blending_to_base"], dtype=np.int32)
    agrees = agreement(METHODS[name], case.strings.source, case.strings.pivot, mapped)
    for sample in case.data["samples"]:
        base, blend = np.array(sample["base_ids"]), np.array(sample["blend_ids"])
        first, last = warped(case, sample)
        if name == "aligned_default_nomatrix":
            longer = first != last
            chosen = choose_positions("MS", base, blend, first, np.where(longer, first, last), agrees)
            chosen[longer] = -1
        else:
            chosen = choose_positions(METHODS[name], base, blend, first, last, agrees)
        ids = np.array(sample["blend_indices"])[np.maximum(chosen, 0)]
        scores = np.array(sample["blend_logits"], dtype=np.float16)[np.maximum(chosen, 0)]
        target = targets(case, name)[ids]
        moved = rows.move_first(target, np.ones_like(target, bool), scores, np.zeros(len(base), np.float32))
        hot = np.flatnonzero(chosen < 0)
        rows.put(moved, hot, rows.one_hot(np.append(base[1:], base[-1])[hot], ids.shape[1]))
        _same(sample, name, moved)


def _same(sample: dict[str, Any], name: str, moved: rows.Moved, last: int | None = None) -> None:
    want = sample[name]
    logits = want["logits"] if want["logits"] is not None else sample["aligned_default"]["logits"]
    ids = [[i for i in row if i >= 0] for row in moved.ids_RK.tolist()]
    scores = [[s for s in row if s > -np.inf] for row in moved.scores_RK.tolist()]
    assert ids == want["indices"][:last]
    assert scores == logits[:last]


def block(tmp_path: Path, case: Case, ids: str, with_rows: bool) -> Rows:
    """The samples as a block whose every token but the first is supervised."""
    writer = RowsWriter(tmp_path / f"{ids}.arrow", k=10, meta={"scores": "logits"})
    for sample in case.data["samples"]:
        n = len(sample[ids])
        kept = np.array(sample["blend_indices"])[: n - 1] if with_rows else np.zeros((n - 1, 10), int)
        values = np.array(sample["blend_logits"])[: n - 1] if with_rows else np.zeros((n - 1, 10))
        zeros = np.zeros(n - 1)
        writer.append(
            str(sample["i"]), sample["i"], np.array(sample[ids]), [Turn(1, n, 0, n)],
            topk_ids=kept, scores=values, tail=zeros, ce=zeros, end_byte=np.arange(n - 1),
        )  # fmt: skip
    return writer.close()


@pytest.mark.parametrize("name", ["aligned_default", "aligned_hard"])
def test_whole_blocks_are_the_releases(case, name, tmp_path):
    """Through the block format; the last position has no row there, nor has the source's last token."""
    pivot, source = block(tmp_path, case, "base_ids", False), block(tmp_path, case, "blend_ids", True)
    spans = align_published.warp_block(pivot, source, case.strings)
    mapped = np.array(case.data["blending_to_base"], dtype=np.int32)
    aligned, _ = align_published.align_block(
        pivot, source, spans, METHODS[name], case.strings, case.equal, mapped
    )
    for s, sample in enumerate(case.data["samples"]):
        part = slice(int(aligned.row_offsets[s]), int(aligned.row_offsets[s + 1]))
        moved = rows.empty_rows(part.stop - part.start, 10)
        moved.ids_RK[:], moved.scores_RK[:] = aligned.topk_ids[part], aligned.scores[part]
        _same(_without_last_source_row(sample, name), name, moved, -1)


def _without_last_source_row(sample: dict[str, Any], name: str) -> dict[str, Any]:
    """What the release would give if the source's last position were not stored: one-hot there."""
    last, want = len(sample["blend_ids"]) - 1, sample[name]
    logits = list(want["logits"] if want["logits"] is not None else sample["aligned_default"]["logits"])
    ids = list(want["indices"])
    for n, matched in enumerate(sample["mapping"][:-1]):
        if matched == [last]:
            ids[n], logits[n] = [sample["base_ids"][n + 1]], [1.0]
    return {**sample, name: {"indices": ids, "logits": logits}}
