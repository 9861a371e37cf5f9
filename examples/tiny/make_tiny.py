"""Make what examples/tiny.yaml fuses: three chat models, conversations to fuse on, held-out questions.

`make demo` calls it: python examples/tiny/make_tiny.py [--seed N] [--out FOLDER]. Called again with the same
seed and the same sources it does nothing. Writes a folder beside the final one and renames it last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

import recipes
import tasks

HERE = Path(__file__).resolve().parent
STAMP = "stamp.json"
GOLD_PER_SKILL, GOLD_ERRORS = 400, 0.4
DEV_PER_SKILL, TEST_PER_SKILL = 150, 840


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "build")
    asked = parser.parse_args(argv)
    stamp = recipe_stamp(asked.seed)
    if read_stamp(asked.out) == stamp:
        print(f"{_shown(asked.out)}: the models and their data are there already")
        return 0
    started = time.monotonic()
    build(asked.out, asked.seed, stamp)
    print(f"{_shown(asked.out)}: made in {time.monotonic() - started:.0f} s", flush=True)
    return 0


def recipe_stamp(seed: int) -> dict[str, Any]:
    """What the result depends on: these sources, the seed, and the libraries that compute it."""
    sources = b"".join(path.read_bytes() for path in sorted(HERE.glob("*.py")))
    libraries = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    return {"sources": hashlib.sha256(sources).hexdigest(), "seed": seed, "libraries": libraries}


def read_stamp(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return found


def build(out: Path, seed: int, stamp: dict[str, Any]) -> None:
    """Everything into a new folder, which takes the place of `out` when it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        work.mkdir()
        write_data(work, seed)
        train_models(work, seed)
        (work / STAMP).write_text(json.dumps(stamp, indent=1))
        shutil.rmtree(out, ignore_errors=True)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_data(folder: Path, seed: int) -> None:
    """conversations.jsonl (some answers wrong), questions.jsonl (held out), dev.jsonl (to tune on)."""
    gold = tasks.mixture(
        dict.fromkeys(tasks.SKILLS, GOLD_PER_SKILL), "train", f"{seed} gold", errors=GOLD_ERRORS
    )
    _write(folder / "conversations.jsonl", (_conversation(n, x) for n, x in enumerate(gold)))
    for name, where, count in (("questions", "test", TEST_PER_SKILL), ("dev", "dev", DEV_PER_SKILL)):
        held_out = tasks.mixture(dict.fromkeys(tasks.SKILLS, count), where, f"{seed} {name}")
        _write(folder / f"{name}.jsonl", (_question(n, x) for n, x in enumerate(held_out)))
    print(
        f"data: {len(gold)} conversations, {GOLD_ERRORS:.0%} of the answers wrong; "
        f"{TEST_PER_SKILL * len(tasks.SKILLS)} held-out questions",
        flush=True,
    )


def train_models(folder: Path, seed: int) -> None:
    """One process a model, as many at a time as there are cores."""
    longest_first = sorted(recipes.MODELS, key=lambda recipe: -recipe.steps)
    cores = max(1, min(len(longest_first), len(os.sched_getaffinity(0))))
    print(f"training {len(longest_first)} models, {cores} at a time", flush=True)
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(_train, recipe, folder / recipe.name, seed) for recipe in longest_first]
        for done in as_completed(running):
            print(done.result(), flush=True)


def _train(recipe: recipes.Recipe, folder: Path, seed: int) -> str:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import train  # torch, in the training processes only

    return train.make(recipe, folder, seed)


def _conversation(number: int, x: tasks.Example) -> dict[str, Any]:
    said = [{"from": "human", "value": x.question}, {"from": "gpt", "value": x.answer}]
    return {"id": f"{x.skill}-{number}", "conversations": said}


def _question(number: int, x: tasks.Example) -> dict[str, Any]:
    return {"id": f"{x.skill}-{number}", "question": x.question, "answer": x.answer, "category": x.skill}


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")


def _shown(path: Path) -> str:
    resolved = path.resolve()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
