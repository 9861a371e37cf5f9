"""Exact top-k of a stream equals a stable sort."""

import torch
from fusechat_stages.numerics.merge_select import Picker, Threshold, TopK
from hypothesis import given, settings
from hypothesis import strategies as st

values = st.lists(
    st.one_of(
        st.sampled_from([0.0, 1.0, 1.0000001, 2.5, 1e-40, 3e38]),
        st.floats(0, 2.0**100, width=32, allow_nan=False),
    ),
    min_size=1,
    max_size=60,
)


def keep(values_N, k, tile):
    """Indices of the kept elements, the values coming in tiles."""
    tiles = values_N.split(tile)
    top = TopK()
    for part in tiles:
        top.count(part)
    if top.aim(k):
        for part in tiles:
            top.refine(part)
    picker = Picker(top.threshold())
    masks = [torch.from_numpy(picker.mask(part)) for part in tiles]
    assert top.threshold().count == min(k, len(values_N))
    return torch.cat(masks).nonzero().flatten().tolist()


@settings(max_examples=60, deadline=None)
@given(values, st.integers(0, 70), st.integers(1, 20))
def test_it_keeps_what_a_stable_sort_puts_first(drawn, k, tile):
    values_N = torch.tensor(drawn, dtype=torch.float32)
    order = values_N.argsort(descending=True, stable=True)
    assert keep(values_N, k, tile) == sorted(order[:k].tolist())


def test_it_counts_what_is_not_zero():
    top = TopK()
    top.count(torch.tensor([0.0, 1e-45, 2.0, 0.0]))
    assert (top.seen, top.nonzero) == (4, 2)


def test_everything_and_nothing_need_no_second_pass():
    top = TopK()
    top.count(torch.tensor([0.0, 1.0]))
    assert not top.aim(0)
    assert top.threshold() == Threshold.nothing()
    assert not top.aim(5)
    assert top.threshold() == Threshold.everything(2)
