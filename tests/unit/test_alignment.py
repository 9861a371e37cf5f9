"""Positions by bytes (profile Corrected): the same text on both sides, mass kept, itself the identity."""

from functools import cache

import numpy as np
import pytest
from fusechat_stages import align_corrected, align_tokens, chat
from fusechat_stages.numerics import alignment
from fusechat_stages.numerics.alignment import PLAIN, SPACED, STRIPPED, Side
from fusechat_stages.numerics.bytemap import ByteMap
from fusechat_stages.shards import EMPTY, EXACT, Aligned, Rows
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizers import KINDS
from tests.unit.align_cases import ANSWERS, conversations, write_block

SIDES = {
    "marker, separator": ("marker always", "openchat_3.5"),
    "marker, no separator": ("marker never", "gemma"),
    "marker, mistral": ("marker first", "mistral"),
    "bytes, no separator": ("byte-level", "qwen"),
    "bytes, separator": ("byte-level", "openchat_3.5"),
    "bytes, stripping": ("byte-level with bos", "llama-3"),
    "own template": ("byte-level, NFC", "auto"),
    "end-of-turn in pieces": ("no control tokens", "openchat_3.5"),
}


@cache
def tokenizer(name: str):
    return KINDS[name]()


@cache
def vocabulary(side: str):
    kind, template = SIDES[side]
    return align_tokens.vocabulary(tokenizer(kind), template)


def block(tmp_path, side: str, **options) -> Rows:
    kind, template = SIDES[side]
    options = {"talks": conversations(), **options}
    return write_block(tmp_path / "block.arrow", tokenizer(kind), template, **options)


def align(pivot: Rows, source: Rows, pivot_side: str, source_side: str) -> tuple[Aligned, np.ndarray]:
    left, right = vocabulary(pivot_side), vocabulary(source_side)
    tokenizers = tokenizer(SIDES[pivot_side][0]), tokenizer(SIDES[source_side][0])
    first = align_tokens.first_tokens(tokenizers[0], left)
    table = ByteMap(right, left, first, same=align_tokens.same_vocabulary(*tokenizers))
    tables = align_corrected.byte_table(left), align_corrected.byte_table(right)
    return align_corrected.align_block(pivot, source, table, *tables)


def consumed(rows: Rows, side: str) -> list[tuple[int, int, bytes, bool]]:
    """Per row (sample's index, turn's ordinal, the answer's text before it, is it the last with it)."""
    known, found, u = vocabulary(side).bytes, [], 0
    for s in range(rows.samples):
        for _ in range(int(rows.turn_offsets[s + 1] - rows.turn_offsets[s])):
            ids = rows.sample_ids(s)[rows.turn_start[u] : rows.turn_end[u]].tolist()
            texts = [b"".join(known[i] for i in ids[:n]) for n in range(len(ids))]
            whole, size = b"".join(known[i] for i in ids), int(rows.turn_bytes[u])
            separator = (
                1 if SIDES[side][1] in ("openchat_3.5", "mistral") and whole[:1] == b" " and size else 0
            )
            texts = [text[separator:] for text in texts]
            for n, text in enumerate(texts):
                last = n + 1 == len(texts) or texts[n + 1] != text
                found.append((int(rows.index[s]), int(rows.turn_ordinal[u]), text, last))
            u += 1
    return found


@pytest.mark.parametrize("source_side", SIDES)
@pytest.mark.parametrize("pivot_side", ["marker, separator", "bytes, no separator", "bytes, stripping"])
def test_a_row_takes_the_row_with_the_same_text_before_it(pivot_side, source_side, tmp_path):
    """The source's row is told by its tail; every text that both reach is matched, and nothing else is."""
    pivot, source = block(tmp_path, pivot_side), block(tmp_path, source_side)
    numbered = (np.arange(len(source.tail), dtype=np.float32) + 1) / 4096
    aligned, _ = align(pivot, _with(source, tail=numbered), pivot_side, source_side)
    left, right = consumed(pivot, pivot_side), consumed(source, source_side)
    place = {row[:3]: r for r, row in enumerate(right) if row[3]}
    assert np.mean([row[:3] in place for row in left]) > 0.3
    for r, row in enumerate(left):
        if row[3]:
            got = round(float(aligned.tail[r]) * 4096) - 1
            assert got == place.get(row[:3], -1), (row, right[got])


def _with(rows: Rows, **changed) -> Rows:
    return Rows(**{**vars(rows), **changed})


@pytest.mark.parametrize("source_side", SIDES)
@pytest.mark.parametrize("pivot_side", SIDES)
def test_mass_is_conserved_for_every_pair(pivot_side, source_side, tmp_path):
    pivot, source = block(tmp_path, pivot_side, seed=1), block(tmp_path, source_side, seed=2)
    aligned, mass = align(pivot, source, pivot_side, source_side)
    used = aligned.kind != EMPTY
    assert used.mean() > 0.25
    np.testing.assert_allclose((mass + aligned.tail + aligned.unmapped)[used], 1, atol=1e-3)
    assert not (mass + aligned.tail + aligned.unmapped > 1.001).any()
    assert (aligned.topk_ids < vocabulary(pivot_side).size).all()


@pytest.mark.parametrize("side", SIDES)
def test_a_tokenizer_aligned_with_itself_is_the_identity(side, tmp_path):
    pivot, source = block(tmp_path, side, seed=1), block(tmp_path, side, seed=2)
    aligned, _ = align(pivot, source, side, side)
    for name in ("topk_ids", "scores", "tail"):
        np.testing.assert_array_equal(getattr(aligned, name), getattr(source, name))
    assert (aligned.unmapped == 0).all()
    assert (aligned.kind == EXACT).all()


def test_the_identity_needs_no_equal_ids(tmp_path, monkeypatch):
    """Also through the bytes, without the short cut for equal vocabularies."""
    monkeypatch.setattr(align_tokens, "same_vocabulary", lambda *_: False)
    for side in ("marker, separator", "bytes, no separator"):
        test_a_tokenizer_aligned_with_itself_is_the_identity(side, tmp_path)


def test_the_first_row_reads_past_the_separator(tmp_path):
    """Pivot "▁I", source "I": both predict the answer's first word, with the pivot's separator in it."""
    talks = conversations([("How are you today?", "Hello there")])
    pivot = block(tmp_path, "marker, separator", talks=talks)
    source = block(tmp_path, "bytes, no separator", talks=talks)
    gold = source.sample_ids(0)[source.turn_start[0]]
    source.topk_ids[0, 0] = gold
    aligned, _ = align(pivot, source, "marker, separator", "bytes, no separator")
    right, left = vocabulary("bytes, no separator").bytes, vocabulary("marker, separator").bytes
    to = aligned.topk_ids[0].tolist()
    first = pivot.sample_ids(0)[pivot.turn_start[0]]
    assert left[first].startswith(b" ")
    assert any(left[i].startswith(b" ") and (b" " + right[gold]).startswith(left[i]) for i in to if i >= 0)


def side_of(ends: list[list[int]], answer: int, spaced: bool = False) -> Side:
    """One turn a list: end bytes of its rows. `spaced`: the first gold token has one byte more."""
    turn = np.repeat(np.arange(len(ends)), [len(e) for e in ends])
    end = np.concatenate([np.array(e, dtype=np.int64) for e in ends])
    lengths = np.concatenate([np.diff([0, *e]) for e in ends])
    first = np.concatenate([np.arange(len(e)) == 0 for e in ends])
    return Side(turn, end, lengths + (first & spaced), first & spaced, np.full(len(end), answer))


ALL = np.full(9, np.iinfo(np.int64).max)


@pytest.mark.parametrize(
    ("name", "pivot", "source", "want"),
    [
        ("the same", [[2, 5, 9]], [[2, 5, 9]], [0, 1, 2]),
        ("the pivot's are finer", [[1, 2, 3, 5, 9]], [[2, 5, 9]], [0, -1, 1, -1, 2]),
        ("the source's are finer", [[5, 9]], [[2, 5, 9]], [0, 2]),
        ("the source ends early", [[2, 5, 9]], [[2]], [0, -1, -1]),
        ("the source has the next row still", [[2, 5, 9]], [[2, 4]], [0, 1, -1]),
        ("turn by turn", [[2, 9], [9]], [[9], [3, 9]], [0, -1, 1]),
        ("a separator of its own on both sides", [[0, 4]], [[0, 4]], [0, 1]),
        ("a separator of its own on one side", [[0, 4]], [[4]], [-1, 0]),
        ("tokens without bytes match from the last", [[2, 2, 2, 4]], [[2, 2, 4]], [0, -1, 1, 2]),
        ("no source at all", [[2, 4]], [[]], [-1, -1]),
    ],
)
def test_positions(name, pivot, source, want):
    match = alignment.match_rows(side_of(pivot, 8), side_of(source, 8), ALL)
    assert match.tolist() == want, name


def test_only_the_bytes_that_are_equal_are_matched():
    one = side_of([[2, 5, 9]], 8)
    assert alignment.match_rows(one, one, np.array([2])).tolist() == [0, 1, -1]
    assert alignment.common_end(one, one, np.array([4])).tolist() == [2]


@pytest.mark.parametrize(
    ("pivot", "source", "want"),
    [(False, False, PLAIN), (True, True, PLAIN), (True, False, SPACED), (False, True, STRIPPED)],
)
def test_only_the_first_row_is_read_in_another_way(pivot, source, want):
    left, right = side_of([[3, 8, 9]], 8, pivot), side_of([[3, 8, 9]], 8, source)
    assert alignment.variants(left, right, np.arange(3)).tolist() == [want, PLAIN, PLAIN]


def test_an_empty_answer_is_read_as_the_blocks_other_turns():
    full, empty = [3, 9], [9]
    side = Side(
        np.array([0, 0, 1]), np.array([*full, *empty]), np.array([4, 0, 0]), np.array([True, False, False]),
        np.array([8, 8, 8]),
    )  # fmt: skip
    assert alignment.separator_merged(side).tolist() == [True, False, True]
    alone = Side(np.array([0]), np.array([1]), np.array([0]), np.array([False]), np.array([0]))
    assert alignment.separator_merged(alone).tolist() == [False]


@pytest.mark.parametrize(
    ("name", "pivot", "source", "want"),
    [
        ("both whole: the end-of-turn", [[4, 8, 9]], [[8, 9]], 9),
        ("the source is cut at a boundary of both", [[4, 8, 9]], [[2, 4]], 4),
        ("the source is cut within a pivot's token", [[4, 8, 9]], [[2, 4, 6]], 4),
        ("nothing in common", [[4]], [[3]], 0),
        ("one side lacks the turn", [[4, 9]], [[]], 0),
    ],
)
def test_the_range_that_both_scored(name, pivot, source, want):
    assert alignment.common_end(side_of(pivot, 8), side_of(source, 8), ALL[:1]).tolist() == [want], name


def test_the_metric_is_nats_per_answer_byte_over_the_common_range(tmp_path):
    """Truncated source: the pivot's rows beyond its last common boundary do not count."""
    talks = conversations([ANSWERS[0], ANSWERS[5]])
    pivot = block(tmp_path, "marker, separator", talks=talks)
    source = block(tmp_path, "bytes, no separator", talks=talks, max_length=45)
    aligned, _ = align(pivot, source, "marker, separator", "bytes, no separator")
    for s in range(pivot.samples):
        nats, size = np.zeros(2), 0
        for u in range(int(pivot.turn_offsets[s]), int(pivot.turn_offsets[s + 1])):
            here = [(rows, *_turn(rows, s, int(pivot.turn_ordinal[u]))) for rows in (pivot, source)]
            if not all(len(end) for _, end, _ in here):
                continue
            limit = max(set(here[0][1].tolist()) & set(here[1][1].tolist()), default=0)
            nats += [ce[end <= limit].sum() if limit else 0 for _, end, ce in here]
            size += min(limit, int(pivot.turn_bytes[u]))
        np.testing.assert_allclose([aligned.ce_pivot[s], aligned.ce_source[s]], nats / size, rtol=1e-5)
    assert (np.diff(source.row_offsets) < 40).any()


def _turn(rows: Rows, s: int, ordinal: int) -> tuple[np.ndarray, np.ndarray]:
    turns = range(int(rows.turn_offsets[s]), int(rows.turn_offsets[s + 1]))
    at = int(rows.row_offsets[s])
    for u in turns:
        size = int(rows.turn_end[u] - rows.turn_start[u])
        if rows.turn_ordinal[u] == ordinal:
            return rows.end_byte[at : at + size], rows.ce[at : at + size]
        at += size
    return np.zeros(0), np.zeros(0)


def test_samples_that_only_one_side_has_are_empty_and_undefined(tmp_path):
    pivot = block(tmp_path, "marker, separator", only=[0, 1, 2, 4])
    source = block(tmp_path, "bytes, no separator", only=[1, 3, 4])
    aligned, _ = align(pivot, source, "marker, separator", "bytes, no separator")
    assert aligned.ids == pivot.ids
    rows = np.split(aligned.kind, aligned.row_offsets[1:-1])
    assert [bool((kinds != EMPTY).any()) for kinds in rows] == [False, True, False, True]
    assert (
        np.isnan(aligned.ce_pivot).tolist()
        == np.isnan(aligned.ce_source).tolist()
        == [True, False, True, False]
    )


@pytest.mark.parametrize(("pivots", "sources"), [([], []), ([], [0]), ([0, 5], [])])
def test_a_block_without_samples_aligns(pivots, sources, tmp_path):
    pivot = block(tmp_path, "marker, separator", only=pivots)
    source = block(tmp_path, "bytes, no separator", only=sources)
    aligned, _ = align(pivot, source, "marker, separator", "bytes, no separator")
    assert len(aligned.kind) == len(pivot.ce)
    assert (aligned.kind == EMPTY).all()


def test_the_order_of_the_sources_samples_does_not_matter(tmp_path):
    pivot = block(tmp_path, "marker, separator", seed=1)
    talks = conversations()
    for order in (range(len(talks)), reversed(range(len(talks)))):
        parts = [block(tmp_path, "bytes, no separator", only=[i], seed=i) for i in order]
        source = _join(parts)
        aligned, _ = align(pivot, source, "marker, separator", "bytes, no separator")
        if parts[0].index[0] == 0:
            want = aligned
    for name in ("topk_ids", "scores", "tail", "unmapped", "kind", "ce_pivot", "ce_source"):
        np.testing.assert_array_equal(getattr(aligned, name), getattr(want, name))


def _join(parts: list[Rows]) -> Rows:
    arrays = {}
    for name, value in vars(parts[0]).items():
        if name == "ids":
            arrays[name] = [id for part in parts for id in part.ids]
        elif name.endswith("_offsets"):
            sizes = np.concatenate([np.diff(getattr(part, name)) for part in parts])
            arrays[name] = np.concatenate([[0], np.cumsum(sizes)])
        elif name == "meta":
            arrays[name] = value
        else:
            arrays[name] = np.concatenate([getattr(part, name) for part in parts])
    return Rows(**arrays)


TEXTS = st.lists(
    st.sampled_from([" ", "\n", "a", "Hello", "fox", "é", "你好", "🙂", "12", ".", "  "]), max_size=8
)


@settings(max_examples=12, deadline=None)
@given(st.lists(TEXTS.map("".join), min_size=1, max_size=3), st.sampled_from(list(SIDES)), st.data())
def test_any_answer_keeps_its_mass_and_ends_together(tmp_path_factory, answers, pivot_side, data):
    source_side = data.draw(st.sampled_from(list(SIDES)))
    talks = conversations([("How are you?", answer) for answer in answers])
    folder = tmp_path_factory.mktemp("any")
    pivot, source = block(folder, pivot_side, talks=talks), block(folder, source_side, talks=talks, seed=3)
    if not pivot.samples or not source.samples:
        return
    aligned, mass = align(pivot, source, pivot_side, source_side)
    used = aligned.kind != EMPTY
    np.testing.assert_allclose((mass + aligned.tail + aligned.unmapped)[used], 1, atol=1e-3)
    if pivot.turn_bytes.tolist() == source.turn_bytes.tolist():  # no template has stripped an answer
        assert np.isfinite(aligned.ce_pivot).all()


def test_every_token_goes_to_a_token_that_its_bytes_begin_with():
    for pivot_side, source_side in (
        ("marker, separator", "bytes, no separator"),
        ("bytes, no separator", "marker, mistral"),
    ):
        left, right = vocabulary(pivot_side), vocabulary(source_side)
        find = align_tokens.first_tokens(tokenizer(SIDES[pivot_side][0]), left)
        texts = [text for text in right.bytes if text]
        firsts = find(texts)
        assert all(
            i >= 0 and text.startswith(left.bytes[i]) and left.bytes[i]
            for i, text in zip(firsts, texts, strict=True)
        )
        assert {chat.token_bytes(tokenizer(SIDES[pivot_side][0]))[i] for i in firsts} != set(texts)
