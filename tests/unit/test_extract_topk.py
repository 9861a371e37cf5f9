"""Top-k, tail and loss of rows of logits: exact, ordered, and correct where float32 is short of digits."""

from __future__ import annotations

import pytest
import torch
from fusechat_stages.numerics.topk import BLOCK, top_k, top_rows
from hypothesis import given, settings
from hypothesis import strategies as st


def reference(logits_RV: torch.Tensor, k: int) -> list[list[int]]:
    """Ids by falling score, lower id first, the slow way."""
    return [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in logits_RV.tolist()]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    size=st.sampled_from([10, 63, 64, 65, 640, 641, 1000, 1300]),
    levels=st.sampled_from([1, 3, 20, 10_000]),
)
def test_the_largest_come_in_order_and_of_equals_the_lowest_id(seed, size, levels):
    generator = torch.Generator().manual_seed(seed)
    logits_RV = torch.randint(-levels, levels, (3, size), generator=generator).float() / 7
    values, ids = top_k(logits_RV, 10)
    assert ids.tolist() == reference(logits_RV, 10)
    assert torch.equal(values, logits_RV.gather(1, ids))


def test_zero_has_no_sign():
    logits_RV = torch.tensor([[0.0, -0.0, -1.0, -0.0]])
    assert top_k(logits_RV, 4)[1].tolist() == [[0, 1, 3, 2]]


@pytest.mark.parametrize("size", [20, BLOCK * 30 + 7])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_rows_are_those_of_a_float64_softmax(size, scale):
    logits_RV = torch.randn(50, size, generator=torch.Generator().manual_seed(3)) * scale
    gold_R = torch.arange(50) % size
    wanted = logits_RV.double().log_softmax(1)
    top = top_rows(logits_RV, gold_R, 10)
    assert top.ids_RK.tolist() == reference(logits_RV, 10)
    close = {"rtol": 2e-6, "atol": 1e-30}
    torch.testing.assert_close(top.logits_RK, logits_RV.gather(1, top.ids_RK), rtol=0, atol=0)
    torch.testing.assert_close(top.logprobs_RK.double(), wanted.gather(1, top.ids_RK), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(
        top.ce_R.double(), -wanted.gather(1, gold_R[:, None])[:, 0], rtol=2e-6, atol=2e-6
    )
    tail_R = wanted.exp().scatter(1, top.ids_RK, 0.0).sum(1)
    torch.testing.assert_close(top.tail_R.double(), tail_R, rtol=2e-5, atol=close["atol"])


def test_a_tail_that_is_lost_in_one_minus_the_rest_is_kept():
    logits_RV = torch.full((1, 1000), -30.0)
    logits_RV[0, 5] = 10.0
    top = top_rows(logits_RV, torch.tensor([5]), 10)
    assert top.tail_R.item() == pytest.approx(990 * 2.718281828459045**-40, rel=1e-5)
    assert top.ce_R.item() == pytest.approx(999 * 2.718281828459045**-40, rel=1e-5)


def test_more_kept_than_there_are_tokens_is_refused():
    with pytest.raises(ValueError, match="topK is 10, but the model has 4 tokens; lower topK"):
        top_rows(torch.zeros(1, 4), torch.tensor([0]), 10)
