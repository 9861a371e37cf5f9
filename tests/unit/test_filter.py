"""Which samples of a pair are used: a selection with reasons, by pair, never a copy."""

import json

import numpy as np
from fusechat_stages import shards
from fusechat_stages.entry import run_local
from fusechat_stages.filter import judge
from fusechat_stages.shards import EMPTY, EXACT, Aligned
from hypothesis import given
from hypothesis import strategies as st


def aligned(rows, kinds, ce_pivot=None, ce_source=None):
    """`rows` per sample; `kinds` of all rows."""
    R, S = sum(rows), len(rows)
    return Aligned(
        ids=[str(s) for s in range(S)],
        index=np.arange(S),
        row_offsets=np.concatenate([[0], np.cumsum(rows)]).astype(np.int64),
        topk_ids=np.zeros((R, 2), np.int32),
        scores=np.zeros((R, 2), np.float16),
        tail=np.zeros(R, np.float32),
        unmapped=np.zeros(R, np.float32),
        kind=np.array(kinds, np.uint8),
        ce_pivot=np.array(ce_pivot or [2.0] * S, np.float32),
        ce_source=np.array(ce_source or [1.0] * S, np.float32),
        meta={"scores": "logprobs"},
    )


def test_every_reason_is_told():
    block = aligned([2, 0, 1, 1, 1], [EXACT, EMPTY, EMPTY, EXACT, EXACT], ce_source=[1, 1, 1, np.nan, 1])
    block.scores[4, 1] = np.inf
    assert judge(block).tolist() == ["", "noRows", "notInSource", "notFinite", "notFinite"]


def test_an_empty_slot_is_not_a_bad_score():
    block = aligned([1], [EXACT])
    block.topk_ids[0, 1], block.scores[0, 1] = -1, -np.inf
    assert judge(block).tolist() == [""]


@given(st.lists(st.integers(0, 4), max_size=12), st.data())
def test_kept_and_dropped_are_the_whole_block_once(rows, data):
    kinds = data.draw(st.lists(st.sampled_from([EMPTY, EXACT]), min_size=sum(rows), max_size=sum(rows)))
    reasons = judge(aligned(rows, kinds))
    assert len(reasons) == len(rows)
    used = [any(kinds[sum(rows[:s]) : sum(rows[: s + 1])]) for s in range(len(rows))]
    assert [r == "" for r in reasons] == used


def test_the_stage_writes_a_selection_and_shares(tmp_path):
    block = aligned([1, 1, 1, 1], [EXACT, EXACT, EXACT, EMPTY], ce_pivot=[2, 1, 1, 1], ce_source=[1, 1, 2, 1])
    (tmp_path / "aligned").mkdir()
    shards.write_aligned(tmp_path / "aligned" / "block-00000.arrow", block)
    inputs = {"pivot": tmp_path, "aligned": tmp_path / "aligned"}
    metrics = run_local("filter", {"profile": "Corrected"}, inputs, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "block-00000.json").read_text()) == {
        "kept": [0, 1, 2],
        "dropped": {"notInSource": [3]},
    }
    assert (metrics["keptShare"], metrics["winShare"]) == (0.75, 1 / 3)


def test_common_rows_keep_what_every_source_has(tmp_path):
    for name, kinds in (("one", [EXACT, EXACT]), ("two", [EXACT, EMPTY])):
        (tmp_path / name).mkdir()
        shards.write_aligned(tmp_path / name / "block-00000.arrow", aligned([1, 1], kinds))
    inputs = {"pivot": tmp_path, "aligned": tmp_path / "one", "common.0": tmp_path / "two"}
    metrics = run_local("filter", {"profile": "Corrected"}, inputs, tmp_path / "out")
    assert metrics["dropped"] == {"notCommon": 1}
