"""A status that fits 32 KB at the spec's longest names and everything at its worst, and forgets nothing."""

from __future__ import annotations

import random
import string
import uuid
from dataclasses import replace
from functools import partial

import pytest
from fusechat_operator import memory
from fusechat_operator.fit import fit, size
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cluster.sizes import LONGEST_NAME, the_status
from tests.unit.operator.test_reconcile_status import MOST_BYTES, valid

STAGES = ("fetch", "extract", "count", "map", "align", "filter", "fuse")
MEASURED = tuple(f"{b}-{s}" for b in ("evaluate", "perplexity", "mtbench") for s in ("source", "target"))
IMAGE = "registry.example.com/a-team-of-some-size/fusechat-stages@sha256:"
LETTERS = string.ascii_lowercase + string.digits


def remembered(made) -> memory.Memory:
    """What the operator has of a status, without what it makes anew or only says."""
    found = memory.read(made)
    lines = {name: replace(line, address=None) for name, line in found.lines.items()}
    said = {kind: (c["status"], c["lastTransitionTime"]) for kind, c in found.conditions.items()}
    return replace(found, lines=lines, details={}, conditions=said)


def a_line(chance: random.Random, name: str, trouble: float) -> dict:
    line = {"name": name, "state": chance.choice(["Pending", "Cached", "Succeeded"]), "address": "a" * 10}
    if chance.random() < trouble:
        line["state"] = chance.choice(["Failed", "Running", "Waiting"])
        line["tries"] = {kind: chance.randint(0, 9) for kind in ("disruption", "infrastructure", "bug")}
        line["ended"] = str(uuid.UUID(int=chance.getrandbits(128)))
    return line


def worst(seed: int, sources: int, length: int, letter: str, trouble: float) -> dict:
    """A status with everything in it, of models whose names are noise; evaluations have most trouble."""
    chance = random.Random(seed)
    names = list({"".join(chance.choices(LETTERS, k=length)) for _ in range(sources)})
    lines = [a_line(chance, f"{stage}-{name}", trouble / 4) for stage in STAGES for name in names]
    lines += [a_line(chance, f"{stage}-{name}", trouble) for stage in MEASURED for name in names]
    noise = partial(chance.getrandbits, 256)
    since, text = "2027-01-15T08:00:00Z", letter * 4096
    told = {"attempts": {"disruption": 9, "infrastructure": 9, "bug": 1}, "started": since, "percent": 12.5}
    told |= {"rate": "123 samples/s", "etaSeconds": 12345, "metrics": dict.fromkeys("abcdefgh", 0.123456789)}
    told |= {"artifact": "s3://bucket/" + "p" * 120, "message": text[:1024], "lastCheckpoint": since}
    condition = {
        "reason": "StepFailed",
        "message": text,
        "lastTransitionTime": since,
        "observedGeneration": 3,
    }
    facts = {"score": 0.1234, "low": 0.1111, "high": 0.2222, "benchmark": "perplexity"}
    return {
        "observedGeneration": 3,
        "conditions": [
            {"type": kind, "status": "False", **condition}
            for kind in ("Ready", "Succeeded", "Stalled", "Suspended", "Reproducible")
        ],
        "steps": lines,
        "details": [{"name": line["name"], "child": f"Job/{line['name']}", **told} for line in lines[:20]],
        "plan": {
            "generation": 3,
            "pins": [{"name": n, "pin": f"sha256:{noise():064x}", "asked": "0" * 8} for n in names],
            "versions": dict.fromkeys(STAGES, 12),
            "images": {stage: f"{IMAGE}{noise():064x}" for stage in STAGES},
            "digest": "d" * 16,
        },
        "scores": [{"subject": f"Source {name}", **facts} for name in names[:40]],
        "launcher": "PyTorchJob (Auto: the first that is installed)",
        "gpuSeconds": 123456.7,
        "started": since,
        "model": "s3://bucket/" + "p" * 120,
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 30),
    st.integers(0, 50),
    st.integers(1, LONGEST_NAME),
    st.sampled_from(["x", "ü", '"', "語"]),
    st.floats(0, 1),
)
def test_whatever_is_in_it_a_status_fits_and_remembers_the_same(seed, sources, length, letter, trouble):
    made = worst(seed, sources, length, letter, trouble)
    found = fit(made)
    assert size(found) < MOST_BYTES
    valid(found)
    assert remembered(found) == remembered(made)
    assert fit(found) == found, "what was made to fit stays as it is"


def test_fifty_of_the_longest_names_fit_with_every_evaluation_in_trouble():
    made = worst(1, 50, LONGEST_NAME, "x", 1.0)
    found = fit(made)
    assert size(found) < MOST_BYTES < size(made) / 4
    valid(found)
    assert remembered(found) == remembered(made)


def test_the_rest_of_a_status_that_was_packed_may_change_and_it_fits_again():
    """As where the store is away: conditions and generation are new, and everything else is what it was."""
    made = worst(2, 50, LONGEST_NAME, "x", 0.5)
    long = [{**c, "message": "y" * 4096} for c in made["conditions"]]
    found = fit({**fit(made), "conditions": long, "observedGeneration": 4})
    assert size(found) < MOST_BYTES
    assert remembered(found).lines == remembered(made).lines
    assert remembered(found).pins == remembered(made).pins


def test_what_has_room_stays_in_words():
    made = worst(3, 4, 10, "x", 0.5)
    made["conditions"], made["details"] = made["conditions"][:1], made["details"][:2]
    assert fit(made) == made


@pytest.mark.parametrize("name", [14, 28, LONGEST_NAME])
@pytest.mark.parametrize("done", [True, False], ids=["done", "at work"])
def test_a_run_of_fifty_sources_fits_at_any_length_of_their_names(name, done):
    found = the_status(50, done, name)
    assert size(found) < MOST_BYTES
    valid(found)
    assert len(memory.lines_of(found)) == 463
    assert {p["name"] for p in found["plan"].get("pins", ())} or found["plan"]["packed"]
    shown = {line["state"] for line in found.get("steps", ())}
    assert shown == set() if done else shown <= {"Failed", "Running", "Waiting"}


def test_a_packed_status_that_somebody_has_spoilt_is_read_as_far_as_it_goes():
    found = fit(worst(4, 50, LONGEST_NAME, "x", 0.5))
    broken = {**found, "packed": "bm8=", "plan": {**found["plan"], "packed": "?"}}
    assert set(memory.read(broken).lines) == {line["name"] for line in found.get("steps", ())}
