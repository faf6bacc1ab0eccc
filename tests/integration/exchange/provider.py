"""A peer in a process of its own, with a libp2p daemon of its own: honest, or not at all.

It does what it is told over a pipe, and counts in shared memory what it sends, so that the count is
there when the process was killed.
"""

import asyncio
import contextlib
import socket
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import uvicorn
from fastapi.responses import RedirectResponse

from coordinator.network.blob_app import create_blob_app
from coordinator.urls import Purpose, sign_url
from protocol.blobs import BlobRef
from protocol.certificates import SignedCertificate
from shared.blobs import BlobStore
from shared.clock import now
from shared.exchange.rates import Bucket, Rates
from shared.exchange.serving import BlobServer
from shared.exchange.streams import BlobRequest, Status, read_request
from shared.identity import Identity
from shared.swarm.peer import Peer

CHUNK_BYTES = 64 * 1024

SECRET = b"s" * 32
"""Signs the URLs of a provider's HTTP side."""


@dataclass
class Lie:
    """What a provider does wrong. It begins to do so at once when it is told."""

    pieces: str = ""
    """What it gives instead of the piece list: `endless` or `huge`, or that of this blob."""

    cut: int | None = None
    """The stream ends after so many bytes of each range; negative: before its end."""

    flip: int | None = None
    """The byte at this place of the blob is another one."""

    offer: int = 0
    """How many bytes more it offers than were asked for."""

    digest: str = ""
    """It sends the bytes of this blob, whatever was asked for."""

    after: int | None = None
    """So many bytes of each range are sent; then nothing more happens on the stream."""

    drip: bool = False
    """A byte now and then."""


@dataclass
class Plan:
    """What a provider is started with. `wanted`: what may be uploaded to it, by whomever."""

    folder: Path
    key: Path
    certificate: str
    coordinator: str
    run: str
    bootstrap: tuple[str, ...] = ()
    rate: float | None = None
    wanted: dict[str, int] = field(default_factory=dict)
    http: bool = False
    constants: dict[str, float] = field(default_factory=dict)
    """Constants of modules with which it runs, by their full names."""


@dataclass
class Flows:
    """Bytes that went out on streams, and bytes of blobs that came in."""

    sent: "Synchronized[int]"
    received: "Synchronized[int]"


def add(count: "Synchronized[int]", num_bytes: int) -> None:
    with count.get_lock():
        count.value += num_bytes


class Counting(Bucket):
    """No limit; counts what flows."""

    def __init__(self, count: "Synchronized[int]") -> None:
        super().__init__()
        self._count = count

    async def take(self, num_bytes: int) -> float:
        add(self._count, num_bytes)
        return await super().take(num_bytes)


class Provider:
    """What runs in the process."""

    def __init__(self, plan: Plan, pipe: Connection, flows: Flows) -> None:
        self.plan, self.pipe, self.flows = plan, pipe, flows
        self.store = BlobStore(plan.folder)
        self.lie: Lie | None = None
        self.url = ""
        self.rates = Rates(up=Bucket(plan.rate), down=Counting(flows.received))
        self.server = BlobServer(
            self.store,
            lambda *_: True,
            may_push=lambda digest, _: self.wanted(digest),
            on_pushed=lambda ref, _: self.say("push", ref.digest),
            rates=self.rates,
        )
        self.peer: Peer | None = None
        self.commands: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def wanted(self, digest: str) -> BlobRef | None:
        size = self.plan.wanted.get(digest)
        return None if size is None else BlobRef(digest=digest, size=size)

    def say(self, event: str, value: object) -> None:
        self.pipe.send((event, value))

    async def serve(
        self, info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answers one stream, by the truth or not."""
        counted: Any = CountedWriter(writer, self.flows.sent)
        if self.lie is None:
            await self.server.serve(info, reader, counted)
            return
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._misbehave(self.lie, await read_request(reader), reader, counted)
        writer.close()

    async def _misbehave(
        self, lie: Lie, request: BlobRequest, reader: asyncio.StreamReader, writer: Any
    ) -> None:
        if request.op == "pieces":
            await self._send_pieces(lie, request.digest, writer)
        else:
            await self._send_bytes(lie, lie.digest or request.digest, request, writer)
        await reader.read(1)

    async def _send_pieces(self, lie: Lie, digest: str, writer: Any) -> None:
        if lie.pieces in ("endless", "huge"):
            offered = 2**63 if lie.pieces == "huge" else 200
            writer.write(bytes([Status.OK]) + offered.to_bytes(8, "big"))
            for _ in range(1000):
                writer.write(b"[" * CHUNK_BYTES)
                await writer.drain()
            return
        body = self.store.pieces(lie.pieces or digest).model_dump_json().encode()
        writer.write(bytes([Status.OK]) + len(body).to_bytes(8, "big") + body)
        await writer.drain()

    async def _send_bytes(self, lie: Lie, digest: str, request: BlobRequest, writer: Any) -> None:
        length = request.length
        writer.write(bytes([Status.OK]) + (length + lie.offer).to_bytes(8, "big"))
        with self.store.path(digest).open("rb") as file:
            file.seek(request.offset)
            body = bytearray(file.read(length))
        body += bytes(length - len(body))
        if lie.flip is not None and request.offset <= lie.flip < request.offset + length:
            body[lie.flip - request.offset] ^= 1
        stop = lie.after if lie.after is not None else lie.cut
        if lie.drip:
            await self._drip(body, writer)
        # A cut before the end of a range of nothing but its end is a cut at its start.
        end = length if stop is None else max(0, length + stop if stop < 0 else min(stop, length))
        for offset in range(0, end, CHUNK_BYTES):
            writer.write(body[offset : min(end, offset + CHUNK_BYTES)])
            await writer.drain()
        if lie.cut is not None:
            writer.close()
        elif lie.after is not None:
            await asyncio.Event().wait()

    async def _drip(self, body: bytearray, writer: Any) -> None:
        for byte in body:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)

    async def live(self) -> None:
        """Until the pipe's other end says so or is gone."""
        plan = self.plan
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(loop,), daemon=True).start()
        server: Any = self
        self.peer = await Peer.start(
            identity=Identity.load(plan.key),
            certificate=SignedCertificate.model_validate_json(plan.certificate),
            coordinator=plan.coordinator,
            run=plan.run,
            listen=["/ip4/127.0.0.1/tcp/0"],
            bootstrap=plan.bootstrap,
            server=server,
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.peer.stop)
            url = await stack.enter_async_context(self._http()) if plan.http else ""
            self.say("up", (self.peer.maddrs, self.peer.daemon_pid, url))
            while (command := await self.commands.get())[0] != "stop":
                await self._obey(*command)

    async def _obey(self, command: str, value: Any) -> None:
        assert self.peer is not None
        if command == "lie":
            self.lie = value
        elif command == "want":
            self.plan.wanted[value.digest] = value.size
        elif command == "settle":
            while self.server.num_streams:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.01)
        elif command == "announce":
            await self.peer.announce_blob(value)
        self.say("done", command)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        command: tuple[str, Any] = ("", None)
        while command[0] != "stop":
            try:
                command = self.pipe.recv()
            except (EOFError, OSError):
                command = ("stop", None)
            loop.call_soon_threadsafe(self.commands.put_nowait, command)

    @contextlib.asynccontextmanager
    async def _http(self) -> Any:
        app = create_blob_app(
            store=self.store,
            secret=SECRET,
            may_read=lambda *_: True,
            may_upload=self.wanted,
            rates=self.rates,
            on_complete=lambda ref, _: self.say("http", ref.digest),
            now=now,
        )

        @app.get("/v1/blobs/{digest}")
        def api(digest: str) -> RedirectResponse:
            return RedirectResponse(signed(self.url, digest, "get"))

        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield self.url
        finally:
            server.should_exit = True
            await serving
            listener.close()


class CountedWriter:
    """A stream's writer that tells how much is written."""

    def __init__(self, writer: asyncio.StreamWriter, count: "Synchronized[int]") -> None:
        self._writer, self._count = writer, count

    def write(self, data: Any) -> None:
        add(self._count, len(data))
        self._writer.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


def signed(base: str, digest: str, purpose: Purpose) -> str:
    """A URL of a provider's HTTP side, good for a minute."""
    expires_at = int(now()) + 60
    return sign_url(
        base, digest=digest, purpose=purpose, peer="asker", expires_at=expires_at, secret=SECRET
    )


def run(plan: Plan, pipe: Connection, flows: Flows) -> None:
    """The whole life of the process."""
    asyncio.run(Provider(plan, pipe, flows).live())
