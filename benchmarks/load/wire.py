"""A frugal HTTP/1.1 client: requests are bytes made in advance, connections are kept alive.

One request at a time on each connection; a request that finds none free opens another, as a worker
of its own would. Only what the coordinator sends is understood: a status, Content-Length, a body.
"""

import asyncio
from typing import Literal, cast

from typing_extensions import override

MAX_IDLE_SECONDS = 2.0
"""A connection that rested longer is not used again: the server may be closing it right now."""

TIMEOUT_SECONDS = 30.0


class WireError(Exception):
    """No answer came, or none that HTTP/1.1 with a Content-Length describes."""


def request_bytes(
    method: Literal["GET", "POST"],
    path: str,
    body: bytes = b"",
    *,
    token: str | None = None,
) -> bytes:
    """One whole request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: coordinator", "Accept: */*"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.idle_since = 0.0
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[tuple[int, bytes]] | None = None
        self._buffer = b""
        self._body_at = -1
        self._end_at = -1

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    @override
    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._body_at < 0 and not self._read_head():
            return
        if len(self._buffer) < self._end_at:
            return
        status, body = int(self._buffer[9:12]), self._buffer[self._body_at : self._end_at]
        self._buffer, self._body_at = b"", -1
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result((status, body))

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._fail(f"the connection was closed: {exc}")

    def send(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        self._waiter = asyncio.get_running_loop().create_future()
        if self._transport is not None:
            self._transport.write(request)
        return self._waiter

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.close()

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        if at < 0:
            self._fail(f"an answer without Content-Length: {head[:80]!r}")
            self.close()
            return False
        self._body_at = end + 4
        self._end_at = self._body_at + int(head[at + 15 :].split(b"\r\n", 1)[0])
        if b"connection: close" in head:
            self.closed = True
        return True

    def _fail(self, why: str) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(WireError(why))


class Wire:
    """Connections to one server. `reconnect`: each request opens its own, as idle workers do."""

    def __init__(self, host: str, port: int, *, reconnect: bool = False) -> None:
        self._host = host
        self._port = port
        self._reconnect = reconnect
        self._free: list[_Connection] = []
        self.num_opened = 0

    async def call(self, request: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer. Raises WireError."""
        connection = self._take()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                if connection is None:
                    connection = await self._open()
                answer = await connection.send(request)
        except (TimeoutError, OSError) as error:
            if connection is not None:
                connection.close()
            raise WireError(f"{type(error).__name__} {error}".rstrip()) from error
        self._give_back(connection)
        return answer

    def close(self) -> None:
        """Closes every connection that rests."""
        for connection in self._free:
            connection.close()
        self._free.clear()

    def _take(self) -> _Connection | None:
        now = asyncio.get_running_loop().time()
        while self._free:
            connection = self._free.pop()
            if not connection.closed and now - connection.idle_since < MAX_IDLE_SECONDS:
                return connection
            connection.close()
        return None

    async def _open(self) -> _Connection:
        self.num_opened += 1
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        return connection

    def _give_back(self, connection: _Connection) -> None:
        if self._reconnect or connection.closed:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        self._free.append(connection)
