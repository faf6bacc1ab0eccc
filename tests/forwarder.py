"""Carries TCP connections from one address to another: `forwarder.py LISTEN=CONNECT ...`.

Addresses are HOST:PORT or the path of a Unix socket. It says `ready` when it listens everywhere.
In a place between two networks it is a NAT that knows only these ways: whoever is behind it can
connect out by them, and nobody can connect in. A way to nowhere, `HOST:PORT=`, is a firewall: it
drops whoever tries, without a word.
"""

import asyncio
import contextlib
import socket
import sys

CHUNK_BYTES = 1 << 16

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(address: str) -> Ends:
    if address.startswith("/"):
        return await asyncio.open_unix_connection(address)
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Everything from one side to the other; the end, too."""
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def join(near: Ends, onward: str) -> None:
    """Carry both ways; when one side breaks, the other is closed as well."""
    with contextlib.closing(near[1]):
        far = await connect(onward)
        with contextlib.closing(far[1]):
            async with asyncio.TaskGroup() as ways:
                ways.create_task(carry(near[0], far[1]))
                ways.create_task(carry(far[0], near[1]))


async def listen(address: str, onward: str) -> None:
    serving = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        serving.add(task)
        try:
            await join((reader, writer), onward)
        except* OSError:
            pass
        finally:
            serving.discard(task)

    if address.startswith("/"):
        await asyncio.start_unix_server(serve, address)
    else:
        host, _, port = address.rpartition(":")
        await asyncio.start_server(serve, host, int(port))


def swallow(address: str) -> list[socket.socket]:
    """Sockets that, while they are open, leave every attempt to connect without an answer.

    A listener that never accepts, with its queue full: Linux drops what else arrives.
    """
    host, _, port = address.rpartition(":")
    listener = socket.create_server((host, int(port)), backlog=0)
    return [listener, socket.create_connection((host, int(port)))]


async def main() -> None:
    swallowing = []
    for way in sys.argv[1:]:
        address, _, onward = way.partition("=")
        if onward:
            await listen(address, onward)
        else:
            swallowing.append(swallow(address))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


asyncio.run(main())
