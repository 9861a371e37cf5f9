"""How a merge's tensors are packed: files of the output, batches of a thread, ranges of a fetch."""

import pytest
import torch
from fusechat_stages import merge_plan
from fusechat_stages.merge_card import by_layer
from fusechat_stages.merge_plan import Task
from fusechat_stages.merge_source import GAP_BYTES, Run, Stored, runs
from fusechat_stages.merge_tensors import Place
from hypothesis import given, settings
from hypothesis import strategies as st

MODEL, OTHER = object(), object()


def stored(start, size, file="a", model=MODEL):
    place = Place(f"{file}{start}", torch.uint8, (size,), file, start, size)
    return Stored(model, place)


def task(size):
    one = stored(0, size)
    return Task(one, (one, None))


sizes = st.lists(st.integers(0, 300), min_size=1, max_size=30)


@settings(max_examples=50)
@given(sizes)
def test_files_hold_every_tensor_once_in_order_within_the_limit(drawn):
    found = [task(size) for size in drawn]
    shards = merge_plan.shards(found)
    assert [t for shard in shards for t in shard.tasks] == found
    assert shards[0].name == "model.safetensors"  # all of it is smaller than the smallest limit


@settings(max_examples=50)
@given(sizes, st.integers(1, 400))
def test_batches_hold_every_tensor_once_and_more_than_one_only_within_the_limit(drawn, limit):
    shard = merge_plan.Shard("x", tuple(task(size) for size in drawn))
    batches = shard.batches(limit)
    flat = [t for batch in batches for t in batch]
    assert sorted(map(id, flat)) == sorted(map(id, shard.tasks))
    totals = [sum(t.size for t in batch) for batch in batches]
    assert totals == sorted(totals, reverse=True)
    assert all(total <= limit or len(batch) == 1 for total, batch in zip(totals, batches, strict=True))


def test_a_large_model_has_several_files_of_an_eighth(monkeypatch):
    monkeypatch.setattr(merge_plan, "SMALLEST_SHARD", 10)
    shards = merge_plan.shards([task(5) for _ in range(40)])
    assert len(shards) == 8
    assert shards[-1].name == "model-00008-of-00008.safetensors"


RUNS = [
    ("neighbours", [stored(8, 4), stored(12, 4)], [Run(MODEL, "a", 8, 16)]),
    ("a small gap", [stored(0, 4), stored(4 + GAP_BYTES, 4)], [Run(MODEL, "a", 0, 8 + GAP_BYTES)]),
    (
        "a large gap",
        [stored(5 + GAP_BYTES, 4), stored(0, 4)],
        [Run(MODEL, "a", 0, 4), Run(MODEL, "a", 5 + GAP_BYTES, 9 + GAP_BYTES)],
    ),
    ("another file", [stored(0, 4), stored(4, 4, "b")], [Run(MODEL, "a", 0, 4), Run(MODEL, "b", 4, 8)]),
    ("the same twice", [stored(0, 4), stored(0, 4)], [Run(MODEL, "a", 0, 4)]),
]


@pytest.mark.parametrize(("what", "given_", "want"), RUNS, ids=[row[0] for row in RUNS])
def test_neighbours_are_fetched_together(what, given_, want):
    assert runs(given_) == want


def test_two_models_are_fetched_apart():
    assert len(runs([stored(0, 4), stored(4, 4, model=OTHER)])) == 2


def test_layers_are_told_by_number_and_the_rest_by_name():
    told = {
        "h.10.a": [1.0, 0.0],
        "h.2.a": [0.5, 0.5],
        "h.2.b": [0.1, 0.9],
        "h.0.a": [0, 1],
        "head": [0.2, 0.8],
    }
    assert [layer for layer, _ in by_layer(told)] == ["0", "2", "10", "head"]
    assert dict(by_layer(told))["2"] == pytest.approx([0.3, 0.7])
