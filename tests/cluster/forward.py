"""TCP between this machine and a cluster in a network namespace of its own, both ways. Run by node.py.

Usage: forward.py NETNS IN|OUT LISTEN_HOST:PORT=CONNECT_HOST:PORT ...

    IN  198.18.0.1:8333=127.0.0.1:4711   what Pods reach at the left address is this machine's right one
    OUT 127.0.0.1:0=198.18.0.1:6443      what this machine reaches on the left is the cluster's right one

Prints one line of JSON, the ports it listens on in the order asked, and works until it is ended. Root; Linux.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import sys
from contextlib import closing, suppress

CLONE_NEWNET = 0x40000000
BLOCK = 1 << 18


class Namespaces:
    """The two namespaces: a socket belongs for good to the one that the process is in when it is made."""

    def __init__(self, name: str) -> None:
        self._files = {"OUT": os.open("/proc/self/ns/net", os.O_RDONLY)}
        self._files["IN"] = os.open(f"/run/netns/{name}", os.O_RDONLY)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def socket(self, where: str) -> socket.socket:
        """A TCP socket of this machine (OUT) or of the cluster (IN)."""
        self._enter(where)
        try:
            return socket.socket()
        finally:
            self._enter("OUT")

    def _enter(self, where: str) -> None:
        if self._libc.setns(self._files[where], CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {where}: {os.strerror(ctypes.get_errno())}")


async def forward(spaces: Namespaces, where: str, told: str) -> int:
    """Listen on the left side of `told`; every connection goes on to the right side. The port."""
    left, right = (address(part) for part in told.split("="))
    there = "OUT" if where == "IN" else "IN"

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError):
            made = spaces.socket(there)
            made.setblocking(False)
            await asyncio.get_running_loop().sock_connect(made, right)
            peer_reader, peer_writer = await asyncio.open_connection(sock=made)
            with closing(peer_writer):
                await asyncio.gather(copy(reader, peer_writer), copy(peer_reader, writer))

    listening = spaces.socket(where)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(left)
    await asyncio.start_server(one, sock=listening, limit=BLOCK)
    return int(listening.getsockname()[1])


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All of one direction, then its end."""
    with suppress(OSError):
        while data := await reader.read(BLOCK):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.write_eof()


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def main(netns: str, *pairs: str) -> None:
    spaces = Namespaces(netns)
    asked = zip(pairs[::2], pairs[1::2], strict=True)
    print(json.dumps([await forward(spaces, where, told) for where, told in asked]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
