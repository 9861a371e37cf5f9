"""Raw dataset files -> canonical conversations and questions, or one sentence about the first bad record.

Used by fetch. Reads .json, .jsonl, .parquet and .arrow in the two forms people have: FuseChat's and
ShareGPT's {"conversations": [{"from", "value"}]} and OpenAI's {"messages": [{"role", "content"}]}.
Knows no tokenizer and no store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusechat.errors import BadData

ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bot": "assistant", "model": "assistant", "system": "system",
}  # fmt: skip
SPEAKERS = {"user": "human (user)", "assistant": "gpt (assistant)", "system": "system"}


def read_conversations(files: list[Path], *, limit: int | None = None) -> list[dict[str, Any]]:
    """{"id", "messages"} of every record: an optional system message, then user and assistant in turn."""
    return [conversation(where, n, record) for n, (where, record) in enumerate(_records(files, limit))]


def read_questions(files: list[Path], *, limit: int | None = None) -> list[dict[str, Any]]:
    """{"id", "messages" ending with the user, "answer", "category"} of every record."""
    return [question(where, n, record) for n, (where, record) in enumerate(_records(files, limit))]


def conversation(where: str, number: int, record: Any) -> dict[str, Any]:
    """One canonical conversation; a last user message is dropped, for nothing answers it."""
    messages = _messages(where, record)
    if messages and messages[-1]["role"] == "user":
        messages = messages[:-1]
    _check_turns(where, messages)
    if not any(message["role"] == "assistant" for message in messages):
        raise BadData(f"{where}: no answer in it; expected at least one message from gpt (or assistant)")
    return {"id": str(record.get("id", number)), "messages": messages}


def question(where: str, number: int, record: Any) -> dict[str, Any]:
    """One canonical question with its expected answer."""
    if isinstance(record, dict) and "question" in record:
        messages = [{"role": "user", "content": _text(where, "question", record["question"])}]
    else:
        messages = _messages(where, record)
    answer = record.get("answer")
    if answer is None and messages and messages[-1]["role"] == "assistant":
        answer, messages = messages[-1]["content"], messages[:-1]
    _check_turns(where, messages)
    if not messages or messages[-1]["role"] != "user":
        raise BadData(f"{where}: it does not end with the user's question; expected the answer in `answer`")
    category = record.get("category")
    return {
        "id": str(record.get("id", number)),
        "messages": messages,
        "answer": _text(where, "answer", answer),
        "category": None if category is None else str(category),
    }


def _messages(where: str, record: Any) -> list[dict[str, str]]:
    if not isinstance(record, dict):
        raise BadData(f"{where}: expected an object with `conversations` or `messages`, got {_kind(record)}")
    found = record.get("conversations", record.get("messages"))
    if not isinstance(found, list):
        keys = ", ".join(sorted(record)[:6]) or "none"
        raise BadData(f"{where}: expected a list under `conversations` or `messages`; its keys are {keys}")
    return [_message(f"{where}, message {i}", message) for i, message in enumerate(found)]


def _message(where: str, message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise BadData(f"{where}: expected an object, got {_kind(message)}")
    role = message.get("from", message.get("role"))
    if role not in ROLES:
        raise BadData(f"{where}: unknown speaker {role!r}, expected one of {', '.join(ROLES)}")
    return {
        "role": ROLES[role],
        "content": _text(where, "value", message.get("value", message.get("content"))),
    }


def _text(where: str, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadData(f"{where}: {field} must be text, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadData(f"{where}: {field} is not valid Unicode (a lone surrogate at {error.start})") from error
    return value


def _check_turns(where: str, messages: list[dict[str, str]]) -> None:
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    for i, message in enumerate(turns):
        expected = "user" if i % 2 == 0 else "assistant"
        if message["role"] != expected:
            place = "starts with" if i == 0 else f"has at turn {i}"
            raise BadData(
                f"{where}: the conversation {place} {SPEAKERS[message['role']]} where {SPEAKERS[expected]} "
                "was expected; user and assistant must take turns, the user first"
            )


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _records(files: list[Path], limit: int | None) -> Iterator[tuple[str, Any]]:
    number = 0
    for file in files:
        for place, record in _READERS[file.suffix](file):
            if limit is not None and number >= limit:
                return
            yield f"{file.name} {place}", record
            number += 1


def _decoded(file: Path) -> str:
    raw = file.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(
            f"{file.name}: not UTF-8 (byte {raw[error.start]:#04x} at {error.start}); convert it"
        ) from error


def _read_json(file: Path) -> Iterator[tuple[str, Any]]:
    text = _decoded(file)
    try:
        read = json.loads(text)
    except ValueError as error:
        # One object a line under the name .json is common enough to be read as what it is.
        if "Extra data" in str(error):
            yield from _read_lines(file)
            return
        raise BadData(f"{file.name}: not JSON ({error}); expected a list of conversations") from error
    if isinstance(read, dict):
        read = [read]
    if not isinstance(read, list):
        raise BadData(f"{file.name}: expected a list of conversations, got {_kind(read)}")
    for i, record in enumerate(read):
        yield f"record {i}", record


def _read_lines(file: Path) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): U+2028 and its like may stand inside a JSON string.
    for i, line in enumerate(_decoded(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {i}", json.loads(line)
        except ValueError as error:
            raise BadData(f"{file.name} line {i}: not JSON ({error}); expected one object a line") from error


def _read_table(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.suffix == ".parquet":
            batches: Any = pq.ParquetFile(file).iter_batches()
        else:
            batches = pa.ipc.open_stream(pa.memory_map(str(file)))
        row = 0
        for batch in batches:
            for record in batch.to_pylist():
                yield f"row {row}", record
                row += 1
    except pa.ArrowInvalid as error:
        raise BadData(f"{file.name}: not a readable {file.suffix[1:]} file ({error})") from error


_READERS = {".json": _read_json, ".jsonl": _read_lines, ".parquet": _read_table, ".arrow": _read_table}
