"""Does fusion pay in examples/tiny.yaml, on five seeds? Other models, data and questions for each.

    python benchmarks/tiny_seeds.py [--quick] [--write] [--work FOLDER]

The peers are trained in the same run: SFT (the same training without distributions), the best single target,
and two SFT trainings in different orders merged by the same method, so that what averaging weights brings by
itself is not counted for the distributions. Held-out questions only; nothing was ever tuned on them. Again
with the same --work, only what is missing is computed. --quick: one seed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusechat.intervals import Interval, paired_proportions
from fusechat.s3server import LocalS3
from fusechat.scores import format_difference, format_limits, format_score, read_outcomes
from fusechat.store import Store
from fusechat_stages.entry import run_local
from harness import Row, publish, quick

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
OTHER_ORDER = 43
TWO_SFT = "two SFT, merged"
Outcomes = Mapping[str, bool]


@dataclass(frozen=True)
class Seed:
    """What the models of one seed answered: correct or not by question, by model."""

    number: int
    outcomes: Mapping[str, Outcomes]

    def score(self, who: str) -> float:
        found = self.outcomes[who]
        return sum(found.values()) / len(found)

    def ahead(self, who: str) -> Interval:
        """The fused model's score minus that of `who`, paired by question."""
        return paired_proportions(self.outcomes["fused"], self.outcomes[who])

    @property
    def best_target(self) -> str:
        return max((who for who in self.outcomes if who.startswith("target")), key=self.score)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path(".fusechat/seeds"))
    work: Path = parser.parse_known_args()[0].work.absolute()
    seeds = [measure_seed(number, work) for number in ((1,) if quick() else (1, 2, 3, 4, 5))]
    publish("tiny_seeds", rows(seeds), notes(seeds))


def measure_seed(number: int, work: Path) -> Seed:
    """Make the seed's models and data, fuse them as examples/tiny.yaml says, and read every answer."""
    folder, home = work / f"seed-{number}", work / "home"
    steps = _fuse(number, folder, home)
    with LocalS3(home / "s3") as server:
        os.environ.update(server.environment())
        store = Store(server.uri)
        outcomes = {
            _who(step["subject"]): _answers(store, step["address"])
            for step in steps.values()
            if step["stage"] == "evaluate"
        }
        again = folder / f"two-sft-{steps['merge']['address'][-12:]}"
        return Seed(number, {**outcomes, TWO_SFT: _two_sft(store, steps, again)})


def _fuse(number: int, folder: Path, home: Path) -> dict[str, Any]:
    """`make demo` with another seed; the record of every step by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    make = [str(EXAMPLES / "tiny" / "make_tiny.py"), "--seed", str(number), "--out", str(folder / "build")]
    subprocess.run([sys.executable, *make], check=True)
    told = (EXAMPLES / "tiny.yaml").read_text().replace("file://./tiny/build/", "file://./build/")
    (folder / "run.yaml").write_text(re.sub(r"name: tiny\b", f"name: tiny-{number}", told, count=1))
    run = ["-m", "fusechat.cli", "run", str(folder / "run.yaml"), "--home", str(home)]
    subprocess.run([sys.executable, *run], check=True)
    record = json.loads((home / "runs" / f"tiny-{number}" / "run.json").read_text())
    return {step["name"]: step for step in record["steps"]}


def _who(subject: Mapping[str, str]) -> str:
    return {"Pivot": "pivot", "Fused": "fused", "Control": "SFT"}.get(
        subject["kind"], f"{subject['kind'].lower()} {subject['name']}"
    )


def _answers(store: Store, address: str) -> dict[str, bool]:
    manifest = store.manifest(address)
    assert manifest, address
    entry = manifest.entry("answers.jsonl")
    return read_outcomes(store.read(entry, 0, entry.size).decode().split("\n"))


def _two_sft(store: Store, steps: Mapping[str, Any], folder: Path) -> dict[str, bool]:
    """The control and the same in another order of samples, merged; what that answers to the questions."""

    def inputs(step: str) -> dict[str, Path]:
        return {
            role: _download(store, steps[of]["address"], folder) for role, of in steps[step]["inputs"].items()
        }

    done = folder / "evaluate" / "answers.jsonl"
    if not done.exists():
        control, merge, asked = steps["control-sft"], steps["merge"], steps["evaluate-fused"]
        again = {**control["params"], "seed": OTHER_ORDER}
        run_local("fuse", again, inputs("control-sft"), folder / "fuse", {"microBatch": 32})
        first = _download(store, control["address"], folder)
        base = {"base": inputs("merge")["base"], "target.0": first, "target.1": folder / "fuse"}
        run_local("merge", merge["params"], base, folder / "merge")
        questions = {"questions": inputs("evaluate-fused")["questions"], "model": folder / "merge"}
        run_local("evaluate", asked["params"], questions, folder / "evaluate")
    return read_outcomes(done.read_text().split("\n"))


def _download(store: Store, address: str, folder: Path) -> Path:
    manifest = store.manifest(address)
    assert manifest, address
    target = folder / "inputs" / address.replace("/", "-")
    for entry in manifest.files:
        (target / entry.name).parent.mkdir(parents=True, exist_ok=True)
        if not (target / entry.name).exists():
            store.download(entry, target / entry.name)
    (target / "metrics.json").write_text(json.dumps(dict(manifest.metrics)))
    return target


def rows(seeds: Sequence[Seed]) -> list[Row]:
    """The fused model against each peer: a bar for SFT (ahead) and for the best target (not behind)."""
    found = []
    for seed in seeds:
        for who, bar in (("SFT", "ahead"), (seed.best_target, "not behind"), (TWO_SFT, "none")):
            found.append(_row(seed, who, bar))
    return found


def _row(seed: Seed, who: str, bar: str) -> Row:
    ahead = seed.ahead(who)
    met = {"ahead": ahead.low > 0, "not behind": ahead.high >= 0}.get(bar)
    difference = f"{format_difference(ahead.value)} ({format_limits(ahead, signed=True)})"
    what = f"seed {seed.number}: fused and {who}, exact match"
    return Row(what, format_score(seed.score(who)), format_score(seed.score("fused")), difference, bar, met)


def notes(seeds: Sequence[Seed]) -> list[str]:
    """Every model's score on every seed, and what the columns mean."""
    questions = len(seeds[0].outcomes["fused"])
    told = [
        f"Share of {questions} held-out questions answered right; `ratio` is the fused model's share minus "
        "the peer's, paired by question, with its 95 % limits. Ahead: the lower limit is above 0; not "
        "behind: the upper limit is not below 0.",
        f"{TWO_SFT}: the control and the same training in another order, merged as the targets are: what "
        "averaging brings without any source.",
    ]
    for seed in seeds:
        scores = ", ".join(f"{who} {format_score(seed.score(who))}" for who in seed.outcomes)
        told.append(f"seed {seed.number}: {scores}")
    return told


if __name__ == "__main__":
    main()
