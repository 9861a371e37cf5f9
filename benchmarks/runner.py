"""What the local runner itself costs a step: start, records, publishing. Peer: a fresh process with torch.

The step is a filter of one small block, so that nearly all of its time is ours. `--quick` does fewer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import numpy as np
from fusechat import launch
from fusechat.address import address
from fusechat.launch import Launch
from fusechat.processes import Processes, wait_any
from fusechat.s3server import LocalS3
from fusechat.store import Manifest, Store
from harness import Row, measure, publish

BAR_SECONDS = 0.5


def main() -> None:
    repeat = 3 if "--quick" in sys.argv else 15
    with tempfile.TemporaryDirectory() as folder, LocalS3(Path(folder) / "s3") as server:
        os.environ.update(server.environment())
        store = Store(server.uri)
        aligned = put_block(store, Path(folder))
        processes = Processes(server.environment(), 1)
        processes.preload()
        run_step(processes, store, aligned, Path(folder), "align")
        forked = measure(lambda: run_step(processes, store, aligned, Path(folder), "align"), repeat=repeat)
        spawned = measure(
            lambda: run_step(Processes({}, 1), store, aligned, Path(folder), "filter"), repeat=repeat
        )
    peer = measure(import_torch, repeat=3)
    publish(
        "runner",
        [
            row("a step forked from the warm server", peer, forked),
            row("a light step in a process of its own", peer, spawned),
        ],
        ["One filter step of one small block: start, read its input, publish, be seen. Peer: a fresh process"
            " that imports torch and transformers, as a script per step does."],
    )  # fmt: skip


def row(what: str, peer, ours) -> Row:
    return Row(
        what=f"runner's own cost per step: {what}",
        peer=f"{peer.median:.2f} s",
        ours=f"{ours.median:.3f} s ({ours.min:.3f}-{ours.max:.3f})",
        ratio=f"{peer.median / ours.median:.0f}x",
        bar=f"<= {BAR_SECONDS} s",
        met=ours.median <= BAR_SECONDS,
    )


def put_block(store: Store, folder: Path) -> str:
    """An aligned artifact of one block, published as align would."""
    from fusechat_stages import shards

    rows = np.zeros((8, 4))
    block = shards.Aligned(
        ids=["a", "b"], index=np.arange(2), row_offsets=np.array([0, 4, 8]), topk_ids=rows.astype(np.int32),
        scores=rows.astype(np.float16), tail=np.zeros(8, np.float32), unmapped=np.zeros(8, np.float32),
        kind=np.ones(8, np.uint8), ce_pivot=np.ones(2, np.float32), ce_source=np.ones(2, np.float32), meta={},
    )  # fmt: skip
    path = folder / shards.block_name(0)
    shards.write_aligned(path, block)
    where, attempt = address("align", 1, {}, {}), str(uuid.uuid4())
    files = (store.upload(where, attempt, path.name, path),)
    told = {
        "stage": "align",
        "stage_version": 1,
        "profile": "Corrected",
        "params": {},
        "inputs": {},
        "libraries": {},
    }
    store.publish(
        Manifest(address=where, files=files, metrics={}, deterministic=True, attempt=attempt,
                 created="2026-01-01T00:00:00Z", host={}, **told)
    )  # fmt: skip
    return where


def run_step(processes: Processes, store: Store, aligned: str, folder: Path, how: str) -> None:
    """One filter step from its start to its manifest; `how` is the stage that Processes takes it for."""
    where = address("filter", 1, {"n": str(uuid.uuid4())}, {})
    told = Launch(
        "filter", 1, where, store.uri, {"profile": "Corrected"}, {"pivot": aligned, "aligned": aligned}
    )
    process = processes.start("x", how, launch.argv(told), folder / "work", folder / "log")
    while process.exit_code() is None:
        wait_any([process], 0.2)
    assert process.exit_code() == 0, (folder / "log").read_text()
    process.close()
    assert store.manifest(where)


def import_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import torch, transformers, transformers.models.llama.modeling_llama"],
        check=True,
    )


if __name__ == "__main__":
    main()
