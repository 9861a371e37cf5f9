"""The block format: what is written is read back, mapped and not copied, and foreign files are refused."""

from dataclasses import fields
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from fusechat_stages import shards
from fusechat_stages.shards import Aligned, RowsWriter, Turn


def write_block(path: Path, rows_of_samples: list[int], k: int = 3) -> shards.Rows:
    writer = RowsWriter(path, k=k, meta={"scores": "logprobs", "vocab": 100, "profile": "Corrected"})
    rng = np.random.default_rng(0)
    for s, rows in enumerate(rows_of_samples):
        half = rows // 2
        turns = [Turn(2, 2 + half, 0, 11), Turn(4 + half, 4 + half + rows - half, 1, 7)]
        writer.append(
            f"id-{s}",
            s * 10,
            rng.integers(0, 100, rows + 6),
            turns,
            topk_ids=rng.integers(0, 100, (rows, k)),
            scores=rng.normal(size=(rows, k)),
            tail=rng.random(rows),
            ce=rng.random(rows),
            end_byte=np.arange(rows),
        )
    return writer.close()


@pytest.mark.parametrize("sizes", [[], [0], [4], [4, 0, 7], [3] * 50])
def test_a_block_reads_back_as_written(tmp_path, sizes):
    written = write_block(tmp_path / "b.arrow", sizes)
    read = shards.read_rows(tmp_path / "b.arrow")
    assert read.ids == written.ids
    for name in [field.name for field in fields(read) if field.name not in ("ids", "meta")]:
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == getattr(written, name).dtype


def test_many_record_batches_read_as_one_block(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BATCH_ROWS", 5)
    written = write_block(tmp_path / "b.arrow", [3, 9, 0, 4, 4, 1])
    assert len(list(pa.ipc.open_stream((tmp_path / "b.arrow").read_bytes()))) > 2
    read = shards.read_rows(tmp_path / "b.arrow")
    np.testing.assert_array_equal(read.scores, written.scores)
    np.testing.assert_array_equal(read.row_offsets, written.row_offsets)
    np.testing.assert_array_equal(read.positions(), written.positions())


def test_one_batch_is_mapped_and_not_copied(tmp_path):
    write_block(tmp_path / "b.arrow", [5, 6])
    read = shards.read_rows(tmp_path / "b.arrow")
    assert not read.topk_ids.flags.owndata
    assert not read.scores.flags.writeable


def test_row_positions_are_one_before_the_supervised_tokens(tmp_path):
    rows = write_block(tmp_path / "b.arrow", [4])
    assert rows.positions().tolist() == [1, 2, 5, 6]


def test_a_row_costs_at_most_80_bytes_and_an_input_id_4(tmp_path):
    write_block(tmp_path / "b.arrow", [500] * 20, k=10)
    size = (tmp_path / "b.arrow").stat().st_size
    assert size <= 80 * 10_000 + 4 * 20 * 506


def test_aligned_rows_read_back(tmp_path):
    aligned = Aligned(
        ids=["a", "b"],
        index=np.array([0, 1]),
        row_offsets=np.array([0, 2, 3]),
        topk_ids=np.array([[1, 2], [3, -1], [-1, -1]], np.int32),
        scores=np.array([[-1, -2], [-1, -np.inf], [-np.inf, -np.inf]], np.float16),
        tail=np.zeros(3, np.float32),
        unmapped=np.ones(3, np.float32),
        kind=np.array([1, 2, 0], np.uint8),
        ce_pivot=np.array([1, np.nan], np.float32),
        ce_source=np.array([2, 3], np.float32),
        meta={"scores": "logprobs"},
    )
    shards.write_aligned(tmp_path / "a.arrow", aligned)
    read = shards.read_aligned(tmp_path / "a.arrow")
    np.testing.assert_array_equal(read.scores, aligned.scores)
    np.testing.assert_array_equal(read.ce_pivot, aligned.ce_pivot)
    assert read.meta["scores"] == "logprobs"


def test_datasets_opens_a_block(tmp_path):
    write_block(tmp_path / "b.arrow", [4, 5])
    table = datasets.Dataset.from_file(str(tmp_path / "b.arrow"))
    assert table[1]["id"] == "id-1"
    assert len(table[1]["topk_ids"]) == 5


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"junk", "not a readable block"), (b"", "not a readable block"), ("cut", "not a readable")],
)
def test_a_damaged_file_is_refused_with_a_sentence(tmp_path, content, says):
    path = tmp_path / "b.arrow"
    if content == "cut":
        write_block(path, [50])
        content = path.read_bytes()[:700]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        shards.read_rows(path)


def test_a_block_of_another_kind_is_refused(tmp_path):
    write_block(tmp_path / "b.arrow", [4])
    with pytest.raises(ValueError, match="expected Aligned version 1"):
        shards.read_aligned(tmp_path / "b.arrow")
