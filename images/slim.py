"""Finish an image's virtual environment: take out what no process of ours opens, compile the rest.

Usage: slim.py VENV. Run by images/Dockerfile, which puts our source beside the environment, for it changes
more often. Standard library only; knows no more of the packages than the names below.
"""

from __future__ import annotations

import compileall
import re
import shutil
import sys
from pathlib import Path
from py_compile import PycInvalidationMode

UNUSED = (
    "torch/include",
    "torch/share",
    "torch/test",
    "torch/bin/*test*",
    "torch/bin/*Test*",
    "torch/bin/protoc*",
    "torch/lib/*.a",
    "pyarrow/include",
    "pyarrow/src",
    "pyarrow/**/tests",
    "sympy/**/tests",
    "networkx/**/tests",
    "kubernetes/**/*_test.py",
    "kubernetes/client/api/*_api.py",
)
"""Headers, static libraries, tests and their data (numpy's stay: numpy.testing imports some), and the
Kubernetes client's blocking calls: ours are in kubernetes.aio."""

AWS = {"s3", "sts", "sso", "sso-oidc", "signin"}
"""The services that a client of S3 may speak to, its credentials' included; botocore describes 400 others."""

RARE = re.compile(r"/kubernetes/.*/?client/(api|models)/")
"""Imported one by one, and we use ten of a thousand: not worth twice their size."""


def main(venv: Path) -> None:
    (packages,) = venv.glob("lib/python3*/site-packages")
    for pattern in UNUSED:
        for path in packages.glob(pattern):
            remove(path)
    for service in (packages / "botocore" / "data").glob("*/"):
        if service.name not in AWS:
            remove(service)
    (packages / "fusechat.pth").write_text("/opt/fusechat\n")
    # By hash and unchecked: an image's files keep no time of their own that is worth comparing.
    mode = PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(packages, maxlevels=50, rx=RARE, quiet=2, workers=0, invalidation_mode=mode)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
