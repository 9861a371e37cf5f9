"""Stage fetch: a model or a dataset at a pin -> S3, once, by files that resume.

A model's files are copied as they are (a file is a block). A dataset becomes canonical conversations in
blocks of at most 2,048, one JSON object a line: the only form that later stages read.
params: {"kind": "model" | "dataset" | "questions", "pin", "code", "split", "limit"}; where it comes from is
in runtime (`uri`, `revision`), because a pin names the same bytes wherever they lie.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusechat.address import digest
from fusechat.errors import BadData

from fusechat_stages import conversations, origins, shards
from fusechat_stages.artifacts import Input, Output
from fusechat_stages.origins import Origin

VERSION = 1


def run(params: Mapping[str, Any], inputs: Mapping[str, Input], out: Output) -> None:
    """Copy and check. Raises BadData when the bytes are not those of the pin, or not what they should be."""
    if params["kind"] == "model":
        _model(params, out)
    else:
        _data(params, out)


def summarise(sums: dict[str, Any]) -> dict[str, Any]:
    """The artifact's metrics from the sums over its blocks."""
    return sums


def _model(params: Mapping[str, Any], out: Output) -> None:
    uri = out.runtime["uri"]
    files = origins.list_model(uri, _revision(params, out), code=bool(params.get("code")))
    total, done = sum(file.size for file in files), 0
    seen: list[list[Any]] = []
    for block in out.blocks(len(files)):
        file = files[block]
        local = out.folder / file.path
        sha256 = file.copy(local)
        seen.append([file.path, local.stat().st_size, sha256])
        out.publish_block(block, {file.path: local}, {"bytes": seen[-1][1], "files": 1})
        done += file.size
        out.progress(done, total, "bytes", file=file.path)
    # A resumed attempt has not read every file again: the first attempt's parts are checked by their sha256.
    if len(seen) == len(files):
        _check_pin(uri, params["pin"], seen)


def _data(params: Mapping[str, Any], out: Output) -> None:
    uri = out.runtime["uri"]
    files = origins.list_data(uri, _revision(params, out), params.get("split"))
    local = [_copied(file, out) for file in files]
    _check_pin(uri, params["pin"], [seen for _, seen in local])
    read = conversations.read_questions if params["kind"] == "questions" else conversations.read_conversations
    records = read([path for path, _ in local], limit=params.get("limit"))
    if not records:
        raise BadData(f"{uri}: no record in {len(files)} file(s); expected at least one conversation")
    size = shards.BLOCK_SAMPLES
    count = -(-len(records) // size)
    for block in out.blocks(count):
        chunk = records[block * size : (block + 1) * size]
        path = out.folder / shards.block_name(block, "jsonl")
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in chunk]
        path.write_text("".join(lines), encoding="utf-8")
        out.publish_block(block, {path.name: path}, {"samples": len(chunk), "blocks": 1})
        out.progress(min((block + 1) * size, len(records)), len(records), "samples")


def _copied(file: Origin, out: Output) -> tuple[Path, list[Any]]:
    target = out.folder / "raw" / file.path
    sha256 = file.copy(target)
    return target, [file.path, target.stat().st_size, sha256]


def _revision(params: Mapping[str, Any], out: Output) -> str | None:
    pin = str(params["pin"])
    return pin.removeprefix("hf:") if pin.startswith("hf:") else out.runtime.get("revision")


def _check_pin(uri: str, pin: str, seen: list[list[Any]]) -> None:
    if not pin.startswith("sha256:"):
        return
    found = f"sha256:{digest(sorted(seen))}"
    if found != pin:
        raise BadData(
            f"{uri}: its content is {found[:19]}..., pinned was {pin[:19]}...; it changed since: "
            "restore it, or run again to pin what is there now"
        )
