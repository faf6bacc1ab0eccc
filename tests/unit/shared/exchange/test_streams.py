"""For how long the other side of a stream is waited for."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from protocol.blobs import MAX_BLOB_BYTES
from shared.exchange.rates import SLOWEST_FLOW, STALL_SECONDS, patience_seconds
from shared.exchange.streams import StreamTooSlow, _while_it_moves, acknowledged

SECONDS = 0.05
LUMP = 128 * 1024
"""More than the system hands over at a time, which it frees as a whole."""


@pytest.fixture
async def wire() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket]]:
    """A stream, and the socket at its other end."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    with theirs:
        yield reader, writer, theirs
        writer.transport.abort()


async def test_who_takes_bytes_in_lumps_is_waited_for_beyond_the_time(
    wire: tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket],
) -> None:
    """A slow link: there is no room for long, but what was written leaves."""
    _, writer, theirs = wire
    writer.write(bytes(16 * LUMP))
    turns = 0

    async def wait() -> None:
        nonlocal turns
        turns += 1
        if turns < 4:
            theirs.recv(LUMP)
            await asyncio.Event().wait()

    await _while_it_moves(writer, SECONDS, wait, "room")
    assert turns == 4


async def test_who_takes_bytes_one_by_one_is_not(
    wire: tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket],
) -> None:
    _, writer, theirs = wire
    writer.write(bytes(16 * LUMP))
    turns = 0

    async def wait() -> None:
        nonlocal turns
        turns += 1
        theirs.recv(1)
        await asyncio.Event().wait()

    with pytest.raises(StreamTooSlow, match="room"):
        await _while_it_moves(writer, SECONDS, wait, "room")
    assert turns == 1


async def test_a_word_about_what_was_read_may_come_as_long_as_the_slowest_link_needs(
    wire: tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket],
) -> None:
    reader, writer, theirs = wire
    theirs.send(b"k")
    await acknowledged(reader, writer, MAX_BLOB_BYTES)
    assert patience_seconds(0) == STALL_SECONDS
    assert patience_seconds(1_000_000) == STALL_SECONDS + 1_000_000 / SLOWEST_FLOW
