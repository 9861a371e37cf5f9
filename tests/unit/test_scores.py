"""The score table: who stands where, paired against the fused model, and said in words."""

import json

import pytest
from fusechat.scores import (
    Subject,
    format_difference,
    perplexity_table,
    read_outcomes,
    render_markdown,
    render_text,
    score_table,
)


def exact(kind, name, right, n=10, **metrics):
    outcomes = {str(i): i in right for i in range(n)}
    by = {"odd": {"score": 0.5, "n": 5}, "even": {"score": 0.25, "n": 5}}
    score = {"score": len(right) / n, "n": n, "ci95": [0.1, 0.9], "byCategory": by, **metrics}
    return Subject(kind, name, score, outcomes)


SUBJECTS = [
    exact("Fused", "fused", {0, 1, 2, 3}),
    exact("Target", "b+c", {0, 1, 2}),
    exact("Source", "c", {9}),
    exact("Pivot", "b", set(), empty=2),
    exact("Control", "SFT", {0, 1, 2, 3}, truncated=1),
]


def test_rows_stand_in_the_order_of_the_method():
    table = score_table(SUBJECTS)
    assert [row.kind for row in table.rows] == ["Pivot", "Source", "Control", "Target", "Fused"]
    assert table.columns == ("even", "odd")
    assert table.rows[0].parts == {"odd": 0.5, "even": 0.25}


def test_every_difference_is_fused_minus_the_row_and_fused_has_none():
    table = score_table(SUBJECTS)
    found = [row.difference and round(row.difference.value, 9) for row in table.rows]
    assert found == [0.4, 0.3, 0.0, 0.1, None]
    assert all(row.difference.n == 10 for row in table.rows[:-1])


def test_without_outcomes_or_without_a_fused_model_there_is_no_difference():
    bare = [Subject(s.kind, s.name, s.metrics) for s in SUBJECTS]
    assert all(row.difference is None for row in score_table(bare).rows)
    assert all(row.difference is None for row in score_table(SUBJECTS[1:]).rows)


def test_nobody_asked_is_no_table():
    assert score_table([]) is None
    assert perplexity_table(SUBJECTS) is None


def test_text_has_one_aligned_line_a_row_and_says_what_was_left_unanswered():
    lines = render_text(score_table(SUBJECTS)).splitlines()
    assert len(lines) == 1 + 5 + 2
    header = " ".join(lines[0].split())
    assert header == "subject name exact match 95% fused - row 95% (paired) even odd"
    assert lines[1].startswith("Pivot    b ")
    assert "+0.400" in lines[1]
    assert "0.100 to 0.900" in lines[1]
    assert lines[6].strip() == "Empty answers, wrong unless that was expected: pivot 2."
    assert lines[7].strip() == "Answers cut at the token limit: control SFT 1."


def test_markdown_is_a_table_and_escapes_names():
    text = render_markdown(score_table([exact("Pivot", "a|b", {1})]))
    assert text.splitlines()[2].startswith("| Pivot | a\\|b | 0.100 |")


def test_perplexity_compares_bits_per_byte():
    def one(kind, name, bits):
        outcomes = {str(i): (bits * (10 + i), 10 + i) for i in range(5)}
        return Subject(kind, name, {"bitsPerByte": bits, "perplexity": 9.0, "ci95": [None, None]}, outcomes)

    table = perplexity_table([one("Fused", "f", 1.0), one("Pivot", "p", 1.5)])
    assert table.lower_is_better
    assert table.rows[0].difference.value == pytest.approx(-0.5)
    pivot = " ".join(render_text(table).splitlines()[1].split())
    assert pivot == "Pivot p 1.500 - -0.500 -0.500 to -0.500 9.000"


def test_outcomes_are_read_from_the_stage_s_files():
    answers = [json.dumps({"id": "q\u2028", "correct": True, "output": "x"}), ""]
    assert read_outcomes(answers) == {"q\u2028": True}
    assert read_outcomes([json.dumps({"id": "s", "bits": 2.5, "bytes": 4, "tokens": 1})]) == {"s": (2.5, 4)}


def test_records_of_one_id_are_told_apart_by_their_order():
    answers = [json.dumps({"id": i, "correct": c}) for i, c in [("a", True), ("b", True), ("a", False)]]
    assert read_outcomes(answers) == {"a": True, "b": True, "a#2": False}


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0344, "+0.034"), (-0.5, "-0.500"), (-0.0004, "0.000"), (0.0, "0.000")]
)
def test_a_difference_that_rounds_to_nothing_has_no_sign(value, shown):
    assert format_difference(value) == shown
