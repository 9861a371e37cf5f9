"""Why an attempt ended: a failed child, its Pods and entry's own records -> one of three causes. Pure.

Used by reconcile. Disruption is nobody's fault and free, infrastructure is tried again after a pause,
a bug never.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fusechat_operator.children import Child, Pod, failed_pods, seconds

Kind = Literal["disruption", "infrastructure", "bug"]
BUG_CODES = frozenset({64, 65, 66, 70})
OUTSIDE_CODES = frozenset({69, 75})
ECHOES = frozenset({1, 70})
"""What a process ends with whose peer is gone: a fault of its own, as far as it knows."""

SIGKILLED, SIGTERMED = 137, 143

OVERFULL = re.compile(r"exceed(s|ed) (its|the) .*limit")
"""What the kubelet says when it evicts a Pod for its own use of disk: the next attempt would end so too."""


SECRETS = re.compile(
    r"(?i)(X-Amz-(?:Signature|Credential|Security-Token)=|(?:secret|password|passwd|access)_?(?:access)?_?key\W{1,5}|"
    r"password\W{1,5}|bearer )[\w/+][^\s&\"']*|\b(?:AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20,})\b"
)
"""What a library may have put into its error, and a status is read by more people than a log."""


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
    found, together = [_of_pod(pod) for pod in failed_pods(pods)], train_together(child)
    records = [_of_code(int(a["exitCode"]), str(a.get("error", ""))) for a in _since(attempts, child)]
    if together:
        found += records
    elif not found:
        found = records[-1:]
    if together and len(pods) < child.pods and all(c.exit_code in ECHOES for c in found):
        found = []  # nobody says why, and a Pod is gone: they lost that one
    if found:
        return min(found, key=lambda c: _rank(c, together))
    if child.reason == "DeadlineExceeded":
        return Cause("bug", None, "it ran past its deadline")
    return Cause("disruption", None, f"its Pod vanished ({child.message or child.reason or 'no trace left'})")


def of_records(attempts: Sequence[Mapping[str, Any]], since: float) -> Cause | None:
    """Why the newest attempt that failed after `since` did, as entry wrote it down; None where none did."""
    failed = [a for a in attempts if a.get("exitCode") and (seconds(a.get("ended")) or 0.0) >= since]
    last = max(failed, key=lambda a: str(a["ended"]), default=None)
    return _of_code(int(last["exitCode"]), str(last.get("error", ""))) if last else None


def before_this(pods: Sequence[Pod]) -> str:
    """Why there is no Pod at work where a Job is about to make another; "" where all are at work."""
    at_work = {pod.index for pod in pods if pod.phase in ("Running", "Succeeded")}
    ended = [pod for pod in failed_pods(pods) if pod.index not in at_work]
    last = max(ended, key=lambda pod: pod.failures + pod.disruptions, default=None)
    why = _of_pod(last) if last else None
    return f"{why.sentence}; it is tried again" if why and why.kind != "bug" else ""


def is_of_the_recipe(why: Cause) -> bool:
    """Whether every attempt at the step would end so, whoever makes it and with whatever resources."""
    return why.kind == "bug" and why.exit_code not in (None, 66, SIGKILLED, SIGTERMED)


def train_together(child: Child) -> bool:
    """Whether its Pods are ranks of one training: who loses a peer fails too, and does not know why."""
    return child.pods > 1 and child.address.startswith("fuse/")


def _rank(cause: Cause, together: bool) -> tuple[int, bool]:
    """The cause that explains the others comes first."""
    echo = together and cause.kind == "bug" and cause.exit_code in ECHOES
    return 3 if echo else _RANK[cause.kind], cause.exit_code is None


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
    if code in BUG_CODES - ECHOES:
        return _of_code(int(code), sentence, pod.trace)
    if pod.disrupted:
        return Cause("disruption", code, f"Pod {pod.name} was taken away ({pod.message or pod.reason})")
    if code is None:
        return Cause(
            "disruption", None, f"Pod {pod.name} was lost ({pod.message or pod.reason or 'no status'})"
        )
    return _of_code(code, sentence, pod.trace)


def _of_code(code: int, sentence: str, trace: str = "") -> Cause:
    sentence, trace = (SECRETS.sub(r"\1***", text) for text in (sentence, trace))
    if code in OUTSIDE_CODES:
        return Cause("infrastructure", code, sentence or f"exit code {code}")
    if code == SIGTERMED:
        return Cause("disruption", code, sentence or "it was stopped")
    if code == SIGKILLED:
        return Cause("disruption", code, sentence or "it was killed")
    return Cause("bug", code, sentence or f"exit code {code}{': ' + trace if trace else ''}")


def _since(attempts: Sequence[Mapping[str, Any]], child: Child) -> list[Mapping[str, Any]]:
    """Records of attempts that failed since the child was made, the newest last."""
    since = [a for a in attempts if a.get("exitCode") and (seconds(a.get("ended")) or 0.0) >= child.created]
    return sorted(since, key=lambda a: str(a["ended"]))
