"""A 2 GB artifact to S3 and back, beside boto3's own transfers at their best, on one local SeaweedFS.

    python benchmarks/s3.py [--quick] [--write]

boto3 is tried with its defaults and with tuned TransferConfigs, each with the client's defaults and with our
client's settings (on this machine neither checksums nor a signature over the bytes); the best for each
direction is the peer. Then the peer and ours take turns. Ours also hashes every byte (sha256), as the
manifest needs; boto3 does not.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from fusechat.s3server import LocalS3
from fusechat.store import FileEntry, Store
from harness import Row, Stats, measure, peak_rss, publish, quick, ratio, summarise

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MB = 1 << 20
SIZE = (256 if quick() else 2048) * MB
TRIAL = (64 if quick() else 512) * MB
REPEAT = 1 if quick() else 3
ADDRESS = "fetch/" + "0" * 64
TUNED = {
    "defaults": TransferConfig(),
    "8 MiB x 4": TransferConfig(multipart_chunksize=8 * MB, max_concurrency=4, io_chunksize=MB),
    "16 MiB x 8": TransferConfig(multipart_chunksize=16 * MB, max_concurrency=8, io_chunksize=MB),
    "64 MiB x 4": TransferConfig(multipart_chunksize=64 * MB, max_concurrency=4, io_chunksize=MB),
}
Transfer = Callable[[Path], object]


def clients() -> dict[str, S3Client]:
    bare = Config(
        max_pool_connections=32,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"payload_signing_enabled": False},
    )
    plain = Config(max_pool_connections=32)
    return {
        name: boto3.client("s3", config=c) for name, c in (("client defaults", plain), ("our client", bare))
    }


def peers(direction: str) -> dict[str, Transfer]:
    """boto3's transfers of one direction by the name of their settings; the key is the file's name."""
    found: dict[str, Transfer] = {}
    for client_name, client in clients().items():
        for name, config in TUNED.items():
            one_way = peer_up if direction == "up" else peer_down
            found[f"{name}, {client_name}"] = partial(one_way, client, config)
    return found


def peer_up(client: S3Client, config: TransferConfig, path: Path) -> None:
    client.upload_file(str(path), "fuse", path.name, Config=config)


def peer_down(client: S3Client, config: TransferConfig, path: Path) -> None:
    client.download_file("fuse", path.name, f"{path}.back", Config=config)
    os.unlink(f"{path}.back")


def best(direction: str, trial: Path) -> tuple[str, Transfer]:
    """The fastest of boto3's settings on the smaller file."""
    found = peers(direction)
    seconds = {name: measure(partial(transfer, trial), 1).median for name, transfer in found.items()}
    name = min(seconds, key=seconds.__getitem__)
    return name, found[name]


def turns(
    peer: Callable[[], object], ours: Callable[[], object], clean: Callable[[], object] = lambda: None
) -> tuple[Stats, Stats]:
    """Both, one after the other, so that what else the machine does meets both; `clean` is not measured."""
    seconds: dict[str, list[float]] = {"peer": [], "ours": []}
    for number in range(2 * REPEAT):
        name, work = ("peer", peer) if number % 4 in (0, 3) else ("ours", ours)
        seconds[name].append(measure(work, 1).median)
        clean()
    return summarise(seconds["peer"]), summarise(seconds["ours"])


def row(what: str, peer: Stats, ours: Stats) -> Row:
    speed = f"{SIZE / peer.median / 1e6:.0f} MB/s, {peer}", f"{SIZE / ours.median / 1e6:.0f} MB/s, {ours}"
    return Row(what, *speed, ratio(ours.median, peer.median), ">= 0.90x", ours.median <= peer.median / 0.9)


def memory_row(what: str, use: Callable[[Path], object], trial: Path, whole: Path) -> Row:
    small, large = (peak_rss(partial(use, path), over_start=True) / MB for path in (trial, whole))
    sizes = f"{TRIAL // MB} MiB: {small:.0f} MiB; {SIZE // MB} MiB: {large:.0f} MiB"
    flat = large <= 1.2 * small + 16
    return Row(f"{what}: memory over the start", "-", sizes, "-", "constant", flat)


def hashing(path: Path) -> Stats:
    with path.open("rb") as file:
        return measure(lambda: (file.seek(0), hashlib.file_digest(file, "sha256")), REPEAT)


def files(folder: Path) -> tuple[Path, Path]:
    for name, size in (("trial", TRIAL), ("whole", SIZE)):
        with (folder / name).open("wb") as file:
            for _ in range(size // MB):
                file.write(os.urandom(MB))
    return folder / "trial", folder / "whole"


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="fusechat-bench-s3-"))
    try:
        with LocalS3(folder / "s3") as s3:
            os.environ.update(s3.environment())
            compare(Store(s3.uri), *files(folder))
    finally:
        shutil.rmtree(folder)


def compare(store: Store, trial: Path, whole: Path) -> None:
    entries: dict[Path, FileEntry] = {}

    def up(path: Path) -> None:
        entries[path] = store.upload(ADDRESS, "ours", path.name, path)

    def down(path: Path) -> None:
        store.download(entries[path], path.with_suffix(".ours"))
        path.with_suffix(".ours").unlink()

    def empty() -> None:
        """Give the disk its room back: SeaweedFS does so at once only for a whole bucket."""
        store.client.delete_bucket(Bucket="fuse")
        store.client.create_bucket(Bucket="fuse")

    memory = [memory_row("publish", up, trial, whole)]
    empty()
    up_name, peer_up = best("up", trial)
    empty()
    up_stats = turns(lambda: peer_up(whole), lambda: up(whole), empty)
    for path in (trial, whole):
        peer_up(path)
        up(path)
    down_name, peer_down = best("down", trial)
    down_stats = turns(lambda: peer_down(whole), lambda: down(whole))
    memory.append(memory_row("fetch", down, trial, whole))
    gigabytes = f"{SIZE / 1e9:.1f} GB"
    publish(
        "s3",
        [row(f"publish {gigabytes}", *up_stats), row(f"fetch {gigabytes}", *down_stats), *memory],
        [
            f"boto3's best of {2 * len(TUNED)} settings: up {up_name}; down {down_name}.",
            f"The peer and ours take turns, {REPEAT} times.",
            "Ours hashes every byte with sha256 on the way, both ways; boto3 does not.",
            f"Hashing alone takes {hashing(whole)} of one core here: what a verified fetch adds "
            "at least where the server and the client fill all cores.",
            f"Load average at the end: {os.getloadavg()[0]:.1f} (this run itself counts for 2 to 3).",
            "The server (SeaweedFS, which `fusechat run` starts) and the client share the machine's cores.",
        ],
    )


if __name__ == "__main__":
    main()
