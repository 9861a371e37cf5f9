"""Why an attempt ended: a failed child, its Pods and entry's own records -> one of three causes. Pure.

Used by reconcile. Disruption is nobody's fault and free, infrastructure is tried again after a pause,
a bug never.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fusechat_operator.children import Child, Pod, failed_pods

Kind = Literal["disruption", "infrastructure", "bug"]
BUG_CODES = frozenset({64, 65, 66, 70})
OUTSIDE_CODES = frozenset({69, 75})
SIGKILLED, SIGTERMED = 137, 143

OVERFULL = re.compile(r"exceed(s|ed) (its|the) .*limit")
"""What the kubelet says when it evicts a Pod for its own use of disk: the next attempt would end so too."""


@dataclass(frozen=True)
class Cause:
    """`exit_code` None: the stage did not say one. `sentence` is for people."""

    kind: Kind
    exit_code: int | None
    sentence: str


def cause(child: Child, pods: Sequence[Pod], attempts: Sequence[Mapping[str, Any]]) -> Cause:
    """The cause of a failed child.

    The Pods that are left speak first; where they are gone, the newest record that entry wrote to the store
    since the child was made; where neither says anything, a Pod vanished, which is a disruption.
    """
    found = [_of_pod(pod) for pod in failed_pods(pods)]
    if not found and (record := _newest(attempts, child)):
        found = [_of_code(int(record["exitCode"]), str(record.get("error", "")))]
    if found:
        # A worker that lost its peer only reports the loss; the bug explains it.
        return min(found, key=lambda c: (_RANK[c.kind], c.exit_code is None))
    if child.reason == "DeadlineExceeded":
        return Cause("bug", None, "it ran past its deadline")
    return Cause("disruption", None, f"its Pod vanished ({child.message or child.reason or 'no trace left'})")


_RANK = {"bug": 0, "infrastructure": 1, "disruption": 2}


def _of_pod(pod: Pod) -> Cause:
    told = dict(pod.summary or {})
    sentence = str(told.get("error") or "")
    if pod.out_of_memory:
        return Cause(
            "bug", pod.exit_code, "it was killed for want of memory (OOMKilled); give the stage more memory"
        )
    code = pod.exit_code
    if OVERFULL.search(pod.message) and pod.reason == "Evicted":
        return Cause("bug", code, f"it needs more disk: {pod.message.strip()} Give the stage more scratch")
    if code in BUG_CODES:
        return _of_code(int(code), sentence, pod.trace)
    if pod.disrupted:
        return Cause("disruption", code, f"Pod {pod.name} was taken away ({pod.message or pod.reason})")
    if code is None:
        return Cause(
            "disruption", None, f"Pod {pod.name} was lost ({pod.message or pod.reason or 'no status'})"
        )
    return _of_code(code, sentence, pod.trace)


def _of_code(code: int, sentence: str, trace: str = "") -> Cause:
    if code in OUTSIDE_CODES:
        return Cause("infrastructure", code, sentence or f"exit code {code}")
    if code == SIGTERMED:
        return Cause("disruption", code, sentence or "it was stopped")
    if code == SIGKILLED:
        return Cause("disruption", code, sentence or "it was killed")
    return Cause("bug", code, sentence or f"exit code {code}{': ' + trace if trace else ''}")


def _newest(attempts: Sequence[Mapping[str, Any]], child: Child) -> Mapping[str, Any] | None:
    from fusechat_operator.children import seconds

    since = [a for a in attempts if a.get("exitCode") and (seconds(a.get("ended")) or 0.0) >= child.created]
    return max(since, key=lambda a: str(a["ended"]), default=None)
