"""The one command line of every stage: arguments -> inputs -> run() -> publish -> exit code.

`python -m fusechat_stages.entry extract --address=... --store=s3://... ...` (written by `fusechat.launch`).
Runs as the first process of a container and as a child of the local runner. Knows the stages only by name.

Exit codes: 0 done; 64 wrong usage; 65 bad data; 66 missing input; 69 and 75 trouble outside; 70 a fault of
ours; 143 stopped by SIGTERM after saving.
"""

from __future__ import annotations

import datetime
import errno
import importlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import traceback
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from fusechat import launch
from fusechat.errors import FusechatError, MissingInput, UsageError
from fusechat.launch import Launch
from fusechat.store import InputRef, Manifest, Store

from fusechat_stages import lineage
from fusechat_stages.artifacts import FolderInput, FolderOutput, Input, Output, Stopped, summed
from fusechat_stages.logs import copied_to

__all__ = ["STAGES", "Input", "Output", "Stopped", "main", "run_local"]

STAGES = ("resolve", "fetch", "extract", "align", "filter", "fuse", "merge", "evaluate", "report")
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pyarrow", "rapidfuzz")
SUMMARY_BYTES = 4000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; returns the exit code and never raises."""
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        told = _usage(sys.argv[1:] if arguments is None else list(arguments))
        store = Store(told.store)
    except Exception as error:
        code, summary = _failure(error)
        print(f"error: {summary['error']}", file=sys.stderr, flush=True)
        _say({"exitCode": code, **summary})
        return code
    return _recorded(told, store, stop)


def _recorded(told: Launch, store: Store, stop: threading.Event) -> int:
    """One attempt with its scratch, its log and its record (`attempts/<uuid>.json`) in the store."""
    attempt, started = str(uuid.uuid4()), _now()
    scratch = Path(tempfile.mkdtemp(prefix=f"fusechat-{told.stage}-", dir=os.environ.get("FUSECHAT_SCRATCH")))
    try:
        with copied_to(scratch / "log"):
            try:
                code, summary = 0, _attempt(told, store, attempt, scratch, stop)
            except BaseException as error:
                code, summary = _failure(error)
                if code == 70:
                    traceback.print_exc()
                print(f"error: {summary['error']}", file=sys.stderr, flush=True)
        times = {"started": started, "ended": _now()}
        record = {"exitCode": code, "attempt": attempt, "node": platform.node(), **times, **summary}
        _keep(store, told.address, attempt, record, scratch / "log")
        _say(record)
        return code
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _keep(store: Store, address: str, attempt: str, record: Mapping[str, Any], log: Path) -> None:
    """The attempt's record and log: for people; trouble with them must not change the outcome."""
    try:
        store.put_json(f"{address}/attempts/{attempt}.json", dict(record))
        store.put_bytes(f"{address}/logs/{attempt}.log", log.read_bytes())
    except Exception as error:
        print(f"warning: the log was not kept: {error}", file=sys.stderr, flush=True)


def run_local(
    stage: str,
    params: Mapping[str, Any],
    inputs: Mapping[str, Path],
    out: Path,
    runtime: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run one stage from folders to a folder, with no store; returns the metrics (also in `metrics.json`)."""
    module = _stage(stage)
    output = FolderOutput(out, runtime)
    module.run(dict(params), {role: FolderInput(folder) for role, folder in inputs.items()}, output)
    metrics = _metrics(module, output, [output.parts[b] for b in sorted(output.parts)])
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True))
    shutil.rmtree(output.folder, ignore_errors=True)
    return metrics


def _usage(arguments: list[str]) -> Launch:
    try:
        told = launch.parse(arguments)
    except ValueError as error:
        raise UsageError(str(error)) from error
    expected = _stage(told.stage).VERSION
    if told.version != expected:
        raise UsageError(
            f"stage {told.stage} is version {expected} here and was planned as version {told.version}; "
            "run it with the image it was planned for, or plan the run anew"
        )
    return told


def _stage(name: str) -> ModuleType:
    if name not in STAGES:
        raise UsageError(f"unknown stage {name!r}, expected one of {', '.join(STAGES)}")
    return importlib.import_module(f"fusechat_stages.{name}")


def _attempt(
    told: Launch, store: Store, attempt: str, scratch: Path, stop: threading.Event
) -> dict[str, Any]:
    if found := store.manifest(told.address):
        print(f"{told.address} is published already", flush=True)
        return {"metrics": _bounded(found.metrics), "published": False}
    if stop.is_set():
        raise Stopped("before it began")
    inputs = {role: _input(store, role, where, scratch) for role, where in told.inputs.items()}
    lineage.check(told.stage, {role: given.manifest for role, given in inputs.items()})
    folder = scratch / "out"
    out = Output(store, told.address, attempt, folder, shard=told.shard, runtime=told.runtime, stop=stop)
    module = _stage(told.stage)
    module.run(dict(told.params), inputs, out)
    manifest = _manifest(told, module, inputs, out)
    if manifest is None:
        return {"metrics": {}, "published": False}
    winner = store.publish(manifest)
    _clear(store, told.address)
    return {"metrics": _bounded(winner.metrics), "published": winner.attempt == attempt}


def _clear(store: Store, address: str) -> None:
    """What only an unfinished step needs. Manifests first, so that no checkpoint is found half deleted."""
    left = [found.key for found in store.keys(f"{address}/checkpoints/")]
    store.delete(sorted(left, key=lambda key: not key.endswith("manifest.json")))
    store.delete([f"{address}/progress.json"])


def _input(store: Store, role: str, address: str, scratch: Path) -> Input:
    manifest = store.manifest(address)
    if manifest is None:
        raise MissingInput(
            f"input {role} ({address}) is not in {store.uri}; the step that makes it must run again"
        )
    return Input(store, manifest, scratch / "in" / role)


def _manifest(told: Launch, module: ModuleType, inputs: Mapping[str, Input], out: Output) -> Manifest | None:
    """The artifact's manifest, or None while other shards still have blocks to publish."""
    files, parts = list(out.files), []
    if out.block_count is not None:
        published = out.store.parts(told.address)
        if len(published) < out.block_count:
            return None
        ordered = [published[block] for block in range(out.block_count)]
        parts = [part.metrics for part in ordered]
        files += [entry for part in ordered for entry in part.files]
    return Manifest(
        address=told.address,
        stage=told.stage,
        stage_version=told.version,
        profile=told.profile,
        params=told.params,
        inputs={role: InputRef(i.address, i.manifest.digest) for role, i in inputs.items()},
        files=tuple(sorted(files, key=lambda entry: entry.name)),
        metrics=_metrics(module, out, parts),
        deterministic=out.deterministic,
        libraries=_libraries(),
        attempt=out.attempt,
        created=_now(),
        host={"machine": platform.machine(), "cpus": os.cpu_count(), "node": platform.node()},
    )


def _metrics(module: ModuleType, out: Output, parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    sums = summed(parts)
    summarise = getattr(module, "summarise", None)
    return {**(summarise(sums) if summarise and out.block_count is not None else sums), **out.metrics}


def _libraries() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _failure(error: BaseException) -> tuple[int, dict[str, Any]]:
    sentence = str(error).strip() or type(error).__name__
    if isinstance(error, Stopped):
        return 143, {"error": f"stopped: {sentence}", "reason": "Stopped"}
    if isinstance(error, FusechatError):
        return error.exit_code, {"error": sentence, "reason": type(error).__name__}
    if isinstance(error, ValueError):
        return 65, {"error": sentence, "reason": "BadData"}
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        free = shutil.disk_usage(os.environ.get("FUSECHAT_SCRATCH") or tempfile.gettempdir()).free
        return 75, {
            "error": f"the disk is full ({free >> 20} MiB free); give the step more scratch",
            "reason": "DiskFull",
        }
    if isinstance(error, MemoryError) or "out of memory" in sentence.lower():
        return 70, {"error": f"out of memory: {sentence.splitlines()[0]}", "reason": "OutOfMemory"}
    if isinstance(error, KeyboardInterrupt):
        return 130, {"error": "interrupted", "reason": "Interrupted"}
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code, {"error": f"a worker ended with exit code {error.code}", "reason": "Worker"}
    return 70, {"error": f"{type(error).__name__}: {sentence}", "reason": "Fault"}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _bounded(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """As many metrics, in order, as fit the termination message."""
    kept: dict[str, Any] = {}
    for key, value in metrics.items():
        if len(json.dumps({**kept, key: value})) < SUMMARY_BYTES - 600:
            kept[key] = value
    return kept


def _say(summary: Mapping[str, Any]) -> None:
    """Write the summary where a kubelet or the local runner reads it."""
    path = os.environ.get("FUSECHAT_SUMMARY_FILE") or "/dev/termination-log"
    text = json.dumps({**summary, "error": str(summary.get("error", ""))[:2000]})
    if os.access(path, os.W_OK) or os.environ.get("FUSECHAT_SUMMARY_FILE"):
        Path(path).write_text(
            text[:SUMMARY_BYTES]
            if len(text) <= SUMMARY_BYTES
            else json.dumps({"exitCode": summary["exitCode"]})
        )


if __name__ == "__main__":
    sys.exit(main())
