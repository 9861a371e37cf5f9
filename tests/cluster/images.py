"""The two images, built from this checkout on a machine with no registry and no container engine.

`python -m tests.cluster.images` builds them; used by tests/cluster/node.py and the demo. Root on Debian, with
the packages of tests/cluster/install.sh. The base image comes from debootstrap, the wheels from pip as this
machine has it configured; both are kept, and buildah's layers and the archives too, so that a second call
takes two seconds. Knows no cluster.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusechat" / "images"
BASE = "localhost/base:bookworm"
TAG = "test"
NAMES = {target: f"localhost/fusechat-{target}:{TAG}" for target in ("operator", "stages")}
BUILDAH = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "overlay"}
DEAD_WEIGHT = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
)


def build() -> dict[str, str]:
    """Both images from the checkout as it is; their names by target."""
    if not _id(BASE):
        _make_base()
    told = {"ENGINE": "buildah", "BASE": BASE, "WHEELS": str(_wheels()), "TAG": TAG}
    _run(["sh", str(ROOT / "images" / "build.sh")], {**told, "IMAGE_PREFIX": "localhost/"})
    return dict(NAMES)


def archives() -> list[Path]:
    """Both images as files for `cluster.py load`; written anew only when the image changed."""
    return [_archive(name) for name in build().values()]


def _archive(name: str) -> Path:
    target = name.rpartition("/")[2].partition(":")[0]
    path = CACHE / f"{target}-{_id(name)[:16]}.tar"
    if not path.exists():
        for old in CACHE.glob(f"{target}-*.tar*"):
            old.unlink()
        half = path.with_suffix(".tar.partial")
        # docker's format is not compressed: on one machine, compressing would only take time.
        _run(["buildah", "push", "-q", name, f"docker-archive:{half}:{name}"])
        half.rename(path)
    return path


def _make_base() -> None:
    """Debian with Python as an image: what python:3.11-slim-bookworm is where there is a registry."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        packages = "--include=python3,python3-venv,ca-certificates"
        _run(["debootstrap", "--variant=minbase", packages, "bookworm", str(root)])
        for path in DEAD_WEIGHT:
            shutil.rmtree(root / path, ignore_errors=True)
        container = _run(["buildah", "from", "scratch"]).strip()
        _run(["buildah", "add", "-q", container, str(root), "/"])
        _run(["buildah", "commit", "-q", container, BASE])
        _run(["buildah", "rm", container])


def _wheels() -> Path:
    """A folder with the wheels of both lock files, for a build that asks no index."""
    locks = [ROOT / "images" / "operator.txt", ROOT / "images" / "stages.txt"]
    known = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()[:16]
    folder = CACHE / f"wheels-{known}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob("wheels-*"):  # other locks', and what a killed download left
            shutil.rmtree(old)
        half = Path(tempfile.mkdtemp(dir=CACHE, prefix="wheels-"))
        for lock in locks:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
            _run([*pip, f"--dest={half}", f"--requirement={lock}"])
        half.rename(folder)
    return folder


def _id(name: str) -> str:
    """The image's id, or nothing where it does not exist."""
    asked = ["buildah", "images", "-q", "--no-trunc", name]
    found = subprocess.run(asked, env={**os.environ, **BUILDAH}, capture_output=True, text=True)
    return found.stdout.strip().removeprefix("sha256:") if found.returncode == 0 else ""


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    told = {**os.environ, **BUILDAH, **(environment or {})}
    done = subprocess.run(command, env=told, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} ...: exit {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def main() -> None:
    started = time.monotonic()
    paths = archives()
    for name in NAMES.values():
        print(_run(["buildah", "images", "--format", "{{.Name}}:{{.Tag}} {{.Size}}", name]).strip())
    print(f"{', '.join(path.name for path in paths)} in {CACHE}: {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
