"""How fast a step goes, from its progress.json. Used by the local runner's screen and the operator's status.

progress.json of an attempt: `done` of `total` in `unit`; `from`, where this attempt began, for an earlier one
may have done the rest; `seconds` that this attempt has spent since then; figures of the stage. A training
adds `lastCheckpoint` (when, RFC 3339) and `checkpointStep`, which a resumed attempt has from the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rate(told: Mapping[str, Any]) -> float:
    """What this attempt does in a second, in the progress's own unit; 0 while nobody knows."""
    done, begun, seconds = (float(told.get(key) or 0) for key in ("done", "from", "seconds"))
    return (done - begun) / seconds if seconds > 0 and done > begun else 0.0
