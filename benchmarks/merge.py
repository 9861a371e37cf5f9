"""The merge stage against PyPI mergekit, from disk and from S3, and its growth with the model.

`python benchmarks/merge.py [--quick] [--write]`. The peer is mergekit 0.1.5 in the interpreter that
MERGEKIT_PYTHON names (it is no dependency of ours; `pip install mergekit` into a venv of its own), on the
same files, right after ours. Without it the figures measured once on such a machine stand in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from fusechat.s3server import LocalS3
from fusechat.store import Manifest, Store
from fusechat_stages import merge
from fusechat_stages.artifacts import FolderOutput, Input, Output
from fusechat_stages.entry import run_local
from fusechat_stages.merge_tensors import Place, ShardFile, bytes_of
from harness import Row, Stats, measure, peak_rss, publish, quick, ratio, summarise

TARGETS = 5
SCE = {"method": "sce", "variant": "fuseai", "selectTopK": 0.1, "profile": "Corrected"}
FULL = 4  # the model of 200.8 M parameters; each step down is a quarter of it
THEIRS_SECONDS, THEIRS_BYTES = 41.0, 3.4e9
BAR_SECONDS, BAR_BYTES = 4.5, 0.8e9

PEER = """
import resource, sys, time
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
base, out, *targets = sys.argv[1:]
config = MergeConfiguration.model_validate({
    "merge_method": "sce", "base_model": base, "dtype": "bfloat16", "parameters": {"select_topk": 0.1},
    "models": [{"model": target} for target in targets],
})
start = time.perf_counter()
run_merge(config, out, MergeOptions(copy_tokenizer=False, quiet=True))
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def shapes(size: int) -> dict[str, tuple[int, ...]]:
    """A Llama whose every width halves with each step of `size` below FULL: a quarter of the parameters."""
    hidden, inner, vocabulary = (width >> (FULL - size) for width in (1024, 2636, 32002))
    found: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (vocabulary, hidden),
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(11):
        at = f"model.layers.{layer}."
        found |= {f"{at}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        found |= {f"{at}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        found |= {f"{at}mlp.down_proj.weight": (hidden, inner)}
        found |= {f"{at}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return found


def models(root: Path, size: int) -> list[Path]:
    """The base and the targets, in bfloat16, every target with changes of its own."""
    places = [
        Place(name, torch.bfloat16, shape, "", 0, 2 * torch.Size(shape).numel())
        for name, shape in shapes(size).items()
    ]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 1024 >> (FULL - size),
        "num_hidden_layers": 11,
        "vocab_size": 32002 >> (FULL - size),
        "tie_word_embeddings": False,
    }
    folders = [root / f"{size}" / name for name in ("base", *(f"target{j}" for j in range(TARGETS)))]
    files = []
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        files.append(ShardFile(folder / "model.safetensors", places))
    for seed, place in enumerate(places):
        generator = torch.Generator().manual_seed(seed)
        base = torch.randn(place.shape, generator=generator).mul_(0.02)
        for j, file in enumerate(files):
            change = torch.randn(place.shape, generator=generator).mul_(2e-4 * j) if j else 0
            file.write(place.name, 0, bytes_of((base + change).bfloat16()))
    for file in files:
        file.close()
    return folders


def parameters(size: int) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes(size).values())


def merged(folders: list[Path], out: Path) -> None:
    """Ours, folder to folder."""
    shutil.rmtree(out, ignore_errors=True)
    inputs = {"base": folders[0]} | {f"target.{j}": folder for j, folder in enumerate(folders[1:])}
    run_local("merge", SCE, inputs, out)


def peer(folders: list[Path], out: Path) -> tuple[float, float, bool]:
    """(seconds, bytes at the peak, measured here) of mergekit."""
    python = os.environ.get("MERGEKIT_PYTHON", sys.executable)
    base, *targets = map(str, folders)
    told = subprocess.run(
        [python, "-c", PEER, base, str(out), *targets], capture_output=True, text=True, check=False
    )
    shutil.rmtree(out, ignore_errors=True)
    if told.returncode and "MERGEKIT_PYTHON" in os.environ:
        raise RuntimeError(f"mergekit failed in {python}: {told.stderr[-2000:]}")
    if told.returncode:
        return THEIRS_SECONDS, THEIRS_BYTES, False
    seconds, peak = map(float, told.stdout.split()[-2:])
    return seconds, peak, True


def uploaded(store: Store, folders: list[Path]) -> dict[str, Manifest]:
    """The models as artifacts of a store."""
    found = {}
    for number, folder in enumerate(folders):
        role = f"target.{number - 1}" if number else "base"
        address = f"fetch/{number:064x}"
        files = tuple(store.upload(address, "bench", path.name, path) for path in sorted(folder.iterdir()))
        found[role] = store.publish(manifest(address, files))
    return found


def manifest(address: str, files: tuple) -> Manifest:
    return Manifest(
        address=address,
        stage="fetch",
        stage_version=1,
        profile="Corrected",
        params={},
        inputs={},
        files=files,
        metrics={},
        deterministic=True,
        libraries={},
        attempt="bench",
        created="2025-01-01T00:00:00Z",
        host={},
    )


def from_store(store: Store, manifests: dict[str, Manifest], scratch: Path, address: str | None) -> None:
    """Ours by range reads; to the store, file by file as they are done, or without an address to a folder."""
    inputs = {role: Input(store, found, scratch / role) for role, found in manifests.items()}
    to_store = address and Output(store, address, "bench", scratch / "out")
    merge.run(SCE, inputs, to_store or FolderOutput(scratch / "out"))
    shutil.rmtree(scratch)


def remote(folders: list[Path], root: Path) -> tuple[Stats, Stats, int]:
    """(seconds, seconds with the upload, peak memory with it); the server works on the same cores."""
    turns = range(1 if quick() else 3)
    with LocalS3(root / "s3") as server:
        os.environ.update(server.environment())
        store, far = Store(server.uri), root / "far"
        manifests = uploaded(store, folders)
        peak = peak_rss(lambda: from_store(Store(server.uri), manifests, far, f"merge/{99:064x}"))
        there = [seconds(lambda: from_store(store, manifests, far, None)) for _ in turns]
        back = [seconds(lambda t=t: from_store(store, manifests, far, f"merge/{t:064x}")) for t in turns]
    return summarise(there), summarise(back), peak


def seconds(fn: Callable[[], None]) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def main() -> None:
    torch.set_num_threads(1)
    sizes = (0, 1, 2) if quick() else (2, 3, 4)
    root = Path(tempfile.mkdtemp(prefix="fusechat-merge-"))
    try:
        publish("merge", *measured(root, sizes))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def measured(root: Path, sizes: tuple[int, int, int]) -> tuple[list[Row], list[str]]:
    made = {size: models(root, size) for size in sizes}
    peaks = {size: peak_rss(lambda s=size: merged(made[s], root / "out")) for size in sizes}
    times = {size: measure(lambda s=size: merged(made[s], root / "out"), repeat=5, warm=1) for size in sizes}
    whole = sizes[-1]
    theirs, their_peak, here = peer(made[whole], root / "peer")
    far, back, far_peak = remote(made[whole], root)
    count, moved = parameters(whole), 2 * parameters(whole) * (TARGETS + 2)
    rows = [
        timed(
            f"SCE merge, base + {TARGETS} targets of {count / 1e6:.1f} M bf16 parameters, "
            f"{gigabytes(moved)} moved",
            theirs,
            times[whole],
        ),
        held("the same, peak RSS (torch included)", their_peak, peaks[whole]),
        timed("the same from S3 by range reads", theirs, far),
        held("the same from S3, peak RSS", their_peak, far_peak),
        Row("the same from S3 and uploaded to it", "-", str(back), ratio(back.median, theirs), "-", None),
        *growth(sizes, peaks, times),
    ]
    figures = "measured in this run" if here else "by the figures of TARGETS.md (MERGEKIT_PYTHON names none)"
    notes = [
        f"Peer: mergekit 0.1.5, {figures}. Its time is run_merge alone; ours is the whole stage, with the "
        "copy of the result into its folder.",
        "The largest tensor grows with the model: an embedding is a sixth of it.",
        "From S3: SeaweedFS runs on the same cores, so its own work is in the figure.",
        f"Load average at the end: {os.getloadavg()[0]:.1f} (others' work slows peer and ours alike).",
    ]
    return rows, notes


def timed(what: str, theirs: float, ours: Stats) -> Row:
    met = None if quick() else ours.median <= BAR_SECONDS
    return Row(what, f"{theirs:.3g} s", str(ours), ratio(ours.median, theirs), f"<= {BAR_SECONDS} s", met)


def held(what: str, theirs: float, ours: int) -> Row:
    met = None if quick() else ours <= BAR_BYTES
    return Row(
        what, gigabytes(theirs), gigabytes(ours), ratio(ours, theirs), f"<= {gigabytes(BAR_BYTES)}", met
    )


def growth(sizes: tuple[int, int, int], peaks: dict[int, int], times: dict[int, Stats]) -> list[Row]:
    """Memory and time at 1x, 4x and 16x the model."""
    flat = peaks[sizes[2]] / peaks[sizes[0]]
    slope = times[sizes[2]].median / times[sizes[1]].median
    bytes_told = " / ".join(gigabytes(peaks[size]) for size in sizes)
    seconds_told = " / ".join(f"{times[size].median:.3g} s" for size in sizes)
    return [
        Row(
            "peak RSS at 1x / 4x / 16x the model",
            "-",
            bytes_told,
            f"{flat:.2f} times at 16x",
            "flat",
            None if quick() else flat <= 1.15,
        ),
        Row(
            "time at 1x / 4x / 16x the model",
            "-",
            seconds_told,
            f"{slope:.2f} times from 4x to 16x",
            "linear (4 times)",
            None if quick() else slope <= 4.6,
        ),
    ]


if __name__ == "__main__":
    main()
