"""A made-up run for the report's tests: a record, small artifacts, and a folder in the place of the store."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

from fusechat.errors import MissingInput
from fusechat.intervals import wilson
from fusechat.store import FileEntry
from fusechat_stages import report
from fusechat_stages.report_data import gather


class FolderStore:
    """A store's reading side over a folder: `<address>/<name>` are files, run records are JSON."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get_json(self, key):
        path = self.folder / key
        return json.loads(path.read_text()) if path.exists() else None

    def manifest(self, address):
        folder = self.folder / address
        if not folder.is_dir():
            return None
        entries = {
            p.name: FileEntry(p.name, f"{address}/{p.name}", p.stat().st_size, "") for p in folder.iterdir()
        }

        def entry(name):
            if name not in entries:
                raise MissingInput(f"no {name}")
            return entries[name]

        return SimpleNamespace(entry=entry)

    def read(self, entry, start, length):
        return (self.folder / entry.key).read_bytes()[start : start + length]


class Example:
    """A run of two sources with a record and small artifacts, whose numbers are drawn from a seed."""

    SOURCES = ("math", "prose")
    QUESTIONS = 800
    CATEGORIES = ("add", "reverse", "sort", "count")

    def __init__(self, folder: Path, name="tiny", sources=SOURCES) -> None:
        self.store, self.draw, self.steps, self.sources = FolderStore(folder), random.Random(7), [], sources
        self.step("fetch-pivot", "fetch", cached=True)
        for s in sources:
            self.step(f"fetch-{s}", "fetch", cached=True, of=s)
        self.step("fetch-dataset", "fetch", cached=True)
        self.step("fetch-exactmatch", "fetch", cached=True)
        self.step("extract-pivot", "extract", model="fetch-pivot", dataset="fetch-dataset")
        for s in sources:
            self.pair(s)
        self.train("control-sft", ("Control", "sft"), None)
        for s in sources:
            self.train(f"fuse-{s}", ("Target", s), s)
        targets = {f"target.{i}": f"fuse-{s}" for i, s in enumerate(sources)}
        self.step(
            "merge",
            "merge",
            subject=("Fused", "fused"),
            params={"method": "sce"},
            base="fetch-pivot",
            **targets,
        )
        self.write("merge", "coefficients.json", json.dumps(self.coefficients()))
        self.evaluations()
        self.record = {
            "run": name, "uid": "u1", "profile": "Corrected", "generation": 2, "store": "s3://fusechat/demo",
            "startedAt": "2026-01-02T03:04:05Z", "seconds": 321.0, "steps": self.steps,
        }  # fmt: skip

    def step(self, name, stage, *, cached=False, subject=None, of=None, params=None, metrics=None, **inputs):
        address = f"{stage}/{len(self.steps):064x}"
        (self.store.folder / address).mkdir(parents=True)
        self.steps.append({
            "name": name, "stage": stage, "address": address, "state": "Succeeded", "cached": cached,
            "seconds": 0.0 if cached else self.draw.uniform(0.3, 80), "attempts": 0 if cached else 1,
            "inputs": inputs, "source": of, "params": params or {}, "metrics": metrics or {},
            "subject": subject and {"kind": subject[0], "name": subject[1]},
        })  # fmt: skip

    def find(self, name):
        return next(step for step in self.steps if step["name"] == name)

    def write(self, name, file, text):
        (self.store.folder / self.find(name)["address"] / file).write_text(text)

    def pair(self, s):
        self.step(f"extract-{s}", "extract", of=s, model=f"fetch-{s}", dataset="fetch-dataset")
        exact, mapped = self.draw.randint(5000, 7000), self.draw.randint(1000, 2000)
        rows = {
            "rows": 10_000,
            "exact": exact,
            "mapped": mapped,
            "oneHot": 0,
            "empty": 10_000 - exact - mapped,
        }
        sides = {"pivot": "extract-pivot", "source": f"extract-{s}", "pivotModel": "fetch-pivot"}
        metrics = {**rows, "massLostShare": 0.004}
        self.step(f"align-{s}", "align", of=s, params={"op": "rows"}, metrics=metrics, **sides)
        kept = {"samples": 1500, "kept": 1470, "keptShare": 0.98, "winShare": 0.4, "dropped": {"noRows": 30}}
        self.step(f"filter-{s}", "filter", of=s, metrics=kept, pivot="extract-pivot", aligned=f"align-{s}")

    def train(self, name, subject, source):
        sides = {"model": "fetch-pivot", "pivot": "extract-pivot"}
        if source:
            sides |= {"aligned.0": f"align-{source}", "selection.0": f"filter-{source}"}
        metrics = {"steps": 300, "tokens": 123456, "loss": 0.731, "weightsMoved": 0.993}
        metrics |= {"winShare": 0.417, "wins": [0.417]} if source else {}
        self.step(name, "fuse", of=source, subject=subject, metrics=metrics, **sides)
        lines = []
        for step in range(1, 301):
            loss = 0.6 + 2 * math.exp(-step / 60) + self.draw.gauss(0, 0.05)
            line = {"step": step, "loss": loss, "lm_loss": loss, "fuse_loss": loss * 0.8 if source else None}
            lines.append(json.dumps({**line, "lr": 1e-3, "grad_norm": 1.0, "rows": 900, "tokens": 1200}))
        self.write(name, "training.jsonl", "\n".join(lines) + "\n")

    def coefficients(self):
        tensors = {"model.embed_tokens.weight": [0.5] * len(self.sources)}
        for layer in range(6):
            for part in ("self_attn.q_proj", "mlp.up_proj"):
                first = 0.3 + 0.05 * layer + self.draw.uniform(-0.03, 0.03)
                rest = [(1 - first) / max(1, len(self.sources) - 1)] * (len(self.sources) - 1)
                tensors[f"model.layers.{layer}.{part}.weight"] = [first, *rest]
        return {"method": "sce", "targets": list(self.sources), "tensors": tensors}

    def evaluations(self):
        subjects = [("Pivot", "base", 0.45)] + [("Source", s, 0.52) for s in self.sources]
        subjects += [("Control", "sft", 0.608)] + [
            ("Target", s, 0.62 + 0.01 * i) for i, s in enumerate(self.sources)
        ]
        for kind, name, share in [*subjects, ("Fused", "fused", 0.659)]:
            alone = kind in ("Pivot", "Fused")
            step = f"evaluate-{kind.lower()}" + ("" if alone else f"-{name}")
            model = {"Pivot": "fetch-pivot", "Fused": "merge", "Control": "control-sft"}.get(kind)
            model = model or f"{'fetch' if kind == 'Source' else 'fuse'}-{name}"
            self.step(step, "evaluate", subject=(kind, name), questions="fetch-exactmatch", model=model)
            answers, by = [], {c: [] for c in self.CATEGORIES}
            noise = random.Random(1)
            for i in range(self.QUESTIONS):
                right = noise.random() < share
                by[self.CATEGORIES[i % 4]].append(right)
                answers.append({"id": str(i), "correct": right, "category": self.CATEGORIES[i % 4]})
            found = wilson(sum(a["correct"] for a in answers), self.QUESTIONS)
            each = {c: {"score": sum(v) / len(v), "n": len(v)} for c, v in by.items()}
            metrics = {
                "benchmark": "exactMatch",
                "score": found.value,
                "n": self.QUESTIONS,
                "byCategory": each,
            }
            self.find(step)["metrics"] = {
                **metrics,
                "ci95": [found.low, found.high],
                "empty": 3,
                "truncated": 0,
            }
            self.write(step, "answers.jsonl", "".join(json.dumps(a) + "\n" for a in answers))

    def page(self, title="tiny"):
        return report.page(gather(self.store, self.record), title)
