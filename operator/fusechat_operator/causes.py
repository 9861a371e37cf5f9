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
    since the child was made (of several Pods, all of them: the others were stopped because of one); where
    neither says anything, a Pod vanished, which is a disruption.
    """
    found, together = [_of_pod(pod) for pod in failed_pods(pods)], train_together(child)
    if together or not found:
        found += _recorded(attempts, child.created, child.pods)
    if why := _first(found, together, len(pods) < child.pods):
        return why
    if child.reason == "DeadlineExceeded":
        return Cause("bug", None, "it ran past its deadline")
    return Cause("disruption", None, f"its Pod vanished ({child.message or child.reason or 'no trace left'})")


def unseen(
    attempts: Sequence[Mapping[str, Any]], since: float, pods: int, together: bool = False, counted: int = 0
) -> Cause | None:
    """Why a child of so many Pods failed after `since`, of which only entry's records are left, if any.

    `counted`: how many of its troubles outside are known, from which it went on by itself.
    """
    found = _recorded(attempts, since, pods, counted)
    return _first(found, together and pods > 1, len(found) < pods)


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


def _first(found: Sequence[Cause], together: bool, some_gone: bool) -> Cause | None:
    """The cause of them all; None where nobody says why and a Pod is gone: the others lost that one."""
    if together and some_gone and all(c.exit_code in ECHOES for c in found):
        return None
    return min(found, key=lambda c: _rank(c, together), default=None)


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


def _recorded(
    attempts: Sequence[Mapping[str, Any]], since: float, pods: int, counted: int = 0
) -> list[Cause]:
    """What failed since then, as entry wrote it down: of a single Pod, which has tried again, the newest."""
    failed = [a for a in attempts if a.get("exitCode") and (seconds(a.get("ended")) or 0.0) >= since]
    failed.sort(key=lambda a: str(a["ended"]))
    known = [n for n, a in enumerate(failed) if a["exitCode"] in OUTSIDE_CODES][:counted]
    failed = [a for n, a in enumerate(failed) if n not in known]
    told = failed if pods > 1 else failed[-1:]
    return [_of_code(int(a["exitCode"]), str(a.get("error", ""))) for a in told]
