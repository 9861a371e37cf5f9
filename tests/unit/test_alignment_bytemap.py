"""From source ids to pivot ids by bytes: preferences, end-of-turn, special tokens, and first tokens."""

import numpy as np
import pytest
from fusechat_stages.numerics.alignment import PLAIN, SPACED, STRIPPED
from fusechat_stages.numerics.bytemap import NONE, ByteMap, Vocabulary, longest_prefix


def vocabulary(
    tokens: list[tuple[str | None, bytes | None]], end: int, stops: set[int] | None = None
) -> Vocabulary:
    """(piece, bytes) by id; bytes None: a special token."""
    return Vocabulary(
        [b or b"" for _, b in tokens],
        [piece for piece, _ in tokens],
        [b is None and piece is not None for piece, b in tokens],
        end,
        frozenset({end} if stops is None else stops),
    )


PIVOT = vocabulary(
    [
        ("<unk>", None), ("<s>", None), ("<end>", None), ("<pad>", None),  # 0-3
        ("<0x41>", b"A"), ("<0x42>", b"B"), ("A", b"A"), ("▁A", b" A"),  # 4-7
        ("Hel", b"Hel"), ("▁", b" "), ("▁Hello", b" Hello"), ("Hello", b"Hello"), (None, b""),  # 8-12
        ("<stop>", None), ("A ", b"A"),  # 13, 14: bytes of another piece
    ],
    end=2,
    stops={2, 13},
)  # fmt: skip
SOURCE = vocabulary(
    [
        ("<s>", None), ("<|im_end|>", None), ("<stop>", None), ("<tool>", None), ("<unk>", None),  # 0-4
        ("A", b"A"), ("ĠA", b" A"), ("B", b"B"), ("Help", b"Help"), ("ĠHello", b" Hello"),  # 5-9
        ("<0x41>", b"A"), ("Ġ", b" "), (None, b""), ("\xc3", b"\xc3"), ("<eos>", None), ("A ", b"A"),  # 10-15
        ("Hello", b"Hello"),  # 16
    ],
    end=1,
    stops={1, 2, 14},
)  # fmt: skip


def mapped(i: int, variant: int = PLAIN, **options) -> tuple[int, bool]:
    prefix = longest_prefix(PIVOT)
    table = ByteMap(SOURCE, PIVOT, lambda texts: [prefix(text) for text in texts], **options)
    target, exact = table.lookup(np.array([i]), variant)
    return int(target[0]), bool(exact[0])


@pytest.mark.parametrize(
    ("name", "source", "variant", "want"),
    [
        ("equal bytes: the piece, not the byte token", 5, PLAIN, (6, True)),
        ("equal bytes and equal piece: the byte token to itself", 10, PLAIN, (4, True)),
        ("equal bytes and equal piece: a later twin", 15, PLAIN, (14, True)),
        ("equal bytes under another marker", 6, PLAIN, (7, True)),
        ("only a byte token has the bytes", 7, PLAIN, (5, True)),
        ("no equal: the first pivot token of its bytes", 8, PLAIN, (8, False)),
        ("half a character that the pivot cannot begin", 13, PLAIN, (NONE, False)),
        ("end-of-turn to end-of-turn", 1, PLAIN, (2, True)),
        ("another stop token to its twin", 2, PLAIN, (13, True)),
        ("a stop token without twin to the end-of-turn", 14, PLAIN, (2, True)),
        ("a special token to its twin", 0, PLAIN, (1, True)),
        ("a special token without twin to nothing", 3, PLAIN, (NONE, False)),
        ("an id without a token to nothing", 12, PLAIN, (NONE, False)),
        ("an id beyond the tokenizer to nothing", 99, PLAIN, (NONE, False)),
        ("spaced: as if behind the separator", 16, SPACED, (10, True)),
        ("spaced, end-of-turn stays", 1, SPACED, (2, True)),
        ("spaced, the first token may be the space alone", 7, SPACED, (9, False)),
        ("stripped: the space is the separator's", 9, STRIPPED, (11, True)),
        ("stripped, no space to strip", 16, STRIPPED, (11, True)),
        ("stripped, the separator alone is nothing", 11, STRIPPED, (NONE, False)),
    ],
)
def test_where_an_id_goes(name, source, variant, want):
    assert mapped(source, variant) == want, name


def test_equal_vocabularies_map_every_id_to_itself_but_the_end_of_turn():
    pieces = [("<a>", None), ("<b>", None), ("x", b"x"), ("y", b"x"), (None, b"")]
    source, pivot = vocabulary(pieces, end=0), vocabulary(pieces, end=1)
    table = ByteMap(source, pivot, lambda texts: [], same=True)
    target, exact = table.lookup(np.arange(5), PLAIN)
    assert target.tolist() == [1, 1, 2, 3, 4]
    assert exact.all()


def test_ids_are_encoded_once():
    calls = []
    table = ByteMap(SOURCE, PIVOT, lambda texts: calls.append(list(texts)) or [8] * len(texts))
    for _ in range(2):
        table.lookup(np.array([[8, 5], [8, 8]]), PLAIN)
    assert calls[0] == [b"Help"]
    assert sum(len(call) for call in calls) == 1


def test_an_end_of_turn_of_several_tokens_is_no_symbol():
    """Its first token means itself elsewhere in a text; only the pivot's side of it can be aimed at."""
    source = vocabulary([("<", b"<"), ("end", b"end")], end=0, stops=set())
    pivot = vocabulary([("<", b"<"), ("<end>", None)], end=1)
    target, _ = ByteMap(source, pivot, lambda texts: [NONE] * len(texts)).lookup(np.array([0]), PLAIN)
    assert target.tolist() == [0]
