"""Whether a run has ended and leaves nothing to do, told by its object alone. Pure.

Used by reconcile, and by the engine, which need not look at a run that rests: thousands may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fusechat_operator import naming

RECONSIDERED = ("InvalidSpec", "LauncherMissing", "PlanChanged", "StoreChanged")
"""Reasons of an end that another operator, or another cluster's state, may see otherwise."""


def is_over(found: Mapping[str, Any]) -> bool:
    """Whether the run has ended at its present generation; that is final until an edit or a retry."""
    conditions = found.get("status", {}).get("conditions") or ()
    outcome: Mapping[str, Any] = next((c for c in conditions if c["type"] == "Succeeded"), {})
    now = outcome.get("observedGeneration") == int(found["metadata"].get("generation", 1))
    ended = outcome.get("status") in ("True", "False") and outcome.get("reason") not in RECONSIDERED
    return now and ended and not _retry(found)


def rests(found: Mapping[str, Any]) -> bool:
    """Whether a look at it would do nothing: it has ended, and has no TrainJob that is to go some day."""
    if "deletionTimestamp" in found["metadata"]:
        return True
    if not is_over(found):
        return False
    status = found["status"]
    if ready_of(status) is not None:
        return False
    return bool(status.get("cleared")) or not str(status.get("launcher", "")).startswith("TrainJob")


def ready_of(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What an ended run's Ready should say where it says something else; None where it is right.

    It may tell of trouble with a retry that was taken back before it began.
    """
    told = {condition["type"]: condition for condition in status.get("conditions") or ()}
    ready, outcome = told.get("Ready"), told.get("Succeeded")
    if not ready or not outcome or all(ready[key] == outcome[key] for key in ("status", "reason")):
        return None
    return {**outcome, "type": "Ready"}


def retry_at(found: Mapping[str, Any]) -> str:
    """What a person wrote to have the failed steps begin again; "" if nothing."""
    return str(found["metadata"].get("annotations", {}).get(naming.RETRY_AT, ""))[:64]


def _retry(found: Mapping[str, Any]) -> bool:
    return retry_at(found) not in ("", str(found.get("status", {}).get("lastRetry", "")))
