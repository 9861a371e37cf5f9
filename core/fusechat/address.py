"""Addresses of steps: the hash of a recipe, as in Nix.

Pure. Called by plan. Knows what an address is made of and nothing of what a stage does. The address of a
step is `<stage>/<sha256>` over the stage, the stage's version, the parameters that change its bytes and
the addresses of its inputs; nothing about where, when or how fast it runs is in it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

PATTERN = re.compile(r"^[a-z]+/[0-9a-f]{64}$")


def canonical(value: Any) -> str:
    """One text per value: JSON with sorted keys and no spaces; 1.0 and 1 are one number, -0.0 is 0.

    Raises ValueError for NaN and infinities and TypeError for what JSON does not have: neither can name an
    artifact.
    """
    text = json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text


def address(stage: str, version: int, params: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """`<stage>/<sha256>` of the recipe; `inputs` are the addresses of the inputs by role."""
    recipe = {"stage": stage, "version": version, "params": params, "inputs": inputs}
    return f"{stage}/{digest(recipe)}"


def digest(value: Any) -> str:
    """sha256 in hex of the canonical text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"a key of a recipe must be a string, got {key!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a recipe must not hold {value}: it would name no artifact")
        return int(value) if value.is_integer() else value
    return value
