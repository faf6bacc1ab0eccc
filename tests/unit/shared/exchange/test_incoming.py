"""Streams that are read straight into the reader's memory."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from shared.exchange import incoming
from shared.exchange.incoming import Incoming

DATA = random.Random(5).randbytes(3_000_000)
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[tuple[Ends, asyncio.StreamWriter]]:
    """Our two ends of a stream, and the far one's writer."""
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(writer)

    path = str(folder / "socket")
    async with await asyncio.start_unix_server(accept, path=path):
        ends = await asyncio.open_unix_connection(path)
        far = await accepted
        try:
            yield ends, far
        finally:
            far.close()
            ends[1].close()


async def read(source: Incoming, length: int) -> bytes:
    data = bytearray(length)
    view, at = memoryview(data), 0
    while at < length:
        num_bytes = await source.read_into(view[at:])
        assert num_bytes
        at += num_bytes
    return bytes(data)


async def what_was_buffered_comes_first(folder: Path) -> None:
    async with connected(folder) as ((reader, writer), far):
        far.write(DATA[:9])
        assert await reader.readexactly(4) == DATA[:4]
        far.write(DATA[9:])
        source = await Incoming.take_over(reader, writer)
        assert await read(source, len(DATA) - 4) == DATA[4:]


async def the_end_is_told_and_what_came_before_it_kept(folder: Path) -> None:
    async with connected(folder) as (ends, far):
        source = await Incoming.take_over(*ends)
        far.write(b"abc")
        far.close()
        data = bytearray(10)
        assert await source.read_into(memoryview(data)) == 3
        assert data[:3] == b"abc"
        assert await source.read_into(memoryview(data)) == 0


async def an_end_that_came_before_is_told(folder: Path) -> None:
    async with connected(folder) as ((reader, writer), far):
        far.write(b"abcdef")
        far.write_eof()
        assert await reader.readexactly(3) == b"abc"
        for _ in range(10):  # rounds of the event loop, in which the end is noticed
            await asyncio.sleep(0)
        source = await Incoming.take_over(reader, writer)
        data = bytearray(10)
        assert await source.read_into(memoryview(data)) == 3
        assert await source.read_into(memoryview(data)) == 0


async def a_broken_stream_ends_and_says_so_to_its_writer(folder: Path) -> None:
    async with connected(folder) as ((reader, writer), far):
        source = await Incoming.take_over(reader, writer)
        reading = asyncio.create_task(source.read_into(memoryview(bytearray(10))))
        await asyncio.sleep(0)
        far.transport.abort()
        async with asyncio.timeout(30):
            assert await reading == 0
            with pytest.raises(ConnectionError):  # noqa: PT012 - which write notices is chance
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.01)


async def few_bytes_do_not_wait_for_ever(folder: Path) -> None:
    async with connected(folder) as (ends, far):
        source = await Incoming.take_over(*ends)
        far.write(b"few")
        data = bytearray(1_000_000)
        async with asyncio.timeout(30):
            assert await source.read_into(memoryview(data)) == 3
        assert data[:3] == b"few"


async def a_reader_that_gave_up_may_read_on(folder: Path) -> None:
    async with connected(folder) as (ends, far):
        source = await Incoming.take_over(*ends)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await source.read_into(memoryview(bytearray(10)))
        far.write(DATA)
        assert await read(source, len(DATA)) == DATA


async def while_nobody_reads_the_sender_waits_and_we_may_write(folder: Path) -> None:
    async with connected(folder) as ((reader, writer), far):
        source = await Incoming.take_over(reader, writer)
        far.write(DATA)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(far.drain(), 0.1)
        writer.write(b"still here")
        await writer.drain()
        assert await read(source, len(DATA)) == DATA
        await asyncio.wait_for(far.drain(), 5)


PROMISES = (
    what_was_buffered_comes_first,
    the_end_is_told_and_what_came_before_it_kept,
    an_end_that_came_before_is_told,
    a_broken_stream_ends_and_says_so_to_its_writer,
    few_bytes_do_not_wait_for_ever,
    a_reader_that_gave_up_may_read_on,
    while_nobody_reads_the_sender_waits_and_we_may_write,
)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_on_both_event_loops(
    run: Callable[..., None],
    promise: Callable[[Path], Awaitable[None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(incoming, "PATIENCE_SECONDS", 0.05)
    run(promise(tmp_path))
