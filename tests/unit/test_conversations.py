"""Raw records become canonical conversations; the first bad one is named in one sentence."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fusechat_stages.conversations import read_conversations, read_questions

SHAREGPT = {
    "id": "7",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello ü"}],
}
OPENAI = {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"},
                       {"role": "assistant", "content": "Hello ü"}]}  # fmt: skip
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello ü"}]


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [path]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.json", json.dumps([SHAREGPT])),
        ("d.json", json.dumps(SHAREGPT)),
        ("d.json", json.dumps(SHAREGPT) + "\n" + json.dumps(SHAREGPT)),
        ("d.jsonl", json.dumps(SHAREGPT) + "\n\n"),
        ("d.jsonl", "\ufeff" + json.dumps(SHAREGPT, ensure_ascii=False)),
    ],
)
def test_all_forms_are_read_alike(tmp_path, name, text):
    assert read_conversations(write(tmp_path, name, text))[0] == {"id": "7", "messages": TURNS}


def test_tables_are_read(tmp_path):
    pq.write_table(pa.Table.from_pylist([OPENAI, OPENAI]), tmp_path / "d.parquet")
    found = read_conversations([tmp_path / "d.parquet"])
    assert [record["id"] for record in found] == ["0", "1"]
    assert found[0]["messages"] == [{"role": "system", "content": "S"}, *TURNS]


def test_a_line_separator_inside_a_string_cuts_nothing(tmp_path):
    record = {"messages": [{"role": "user", "content": "a\u2028b"}, {"role": "assistant", "content": "c"}]}
    found = read_conversations(write(tmp_path, "d.jsonl", json.dumps(record, ensure_ascii=False)))
    assert found[0]["messages"][0]["content"] == "a\u2028b"


def test_a_question_without_an_answer_at_the_end_is_dropped_and_a_limit_kept(tmp_path):
    record = {"messages": [*TURNS, {"role": "user", "content": "and?"}]}
    files = write(tmp_path, "d.jsonl", "\n".join([json.dumps(record)] * 3))
    assert [r["messages"] for r in read_conversations(files, limit=2)] == [TURNS, TURNS]


def lone(*roles):
    return {"conversations": [{"from": role, "value": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (lone("gpt", "human"), r"starts with gpt \(assistant\) where human \(user\) was expected"),
        (lone("human", "human", "gpt"), r"at turn 1 human \(user\) where gpt"),
        (lone("human"), "no answer in it"),
        (lone("human", "gpt", "gpt"), "at turn 2"),
        (lone("human", "cat"), "unknown speaker 'cat'"),
        (lone(), "no answer in it"),
        ({"text": "x"}, "its keys are text"),
        ([1], "expected an object"),
        ({"conversations": "x"}, "expected a list under"),
        ({"conversations": ["x"]}, "expected an object, got str"),
        ({"conversations": [{"from": "human", "value": None}]}, "value must be text, got nothing"),
        ({"conversations": [{"from": "human", "value": 3}]}, "value must be text, got int"),
        (
            {"conversations": [{"from": "human", "value": "\ud800"}, {"from": "gpt", "value": "x"}]},
            "lone surrogate",
        ),
    ],
)
def test_a_bad_record_is_named_with_what_was_expected(tmp_path, record, says):
    files = write(tmp_path, "d.jsonl", json.dumps(SHAREGPT) + "\n" + json.dumps(record))
    with pytest.raises(ValueError, match=says) as caught:
        read_conversations(files)
    assert str(caught.value).startswith("d.jsonl line 2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.json", b'[{"id": "\xff"}]', "not UTF-8 .byte 0xff at 9"),
        ("d.json", b"[", "not JSON"),
        ("d.json", b"3", "expected a list of conversations, got int"),
        ("d.jsonl", b"{]", "line 1: not JSON"),
        ("d.parquet", b"PAR1", "not a readable parquet file"),
        ("d.arrow", b"x", "not a readable arrow file"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, says):
    with pytest.raises(ValueError, match=says):
        read_conversations(write(tmp_path, name, content))


def test_questions_of_both_forms(tmp_path):
    lines = [{"question": "2+2?", "answer": "4", "category": "sum"}, {"id": "c", **lone("human", "gpt")}]
    files = write(tmp_path, "q.jsonl", "\n".join(map(json.dumps, lines)))
    assert read_questions(files) == [
        {"id": "0", "messages": [{"role": "user", "content": "2+2?"}], "answer": "4", "category": "sum"},
        {"id": "c", "messages": [{"role": "user", "content": "x"}], "answer": "x", "category": None},
    ]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"question": "x"}, "answer must be text, got nothing"),
        ({"question": "x", "answer": 4}, "answer must be text, got int"),
        ({**lone("human", "gpt"), "answer": "y"}, "does not end with the user's question"),
        (lone("human"), "answer must be text"),
    ],
)
def test_a_bad_question_is_named(tmp_path, record, says):
    with pytest.raises(ValueError, match=says):
        read_questions(write(tmp_path, "q.jsonl", json.dumps(record)))
