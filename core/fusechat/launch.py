"""A step as the command line of one stage process, and back: a pod and a local process get the same list.

Pure. Called by the local runner and the operator (to write it) and by the stages' entry (to read it).
Knows no store and starts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusechat.address import PATTERN, canonical


@dataclass(frozen=True)
class Launch:
    """What one stage process is told. `shard` is (index, count); `runtime` is what changes no byte."""

    stage: str
    version: int
    address: str
    store: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    profile: str = "Corrected"
    shard: tuple[int, int] = (0, 1)
    runtime: Mapping[str, Any] = field(default_factory=dict)


def argv(launch: Launch) -> list[str]:
    """The arguments of `python -m fusechat_stages.entry`."""
    index, count = launch.shard
    return [
        launch.stage,
        f"--version={launch.version}",
        f"--address={launch.address}",
        f"--store={launch.store}",
        f"--profile={launch.profile}",
        f"--shard={index}/{count}",
        f"--params={canonical(launch.params)}",
        *(f"--input={role}={address}" for role, address in sorted(launch.inputs.items())),
        f"--runtime={json.dumps(dict(launch.runtime), sort_keys=True)}",
    ]


def parse(arguments: Sequence[str]) -> Launch:
    """The inverse of `argv`. Raises ValueError naming the argument that is missing, unknown or malformed."""
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(
            f"the first argument must be a stage, got {arguments[0] if arguments else 'nothing'!r}"
        )
    values: dict[str, str] = {}
    inputs: dict[str, str] = {}
    for argument in arguments[1:]:
        name, separator, value = argument.partition("=")
        if not separator or not name.startswith("--"):
            raise ValueError(f"an argument is --name=value, got {argument!r}")
        if name == "--input":
            role, _, address = value.partition("=")
            inputs[role] = _address(address, f"--input={role}")
        elif name[2:] in _READERS:
            values[name[2:]] = value
        else:
            raise ValueError(
                f"unknown argument {name}, expected one of {', '.join('--' + n for n in _READERS)}"
            )
    read = {name: _READERS[name](value) for name, value in values.items()}
    if missing := [name for name in ("version", "address", "store", "params") if name not in read]:
        raise ValueError(f"missing argument --{missing[0]}")
    return Launch(stage=arguments[0], inputs=inputs, **read)


def _address(value: str, where: str = "--address") -> str:
    if not PATTERN.match(value):
        raise ValueError(f"{where}: expected <stage>/<64 hex digits>, got {value!r}")
    return value


def _mapping(value: str) -> dict[str, Any]:
    try:
        read = json.loads(value)
    except ValueError as error:
        raise ValueError(f"expected a JSON object, got {value[:80]!r} ({error})") from error
    if not isinstance(read, dict):
        raise ValueError(f"expected a JSON object, got {value[:80]!r}")
    return read


def _shard(value: str) -> tuple[int, int]:
    index, _, count = value.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"--shard: expected INDEX/COUNT with INDEX < COUNT, got {value!r}")
    return int(index), int(count)


_READERS: Mapping[str, Any] = {
    "version": int,
    "address": _address,
    "store": str,
    "profile": str,
    "shard": _shard,
    "params": _mapping,
    "runtime": _mapping,
}
