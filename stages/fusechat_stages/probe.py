"""Asks a run's own store for the operator, which has no way in: questions in, answers as termination message.

`python -m fusechat_stages.probe --store=s3://... --part=0/1 --ask=...` (written by the operator's probes).
No stage and light: it starts in a second. Endpoint and credentials come from the environment.

Exit codes are entry's: 0 done, 64 wrong usage, 65 bad data, 69 and 75 trouble outside, 70 a fault of ours.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusechat import inquiry
from fusechat.errors import FusechatError, UsageError
from fusechat.store import Store

ATTEMPTS = 2
"""Of one request: a run that waits for its store must say so soon, and is asked again anyway."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer; the exit code. Never raises."""
    try:
        store, questions, part = _usage(sys.argv[1:] if arguments is None else arguments)
        said: dict[str, Any] = {"exitCode": 0, "answer": inquiry.answered(store, questions, part)}
    except Exception as error:
        said = _failure(error)
        print(f"error: {said['error']}", file=sys.stderr, flush=True)
    _say(said)
    return int(said["exitCode"])


def _usage(arguments: Sequence[str]) -> tuple[Store, list[inquiry.Question], tuple[int, int]]:
    told: dict[str, str] = {}
    for argument in arguments:
        name, _, value = argument.partition("=")
        told[name] = told.get(name, "") + value  # long questions come in pieces
    try:
        index, _, count = told["--part"].partition("/")
        store, part = Store(told["--store"], attempts=ATTEMPTS), (int(index), int(count))
        return store, inquiry.asked(told["--ask"]), part
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"expected --store=, --part=INDEX/COUNT and --ask=, got {error!r}; operator and stages are to be "
            "of one release"
        ) from error


def _failure(error: Exception) -> dict[str, Any]:
    if isinstance(error, FusechatError):
        return {"exitCode": error.exit_code, "error": str(error)[:2000], "reason": type(error).__name__}
    traceback.print_exc()
    return {"exitCode": 70, "error": f"{type(error).__name__}: {error}"[:2000], "reason": "Fault"}


def _say(said: dict[str, Any]) -> None:
    path = os.environ.get("FUSECHAT_SUMMARY_FILE") or "/dev/termination-log"
    if os.access(Path(path).parent, os.W_OK) or os.access(path, os.W_OK):
        Path(path).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
