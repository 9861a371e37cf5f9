"""What a run costs before it is started: bytes to S3, FLOPs, GPU-hours of a named GPU.

Pure but for the size of local folders. Used by `fusechat plan`. An estimate to plan a budget with, from the
usual counts: a forward pass is 2 FLOPs a parameter and token, a training step 6, 8 with gradient
checkpointing (Kaplan et al., arXiv 2001.08361, section 2.1); attention's own term is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from fusechat.outline import Outline
from fusechat.plan import Step
from fusechat.spec import FusionRun

GPUS: Mapping[str, float] = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "V100": 125e12,
}
"""Dense bf16 (V100: fp16) tensor FLOP/s by the makers' data sheets."""

UTILISATION = 0.4
"""Share of the peak that a well-kept training reaches (MFU); extraction is taken for the same."""

BYTES_PER_ROW, BYTES_PER_ID = 80, 4
TOKENS_PER_SAMPLE = 600
"""Where nothing is known of the data: FuseChat-Mixture's mean, about."""
SUPERVISED_SHARE = 0.6
PIVOT_BYTES = 2


@dataclass(frozen=True)
class StepCost:
    """Of one step that is not cached: bytes it writes to S3, FLOPs it computes."""

    name: str
    bytes: float
    flops: float


@dataclass(frozen=True)
class Estimate:
    """The steps' costs, and what had to be guessed."""

    steps: tuple[StepCost, ...]
    unknown: tuple[str, ...]


def estimate(run: FusionRun, seen: Outline) -> Estimate:
    """The cost of everything in the plan that is not cached."""
    manifests = seen.manifests or {}
    facts = _Facts(run, seen)
    todo = [step for step in seen.plan.steps if step.name not in manifests]
    return Estimate(tuple(_cost(run, facts, step) for step in todo), facts.unknown())


class _Facts:
    """Parameters of the models, tokens of the data: measured, read off a folder or a name, or guessed."""

    def __init__(self, run: FusionRun, seen: Outline) -> None:
        self._run, self._manifests = run, seen.manifests or {}
        self._guessed: dict[str, None] = {}

    def unknown(self) -> tuple[str, ...]:
        return tuple(self._guessed)

    def parameters(self, name: str) -> float:
        """Of the model fetched as `name`, from its bytes (2 each), else from its name (7B, 8x7B)."""
        manifest = self._manifests.get(f"fetch-{name}")
        if manifest:
            return sum(f.size for f in manifest.files if f.name.endswith(".safetensors")) / PIVOT_BYTES
        models = {"pivot": self._run.spec.pivot, **{s.name: s for s in self._run.spec.sources}}
        uri = models[name].uri
        if here := _local_bytes(uri, "*.safetensors"):
            return here / PIVOT_BYTES
        self._guessed["parameters of a model (taken from its name)"] = None
        return _by_name(uri)

    def tokens(self) -> float:
        """Of the dataset, from an extraction if there is one."""
        for name, manifest in self._manifests.items():
            if name.startswith("extract-") and manifest.metrics.get("tokens"):
                return float(manifest.metrics["tokens"])
        here = _local_bytes(self._run.spec.dataset.uri, "*.json*")
        if here and not self._run.spec.dataset.limit:
            self._guessed["tokens of the dataset (taken: a quarter of its bytes)"] = None
            return here / 4
        data = self._manifests.get("fetch-dataset")
        samples = self._run.spec.dataset.limit or (data.metrics.get("samples") if data else None)
        if samples is None:
            self._guessed["samples of the dataset (taken: 95,000, FuseChat-Mixture's)"] = None
        self._guessed[f"tokens of a sample (taken: {TOKENS_PER_SAMPLE})"] = None
        return float(samples or 95_000) * min(TOKENS_PER_SAMPLE, self._run.spec.extract.max_length)

    def rows(self) -> float:
        for name, manifest in self._manifests.items():
            if name.startswith("extract-") and manifest.metrics.get("rows"):
                return float(manifest.metrics["rows"])
        return self.tokens() * SUPERVISED_SHARE


def _local_bytes(uri: str, pattern: str) -> float:
    """Bytes of the files of a file:// folder, or of the one file, whose names fit; 0 of any other URI."""
    if not uri.startswith("file://"):
        return 0.0
    root = Path(unquote(urlparse(uri).path))
    return float(sum(p.stat().st_size for p in ([root] if root.is_file() else root.rglob(pattern))))


def _by_name(uri: str) -> float:
    found = re.search(r"(?:(\d+)x)?(\d+(?:\.\d+)?)\s*b(?![a-z])", uri.lower())
    if not found:
        return 7e9
    return float(found[1] or 1) * float(found[2]) * 1e9


def _cost(run: FusionRun, facts: _Facts, step: Step) -> StepCost:
    row_bytes = facts.rows() * (BYTES_PER_ROW * run.spec.extract.top_k / 10)
    if step.stage == "fetch":
        size = facts.parameters(str(step.source)) * PIVOT_BYTES if step.params["kind"] == "model" else 0.0
        return StepCost(step.name, size or facts.tokens() * 4, 0.0)
    if step.stage == "extract":
        name = step.inputs["model"].removeprefix("fetch-")
        written = row_bytes + facts.tokens() * BYTES_PER_ID
        return StepCost(step.name, written, 2 * facts.parameters(name) * facts.tokens())
    if step.stage == "align" and step.params["op"] == "rows":
        return StepCost(step.name, row_bytes, 0.0)
    pivot = facts.parameters("pivot")
    if step.stage == "fuse":
        each = 8 if run.spec.fuse.gradient_checkpointing else 6
        width = 4 if run.spec.profile == "Corrected" else 2
        return StepCost(step.name, pivot * width, each * pivot * facts.tokens() * run.spec.fuse.epochs)
    if step.stage == "merge":
        return StepCost(step.name, pivot * PIVOT_BYTES, 0.0)
    return StepCost(step.name, 0.0, 0.0)


def text(found: Estimate, gpu: str) -> str:
    """The estimate in four lines. Raises ValueError for a GPU that is not in the table."""
    if gpu not in GPUS:
        raise ValueError(f"--gpu: unknown GPU {gpu!r}, expected one of {', '.join(GPUS)}")
    forward = sum(s.flops for s in found.steps if s.name.startswith("extract"))
    training = sum(s.flops for s in found.steps) - forward
    hours = (forward + training) / (GPUS[gpu] * UTILISATION) / 3600
    lines = [
        f"estimate of what is to compute: {_size(sum(s.bytes for s in found.steps))} to S3",
        f"  forward {forward:.2e} FLOPs, training {training:.2e} FLOPs",
        f"  {_hours(hours)} GPU-hours of {gpu} (at {UTILISATION:.0%} of its bf16 peak)",
    ]
    if found.unknown:
        lines.append(f"  guessed: {'; '.join(found.unknown)}")
    return "\n".join(lines)


def _hours(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 else f"{count:.2g}"


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
