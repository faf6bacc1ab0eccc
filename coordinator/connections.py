"""For how long a client may keep a connection to the coordinator's HTTP servers without using it.

uvicorn closes connections that are idle between two requests, and no others: who connects and says
nothing, sends a header or a body by the byte, or never reads its answer, would hold one for ever.
No bound is set on connections of one address: many workers live behind one, and behind a TLS proxy
all of them do.
"""

from asyncio import Transport
from asyncio.events import TimerHandle

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shared.exchange.rates import STALL_BYTES, STALL_SECONDS
from shared.exchange.streams import ACKNOWLEDGE_SECONDS

HEAD_SECONDS = 2 * STALL_SECONDS
"""A request's header is complete so long after it, or the connection, began."""

MAX_HEAD_BYTES = 64 * 1024
"""Of a header that is not complete yet; beyond it the request is refused."""

BODY_SECONDS = 2 * STALL_SECONDS
"""In every such time of a body come STALL_BYTES, or all that is left: half of the pace at which an
app that reads bodies itself gives up, so that it can say so first."""

UNREAD_SECONDS = ACKNOWLEDGE_SECONDS
"""So long may an answer lie here while the client makes no room for more of it."""


class GuardedHttp(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which ends connections whose client does not do its part.

    A body that waits for us counts as paused, not as slow. A handshake of TLS has its own bound,
    the event loop's.
    """

    head_seconds = HEAD_SECONDS
    body_seconds = BODY_SECONDS
    unread_seconds = UNREAD_SECONDS

    _awaited: str = "head"
    """"head", "body", or "nothing" between two requests."""

    _num_bytes = 0
    _was_paused = False
    _reading: TimerHandle | None = None
    _writing: TimerHandle | None = None

    @override
    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Called by the transport."""
        super().connection_made(transport)
        self._await_more()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the transport."""
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        """Called by the transport."""
        if self._awaited == "nothing":
            self._awaited = "head"
        super().data_received(data)
        if self._awaited == "nothing" or self.transport.is_closing():
            return
        self._num_bytes += len(data)
        self._was_paused |= self.flow.read_paused
        if self._awaited == "head" and self._num_bytes > MAX_HEAD_BYTES:
            self.send_400_response("Header too long.")
        elif self._reading is None:
            self._await_more()

    @override
    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._stop_waiting()
        self._awaited = "body"
        super().on_headers_complete()

    @override
    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._stop_waiting()
        self._awaited = "nothing"
        super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        """Called when the app has sent all of its answer."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_reader()

    @override
    def timeout_keep_alive_handler(self) -> None:
        """Called when a connection was idle between requests for too long."""
        super().timeout_keep_alive_handler()
        self._await_reader()

    @override
    def pause_writing(self) -> None:
        """Called by the transport."""
        super().pause_writing()
        self._await_reader()

    @override
    def resume_writing(self) -> None:
        """Called by the transport."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _await_more(self) -> None:
        self._num_bytes, self._was_paused = 0, self.flow.read_paused
        if self._awaited == "head":
            self._reading = self.loop.call_later(self.head_seconds, self.transport.abort)
        else:
            self._reading = self.loop.call_later(self.body_seconds, self._check_body)

    def _stop_waiting(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _check_body(self) -> None:
        """At the end of a window: the next one begins if enough came, or if we took no more."""
        excused = self._was_paused or self.flow.read_paused or self.cycle.waiting_for_100_continue
        if excused or self._num_bytes >= STALL_BYTES:
            self._await_more()
        else:
            self.transport.abort()

    def _await_reader(self) -> None:
        if self._writing is None:
            self._writing = self.loop.call_later(self.unread_seconds, self.transport.abort)
