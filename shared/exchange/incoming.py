"""Reads a stream straight into the caller's memory.

asyncio's StreamReader copies every byte twice and wakes its reader for every few kilobytes: more
than half of what receiving costs. Here the system writes where the bytes are to stay, and the
reader is woken when its memory is full.
"""

import asyncio
from typing import cast

from typing_extensions import override

PATIENCE_SECONDS = 0.25
"""For how long bytes that came may wait for more."""


class Incoming(asyncio.BufferedProtocol):
    """What comes on a stream from now on; its StreamWriter goes on working, its StreamReader ends.

    One reader at a time. While nobody reads, nothing is taken from the system's buffers.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._transport = cast(asyncio.Transport, writer.transport)
        self._before = cast(asyncio.Protocol, self._transport.get_protocol())
        # A reader that nobody holds takes its stream with it.
        self._reader = reader
        self._early = b""
        self._view = memoryview(b"")
        self._num_bytes = 0
        self._wanted: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended = self._transport.is_closing()

    @classmethod
    async def take_over(
        cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> "Incoming":
        """Go on behind what was read from `reader`. Raises OSError if the stream broke."""
        incoming = cls(reader, writer)
        incoming._pause()
        if not incoming._ended:
            incoming._transport.set_protocol(incoming)
        # Once it has an end, the reader hands out what it holds without waiting.
        reader.feed_eof()
        incoming._early = await reader.read()
        incoming._pause()
        return incoming

    async def read_into(self, view: memoryview) -> int:
        """Fill `view`, which is not empty, from its start; how many bytes came, 0 at the end.

        Fewer than there is room for if no more come for PATIENCE_SECONDS after the first, or if the
        stream ends behind them. What came before a cancellation is lost.
        """
        self._num_bytes = min(len(view), len(self._early))
        view[: self._num_bytes] = self._early[: self._num_bytes]
        self._early = self._early[self._num_bytes :]
        if self._num_bytes == len(view) or self._ended:
            return self._num_bytes
        loop = asyncio.get_running_loop()
        self._view, self._wanted = view, loop.create_future()
        if self._num_bytes:
            self._timer = loop.call_later(PATIENCE_SECONDS, self._wake)
        try:
            self._transport.resume_reading()
            await self._wanted
        finally:
            self._pause()
            self._view = memoryview(b"")
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        return self._num_bytes

    @override
    def get_buffer(self, sizehint: int) -> memoryview:
        """Called by the transport."""
        return self._view[self._num_bytes :]

    @override
    def buffer_updated(self, nbytes: int) -> None:
        """Called by the transport."""
        self._num_bytes += nbytes
        if self._num_bytes == len(self._view):
            self._pause()
            self._wake()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._wake)

    @override
    def eof_received(self) -> bool:
        """Called by the transport. True: we may still write."""
        self._ended = True
        self._wake()
        return True

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the transport."""
        self._ended = True
        self._wake()
        self._before.connection_lost(exc)

    @override
    def pause_writing(self) -> None:
        """Called by the transport."""
        self._before.pause_writing()

    @override
    def resume_writing(self) -> None:
        """Called by the transport."""
        self._before.resume_writing()

    def _pause(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def _wake(self) -> None:
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)
