"""What may be deleted: only what no reference names and nothing in it is young."""

from datetime import UTC, datetime, timedelta

import pytest
from fusechat.store import Object
from fusechat.store_gc import garbage
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = datetime(2026, 6, 1, tzinfo=UTC)
BEFORE = NOW - timedelta(days=7)
OLD, YOUNG = NOW - timedelta(days=8), NOW - timedelta(days=6)
A, B = "extract/" + "a" * 64, "merge/" + "b" * 64


def objects(*keys_and_times):
    return sorted((Object(key, 10, time) for key, time in keys_and_times), key=lambda found: found.key)


def collected(listing, keep=(), named=lambda address: None):
    return garbage(listing, keep, BEFORE, named)


def test_an_old_artifact_that_nothing_names_goes_whole():
    found = collected(
        objects((f"{A}/manifest.json", OLD), (f"{A}/data/one/x", OLD), (f"{B}/manifest.json", OLD)), {B}
    )
    assert found.artifacts == (A,)
    assert found.keys == (f"{A}/data/one/x", f"{A}/manifest.json")
    assert found.size == 20


@pytest.mark.parametrize(
    ("why", "listing", "keep"),
    [
        ("a reference names it", [(f"{A}/manifest.json", OLD)], {A}),
        ("one object in it is young", [(f"{A}/manifest.json", OLD), (f"{A}/data/two/x", YOUNG)], ()),
        (
            "it is no artifact of ours",
            [("runs/1.json", OLD), ("refs/c/1.json", OLD), ("extract/x/y", OLD)],
            (),
        ),
        ("it is exactly as old as asked", [(f"{A}/manifest.json", BEFORE)], ()),
        ("its kept artifact is not published yet", [(f"{A}/data/one/x", OLD)], {A}),
    ],
)
def test_nothing_goes_where(why, listing, keep):
    assert collected(objects(*listing), keep) == collected([]), why


def test_of_a_kept_artifact_go_old_data_and_checkpoints_that_nothing_names():
    listing = objects(
        (f"{A}/manifest.json", OLD),
        (f"{A}/data/won/x", OLD),
        (f"{A}/data/lost/x", OLD),
        (f"{A}/data/late/x", YOUNG),
        (f"{A}/checkpoints/won/8/rank0", OLD),
        (f"{A}/logs/lost.log", OLD),
    )
    found = collected(listing, {A}, lambda address: {f"{address}/data/won/x"})
    assert found.artifacts == ()
    assert set(found.keys) == {f"{A}/data/lost/x", f"{A}/checkpoints/won/8/rank0"}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([A, B, "fetch/" + "c" * 64]), st.sampled_from("pqrs"), st.integers(0, 20)),
        unique_by=lambda row: row[:2],
    ),
    st.sets(st.sampled_from([A, B])),
    st.sets(st.sampled_from([A, B])),
)
def test_more_references_or_less_age_never_delete_more(rows, few, extra):
    listing = objects(*((f"{a}/data/one/{name}", NOW - timedelta(days=age)) for a, name, age in rows))
    less = set(garbage(listing, few | extra, BEFORE, lambda a: None).keys)
    more = set(garbage(listing, few, BEFORE, lambda a: None).keys)
    older = set(garbage(listing, few, BEFORE - timedelta(days=5), lambda a: None).keys)
    assert less <= more
    assert older <= more
    assert not any(key.startswith(tuple(few)) for key in more if few)
