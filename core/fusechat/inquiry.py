"""What the operator asks of a store, itself or by another process: questions and answers as short texts.

Used by the operator for its default store, and by `fusechat_stages.probe`, which asks a run's own store for
it and has a Pod's termination message to answer in. Knows no step, no plan and no cluster.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from fusechat.errors import BadData
from fusechat.store import InputRef, Manifest, Store

ANSWER_BYTES = 3900
"""Of the 4,096 that Kubernetes keeps of a termination message, what the answers may take."""

DIGITS = 16
"""Of a digest or a hash in an answer: enough to tell two apart."""

TOLD = ("score", "bitsPerByte", "ci95", "coverage", "keptShare", "winShare", "pins")
"""The metrics that decide something or stand in a status; the record of a run has all, see `_completed`."""

ATTEMPTS_READ = 20
THREADS = 8

What = Literal["artifact", "metrics", "attempts", "progress", "put", "forget"]


class Question(NamedTuple):
    """`key` is an address, for put a key. `value`: what to put; of what to forget the digest, or all of it.

    artifact: verified; what is damaged is withdrawn · metrics: as the manifest has it.
    """

    what: What
    key: str
    value: Any = None


# what is asked


def verified(store: Store, address: str) -> Manifest | None:
    """The artifact, if all its files are there; a damaged one is withdrawn, for its step to publish again."""
    manifest = store.manifest(address)
    if manifest is not None and store.verify(manifest):
        store.withdraw(address)
        return None
    return manifest


def attempts(store: Store, address: str) -> list[Any]:
    """What entry wrote of each attempt at a step, the newest last; at most 20 of them."""
    keys = sorted(store.keys(f"{address}/attempts/"), key=lambda found: found.modified)
    return [told for found in keys[-ATTEMPTS_READ:] if (told := store.get_json(found.key))]


def forget(store: Store, address: str, digest: str = "") -> None:
    """Set a stale artifact aside, its manifest and parts, if it still is the one of that digest."""
    if digest:
        found = store.manifest(address)
        if found is None or not found.digest.startswith(digest):
            return
    parts = [found.key for found in store.keys(f"{address}/parts/")]
    store.delete([f"{address}/manifest.json", *parts])


def put(store: Store, key: str, document: Mapping[str, Any]) -> None:
    """Write a document of a run, unless a later one is there: a Pod may come late."""
    there = store.get_json(key) if "at" in document else None
    if not isinstance(there, dict) or there.get("at", 0) <= document["at"]:
        store.put_json(key, _completed(store, document))


def _completed(store: Store, document: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run with all metrics of its steps: who asked for it to be written knows a few."""
    steps = [step for step in document.get("steps", ()) if step.get("state") == "Succeeded"]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda step: store.manifest(step["address"]), steps)
        for step, manifest in zip(steps, found, strict=True):
            step["metrics"] = dict(manifest.metrics) if manifest else step["metrics"]
    return dict(document)


# questions and answers as texts


def pack(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"), sort_keys=True)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unpack(text: str) -> Any:
    """ValueError for what `pack` did not make."""
    try:
        return json.loads(zlib.decompress(base64.b64decode(text, validate=True)))
    except zlib.error as error:
        raise ValueError(f"not a packed text ({error})") from error


def asked(packed: str) -> list[Question]:
    """The questions of `pack([...])`."""
    return [Question(*each) for each in unpack(packed)]


def answered(store: Store, questions: Sequence[Question], part: tuple[int, int]) -> str:
    """Answers to every so-many-th question, by number, as many as fit; the others are to be asked again."""
    index, count = part
    mine = range(index, len(questions), count)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda number: _answer(store, questions[number]), mine))
    told = {str(number): answer for number, answer in zip(mine, found, strict=True)}
    names = list(told)
    while len(text := pack({name: told[name] for name in names})) > ANSWER_BYTES:
        if len(names) == 1:
            raise BadData(
                f"what {questions[int(names[0])].key} says does not fit the {ANSWER_BYTES} bytes that a Pod "
                "can answer; use the cluster's default store for this run"
            )
        names = names[: max(1, len(names) * 4 // 5)]
    return text


def _answer(store: Store, question: Question) -> Any:
    match question.what:
        case "artifact":
            return _told(verified(store, question.key))
        case "metrics":
            return _told(store.manifest(question.key))
        case "attempts":
            return [_brief(told) for told in attempts(store, question.key)]
        case "progress":
            found = store.get_json(f"{question.key}/progress.json")
            return _brief(found) if isinstance(found, dict) else None
        case "put":
            put(store, question.key, question.value)
        case "forget":
            forget(store, question.key, question.value or "")
        case what:
            raise BadData(f"{what} is no question of this version; operator and stages are of one release")
    return True


def _told(manifest: Manifest | None) -> Any:
    """An artifact in few bytes: addresses and digests by their first digits."""
    if manifest is None:
        return None
    metrics = {name: manifest.metrics[name] for name in TOLD if name in manifest.metrics}
    inputs = {role: [short(ref.address), ref.digest[:DIGITS]] for role, ref in manifest.inputs.items()}
    return [manifest.digest[:DIGITS], metrics, inputs]


class Told(NamedTuple):
    """What an answer says of an artifact; its digests are cut short."""

    digest: str
    metrics: Mapping[str, Any]
    inputs: Mapping[str, InputRef]


def read(answer: Any, addresses: Mapping[str, str]) -> Told | None:
    """An answer about an artifact; `addresses` are the whole ones, by `short`, as far as they are known."""
    if answer is None:
        return None
    digest, metrics, inputs = answer
    refs = {role: InputRef(addresses.get(at, at), ref) for role, (at, ref) in inputs.items()}
    return Told(digest, metrics, refs)


def short(address: str) -> str:
    stage, _, digits = address.partition("/")
    return f"{stage}/{digits[:DIGITS]}"


def _brief(told: Any) -> dict[str, Any]:
    """A document without what is long: numbers and the beginnings of texts."""
    if not isinstance(told, dict):
        return {}
    kept = {key: value for key, value in told.items() if isinstance(value, int | float)}
    texts = {key: told[key][:MOST_TEXT] for key in TEXTS if isinstance(told.get(key), str)}
    return {**kept, **texts}


TEXTS, MOST_TEXT = ("error", "started", "ended", "unit", "at", "lastCheckpoint"), 300
