"""Bad input and a bad world, case by case: one sentence, the right exit code, nothing half published."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fusechat import launch
from fusechat.address import address
from fusechat.launch import Launch
from fusechat.plan import VERSIONS
from fusechat.s3server import LocalS3
from fusechat.store import Manifest, Store
from safetensors.numpy import load_file, save_file

from tests import tiny

pytestmark = pytest.mark.timeout(300)
EXTRACT = {
    "profile": "Corrected",
    "template": "auto",
    "topK": 4,
    "maxLength": 64,
    "dtype": "float32",
    "scores": "logprobs",
}
ALIGN = {
    "op": "rows",
    "profile": "Corrected",
    "method": "Bytes",
    "pivotTemplate": "auto",
    "sourceTemplate": "auto",
    "topK": 4,
}
FUSE = {
    "profile": "Corrected", "strategy": "SFT", "epochs": 1, "learningRate": 1e-3, "scheduler": "cosine",
    "warmupRatio": 0.03, "weightDecay": 0.0, "globalBatch": 8, "maxLength": 64, "maxGradNorm": 1.0, "seed": 1,
    "dtype": "float32",
}  # fmt: skip
SCE = {"method": "sce", "profile": "Corrected", "variant": "fuseai", "selectTopK": 0.1}
MATCH = {"benchmark": "exactMatch", "template": "auto", "dtype": "float32", "maxNewTokens": 4}


class World:
    """A real store, the small models, and a way to run one stage on artifacts made for the case."""

    def __init__(self, store: Store, models: Path, tmp: Path) -> None:
        self.store, self.models, self.tmp = store, models, tmp
        self.pivot = self.put("fetch", self.models / "pivot")
        self.a = self.put("fetch", self.models / "a")
        self.data = self.lines({"id": "1", "messages": [{"role": "user", "content": "Hi"},
                                                        {"role": "assistant", "content": "red cat"}]})  # fmt: skip

    def put(self, stage: str, folder: Path, metrics=None, params=None) -> str:
        where, attempt = address(stage, 1, {"n": str(uuid.uuid4())}, {}), str(uuid.uuid4())
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        files = tuple(self.store.upload(where, attempt, name, folder / name) for name in names)
        told = {
            "stage_version": 1,
            "profile": "Corrected",
            "params": params or {},
            "inputs": {},
            "libraries": {},
        }
        self.store.publish(
            Manifest(address=where, stage=stage, files=files, metrics=metrics or {}, deterministic=True,
                     attempt=attempt, created="2026-01-01T00:00:00Z", host={}, **told)
        )  # fmt: skip
        return where

    def lines(self, *records) -> str:
        folder = self.folder()
        (folder / "block-00000.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        return self.put("fetch", folder, {"samples": len(records), "blocks": 1})

    def folder(self) -> Path:
        path = self.tmp / str(uuid.uuid4())
        path.mkdir(parents=True)
        return path

    def model(self, name="pivot", change=None, drop=()) -> str:
        """A copy of a small model with tensors changed and files dropped, as an artifact."""
        folder = self.copy(name)
        if change:
            tensors = change(load_file(folder / "model.safetensors"))
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for file in drop:
            (folder / file).unlink()
        return self.put("fetch", folder)

    def copy(self, name) -> Path:
        folder = self.folder()
        shutil.copytree(self.models / name, folder, dirs_exist_ok=True)
        return folder

    def stage(self, stage, params, inputs=None, runtime=None, **told):
        """Run one stage in this process: exit code, sentence, address."""
        from fusechat_stages import entry

        where = told.pop("address", None) or address(stage, 1, {"n": str(uuid.uuid4())}, {})
        uri = told.pop("store", self.store.uri)
        version = told.pop("version", VERSIONS[stage])
        said = self.tmp / "summary.json"
        os.environ["FUSECHAT_SUMMARY_FILE"] = str(said)
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = entry.main(
                launch.argv(
                    Launch(stage, version, where, uri, params, inputs or {}, runtime=runtime or {}, **told)
                )
            )
        finally:
            signal.signal(signal.SIGTERM, before)
        return SimpleNamespace(code=code, says=json.loads(said.read_text())["error"], address=where)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    tiny.build(models, samples=4, questions=4)
    with LocalS3(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield World(Store(server.uri), models, tmp_path_factory.mktemp("work"))


def model_fetch(w, folder):
    return w.stage(
        "fetch", {"kind": "model", "pin": "sha256:" + "0" * 64}, runtime={"uri": f"file://{folder}"}
    )


def data_resolve(w, name, content, kind="dataset"):
    folder = w.folder()
    (folder / name).write_bytes(content)
    origin = {"kind": kind, "uri": f"file://{folder / name}", "revision": None}
    asked = w.stage("resolve", {"origins": {"x": origin}, "nonce": str(uuid.uuid4())})
    assert asked.code == 0, asked.says
    pin = w.store.manifest(asked.address).metrics["pins"]["x"]
    return w.stage("fetch", {"kind": kind, "pin": pin}, runtime={"uri": f"file://{folder / name}"})


def resolve(w, **origin):
    return w.stage("resolve", {"origins": {"x": {"revision": None, **origin}}, "nonce": str(uuid.uuid4())})


def extract(w, model=None, data=None, **params):
    return w.stage("extract", {**EXTRACT, **params}, {"model": model or w.pivot, "dataset": data or w.data})


def extracted(w, model=None) -> str:
    found = extract(w, model)
    assert found.code == 0, found.says
    return found.address


def align(w, **inputs):
    roles = {"pivotModel": w.pivot, "sourceModel": w.a, **inputs}
    roles.setdefault("pivot", extracted(w))
    roles.setdefault("source", extracted(w, w.a))
    return w.stage("align", ALIGN, roles)


def fuse(w, **told):
    inputs = {"model": told.pop("model", w.pivot), "pivot": told.pop("pivot", None) or extracted(w)}
    return w.stage(
        "fuse", {**FUSE, **told}, inputs, {"microBatch": 2, "attention": told.pop("attention", "auto")}
    )


def merge(w, targets, **params):
    roles = {"base": w.pivot} | {f"target.{i}": t for i, t in enumerate(targets)}
    return w.stage("merge", {**SCE, **params}, roles)


def pickled(w):
    folder = w.copy("pivot")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def nan(tensors):
    first = next(iter(tensors))
    tensors[first].reshape(-1)[3] = np.nan
    return tensors


def small_embedding(tensors):
    return {n: (t[:40] if "embed_tokens" in n or "lm_head" in n else t) for n, t in tensors.items()}


def small_vocabulary(w):
    folder = w.copy("pivot")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 40}))
    save_file(small_embedding(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    return w.put("fetch", folder)


def turn(user, assistant):
    return {
        "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}],
        "id": "1",
    }


def unsupervised(w):
    return w.lines(turn("red cat dog " * 200, "blue"))


def unbalanced_align(w):
    other = w.lines(turn("Hi", "blue"), turn("Ho", "green"))
    return align(w, source=extract(w, w.a, other).address)


def corrupt(w):
    folder = w.folder()
    (folder / "block-00000.arrow").write_bytes(b"not arrow")
    return w.put("extract", folder)


def reshaped(tensors):
    return {n: (t[:, :16].copy() if t.ndim == 2 else t) for n, t in tensors.items()}


CASES = [
    ("no such stage version", lambda w: w.stage("filter", {}, version=9), 64, "planned as version 9"),
    ("an input that is not there", lambda w: w.stage("filter", {}, {"aligned": "align/" + "0" * 64}), 66, "is not in"),
    ("no such folder", lambda w: resolve(w, kind="model", uri="file:///nowhere"), 65, "no such file or folder"),
    ("unknown scheme", lambda w: resolve(w, kind="model", uri="ftp://x"), 65, "unknown scheme"),
    ("an empty prefix", lambda w: resolve(w, kind="model", uri="s3://fuse/nothing/here"), 65, "nothing lies there"),
    ("a bucket that is not there", lambda w: resolve(w, kind="model", uri="s3://nobucket/x"), 69, "nobucket"),
    ("pickled weights", lambda w: resolve(w, kind="model", uri=f"file://{pickled(w)}"), 65, "only pickled weights"),
    ("a wrong digest", lambda w: model_fetch(w, w.models / "pivot"), 65, "it changed since"),
    ("no data file", lambda w: resolve(w, kind="dataset", uri=f"file://{w.folder()}"), 65, "no .json, .jsonl"),
    ("an empty dataset", lambda w: data_resolve(w, "d.jsonl", b""), 65, "no record"),
    ("not UTF-8", lambda w: data_resolve(w, "d.jsonl", b'{"a": "\xff"}'), 65, "not UTF-8"),
    ("not JSON", lambda w: data_resolve(w, "d.json", b"{]"), 65, "not JSON"),
    ("gpt speaks first", lambda w: data_resolve(w, "d.json", json.dumps(
        [{"conversations": [{"from": "gpt", "value": "x"}]}]).encode()), 65, "starts with gpt"),
    ("a question without an answer", lambda w: data_resolve(w, "q.json", b'[{"question": "x"}]', "questions"), 65,
     "answer must be text"),
    ("no supervised token", lambda w: extract(w, data=unsupervised(w)), 65, "supervised"),
    ("NaN weights", lambda w: extract(w, w.model(change=nan)), 65, "not finite|NaN"),
    ("a vocabulary larger than the model", lambda w: extract(w, small_vocabulary(w)), 65, "vocabulary is larger"),
    ("a model without a tokenizer", lambda w: extract(w, w.model(drop=["tokenizer.json", "tokenizer_config.json"])), 65,
     "tokenizer"),
    ("a model without its weights", lambda w: extract(w, w.model(drop=["model.safetensors"])), 65, "no weights"),
    ("a tensor missing", lambda w: extract(w, w.model(change=lambda t: dict(list(t.items())[:-1]))), 65, "missing"),
    ("an unknown template", lambda w: extract(w, template="chatty"), 65, "chatty"),
    ("a dataset that is a model", lambda w: extract(w, data=w.a), 65, ""),
    ("a block that is not one", lambda w: align(w, source=corrupt(w)), 65, "not a readable block"),
    ("blocks of different datasets", unbalanced_align, 65, ""),
    ("another model's tokenizer", lambda w: align(w, sourceModel=w.pivot), 65, ""),
    ("an unknown strategy", lambda w: fuse(w, strategy="Best"), 65, "Best"),
    ("a fusion without distributions", lambda w: fuse(w, strategy="Pairwise", loss="ce", lmWeight=0.9,
     temperature=1.0, choice="MinCE", withPivot=True), 65, ""),
    ("a learning rate that ends in NaN", lambda w: fuse(w, learningRate=1e30, epochs=40, maxGradNorm=0.0), 65, ""),
    ("rows of another model", lambda w: fuse(w, pivot=extracted(w, w.a)), 65, ""),
    ("no target", lambda w: merge(w, []), 65, "target"),
    ("a target of another shape", lambda w: merge(w, [w.model(change=reshaped)]), 65, "shape"),
    ("a target of another family", lambda w: merge(w, [w.a]), 65, ""),
    ("a target with NaN", lambda w: merge(w, [w.model(change=nan)]), 65, "nan at element 3"),
    ("an unknown merge", lambda w: merge(w, [w.pivot], method="soup"), 65, "soup"),
    ("slerp of three", lambda w: merge(w, [w.pivot] * 3, method="slerp", t=0.5), 65, "two"),
    ("an unknown benchmark", lambda w: w.stage("evaluate", {**MATCH, "benchmark": "mmlu"}, {"model": w.pivot}), 65, "mmlu"),
    ("questions that are conversations", lambda w: w.stage("evaluate", MATCH, {"model": w.pivot, "questions": w.data}),
     65, ""),
]  # fmt: skip


@pytest.mark.parametrize(("case", "code", "says"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_one_sentence_the_right_code_and_nothing_half_published(world, case, code, says):
    import re

    found = case(world)
    assert (found.code, bool(re.search(says, found.says))) == (code, True), (found.code, found.says)
    assert "\n" not in found.says.strip()
    assert len(found.says) > 20
    assert world.store.manifest(found.address) is None


def answer(status: int):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_HEAD = do_POST = do_GET

        def log_message(self, *_):
            pass

    return Handler


@pytest.mark.parametrize(("status", "codes"), [(403, {69}), (500, {69, 75}), (503, {69, 75})])
def test_a_store_that_refuses_or_fails_is_trouble_outside(world, monkeypatch, status, codes):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answer(status)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
        found = extract(world)
        server.shutdown()
    assert found.code in codes
    assert "\n" not in found.says


def test_a_store_that_is_down_and_a_wrong_key_are_trouble_outside(world, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        assert extract(world).code in (69, 75)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    found = extract(world)
    assert (found.code, "\n" in found.says) == (69, False)


def test_a_bucket_that_is_not_there_is_named(world):
    found = world.stage("filter", {}, {"aligned": "align/" + "0" * 64}, store="s3://nobucket/x")
    assert (found.code, "nobucket" in found.says) == (69, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk is made with mount, which needs root")
def test_a_full_disk_is_trouble_outside_and_leaves_nothing(world, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        monkeypatch.setenv("FUSECHAT_SCRATCH", str(disk))
        found = extract(world)
        assert found.code == 75
        assert "disk" in found.says or "space" in found.says
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)
