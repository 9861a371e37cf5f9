"""The conversations that benchmarks/extract.py measures on: AlpacaEval's, from the shared test data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fusechat_stages import chat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import conftest


def texts() -> list[dict[str, Any]]:
    """Real English conversations: 805 questions with a model's answers."""
    shared = conftest.find_shared()
    if shared is None:
        raise SystemExit("this benchmark needs ../shared (alpaca_eval)")
    pairs = json.loads((shared / "alpaca_eval" / "alpaca_eval_gpt4_baseline.json").read_text())
    made = []
    for n, pair in enumerate(pairs):
        messages = [
            {"role": "user", "content": pair["instruction"]},
            {"role": "assistant", "content": pair["output"]},
        ]
        made.append({"id": str(n), "messages": messages})
    return made


def spoken(tokenizer: Any, longest: int, count: int) -> list[dict[str, Any]]:
    """`count` conversations of at most `longest` tokens, from all over the file."""
    within = [
        r
        for r in texts()
        if len(chat.render(tokenizer, "openchat_3.5", r["messages"], 4096).input_ids) <= longest
    ]
    return within[:: max(1, len(within) // count)][:count]
