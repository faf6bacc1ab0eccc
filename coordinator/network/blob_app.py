"""The network role's HTTP side: blobs for those who cannot use libp2p, behind signed URLs.

    GET  /blobs/{digest}/pieces          the piece list                        purpose get
    GET  /blobs/{digest}                 the bytes; ranges are honoured        purpose get
    PUT  /blobs/{digest}/pieces          begin or resume an upload             purpose put
    GET  /blobs/{digest}/missing         what is still missing of it           purpose put
    PUT  /blobs/{digest}/pieces/{index}  one piece; the last completes it      purpose put

A blob that is not there and one that the peer may not read are refused alike. The app knows the
store it was given and nothing of sealed blobs, which lie elsewhere.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any
from weakref import WeakValueDictionary

from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.api.limits import TooFast, meter
from coordinator.network.refusals import BlobRefused, install_refusals
from coordinator.urls import Purpose, SignedQuery, UrlRefused, check_url
from protocol.blobs import MAX_PIECES, BlobRef, PieceList
from protocol.digests import PIECE_BYTES
from protocol.errors import ErrorCode
from protocol.ids import Digest
from protocol.messages import MissingPieces
from shared.blobs import BlobMissing, BlobStore, PartialBlob
from shared.exchange.rates import Bucket, Flow, Rates

MAX_LIST_BYTES = 70 * MAX_PIECES + 1024
MAX_PIECES_AT_ONCE = 16
MAX_PIECES_OF_A_PEER = 2
"""Pieces in memory at once, of all clients and of one; the others wait for their turn."""


GET_SECONDS = 0.02
BURST_GETS = 500
"""A worker reads so often at an even pace, and so often at once: a piece each time are 200 MB/s.
What counts is the worker for whom the URL was signed: behind one address live many."""


def create_blob_app(  # noqa: PLR0913 - what the network role knows and this app does not
    *,
    store: BlobStore,
    secret: bytes,
    may_read: Callable[[str, str], bool],
    may_upload: Callable[[str], BlobRef | None],
    on_complete: Callable[[BlobRef, str], None],
    now: Callable[[], float],
    rates: Rates | None = None,
) -> FastAPI:
    """The app over `store`; `secret` is what `coordinator.urls.sign_url` signs with.

    `may_read` takes a digest and a peer id. `may_upload` answers with the reference of a blob that
    is wanted now, None if it is not. `on_complete` is told of the blob and the peer when an upload
    is complete, and again when its client repeats itself. `rates` limit what is sent and received.
    """
    rates = rates or Rates()
    app = FastAPI(openapi_url=None)
    app.add_middleware(_Limited, up=rates.up)
    reader = _metered(_allowed("get", secret, now), now)
    _add_reading(app, store, may_read, Depends(reader))
    uploads = _Uploads(store, may_upload, on_complete)
    _add_uploading(app, uploads, Depends(_allowed("put", secret, now)), rates.down)
    install_refusals(app)
    return app


def _allowed(
    purpose: Purpose, secret: bytes, now: Callable[[], float]
) -> Callable[[Digest, Request], Awaitable[str]]:
    async def check(digest: Digest, request: Request) -> str:
        """The peer that the URL was made for."""
        query = SignedQuery(*(request.query_params.get(name, "") for name in SignedQuery._fields))
        try:
            check_url(digest, query, purpose=purpose, now=now(), secret=secret)
        except UrlRefused as refused:
            raise BlobRefused(ErrorCode.FORBIDDEN, refused.reason) from refused
        return query.peer

    return check


def _metered(
    allowed: Callable[[Digest, Request], Awaitable[str]], now: Callable[[], float]
) -> Callable[[Digest, Request], Awaitable[str]]:
    allowed_at: dict[str, float] = {}

    async def check(digest: Digest, request: Request) -> str:
        """The peer that the URL was made for, unless it asks too often."""
        peer, at = await allowed(digest, request), now()
        before = allowed_at.get(peer, 0.0)
        after = meter(before, now=at, pace_seconds=GET_SECONDS, burst=BURST_GETS)
        if isinstance(after, TooFast):
            seconds = after.retry_after_seconds
            words = f"more than {1 / GET_SECONDS:.0f} reads a second; again in {seconds:.2f} s"
            raise BlobRefused(ErrorCode.RATE_LIMITED, words, retry_after_seconds=seconds)
        allowed_at.pop(peer, None)
        while allowed_at and next(iter(allowed_at.values())) <= at:
            del allowed_at[next(iter(allowed_at))]
        allowed_at[peer] = after
        return peer

    return check


def _add_reading(
    app: FastAPI, store: BlobStore, may_read: Callable[[str, str], bool], reader: Any
) -> None:
    @app.get("/blobs/{digest}/pieces", response_model=None)
    def pieces(digest: Digest, peer: Annotated[str, reader]) -> Response:
        _require(may_read(digest, peer), digest)
        return Response(store.pieces(digest).model_dump_json(), media_type="application/json")

    @app.get("/blobs/{digest}", response_model=None)
    def blob(digest: Digest, peer: Annotated[str, reader]) -> Response:
        _require(may_read(digest, peer), digest)
        return FileResponse(store.path(digest), media_type="application/octet-stream")


def _add_uploading(app: FastAPI, uploads: "_Uploads", uploader: Any, down: Bucket) -> None:
    turns = _Turns()

    @app.put("/blobs/{digest}/pieces")
    async def begin(
        digest: Digest, request: Request, peer: Annotated[str, uploader]
    ) -> MissingPieces:
        async with turns.of(peer):
            body = await _body(request, MAX_LIST_BYTES, down)
        return await run_in_threadpool(uploads.begin, digest, body, peer)

    @app.get("/blobs/{digest}/missing", dependencies=[uploader])
    def missing(digest: Digest) -> MissingPieces:
        return MissingPieces(missing=uploads.arriving(digest).missing())

    @app.put("/blobs/{digest}/pieces/{index}")
    async def piece(
        digest: Digest, index: int, request: Request, peer: Annotated[str, uploader]
    ) -> MissingPieces:
        partial = await run_in_threadpool(uploads.arriving, digest)
        async with turns.of(peer):
            data = await _body(request, PIECE_BYTES, down)
            await run_in_threadpool(partial.write_piece, index, data)
        return await run_in_threadpool(uploads.complete, partial, peer)


class _Turns:
    """Who may send a body now."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(MAX_PIECES_AT_ONCE)
        self._peers: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def of(self, peer: str) -> AsyncIterator[None]:
        own = self._peers.setdefault(peer, asyncio.Semaphore(MAX_PIECES_OF_A_PEER))
        async with own, self._all:
            yield


class _Limited:
    """Middleware that sends bodies no faster than `up` lets them flow."""

    def __init__(self, app: ASGIApp, up: Bucket) -> None:
        self._app, self._up = app, up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def flowing(message: Message) -> None:
            await self._up.take(len(message.get("body", b"")))
            await send(message)

        await self._app(scope, receive, flowing)


class _Uploads:
    """What may be uploaded now, and what happens when it is complete. Runs in worker threads."""

    def __init__(
        self,
        store: BlobStore,
        may_upload: Callable[[str], BlobRef | None],
        on_complete: Callable[[BlobRef, str], None],
    ) -> None:
        self._store = store
        self._may_upload = may_upload
        self._on_complete = on_complete

    def begin(self, digest: str, body: bytearray, peer: str) -> MissingPieces:
        ref = self._wanted(digest)
        try:
            pieces = PieceList.model_validate_json(body)
        except ValidationError as error:
            raise BlobRefused(ErrorCode.BAD_REQUEST, f"piece list: {error}"[:2000]) from error
        return self.complete(self._store.partial(ref, pieces), peer)

    def arriving(self, digest: str) -> PartialBlob:
        ref = self._wanted(digest)
        partial = self._store.arriving(digest)
        if partial is None and self._store.has(digest):
            partial = self._store.partial(ref, self._store.pieces(digest))
        if partial is None:
            raise BlobRefused(ErrorCode.WRONG_STATE, f"blob {digest}: PUT its piece list first")
        return partial

    def complete(self, partial: PartialBlob, peer: str) -> MissingPieces:
        missing = partial.missing()
        if not missing:
            self._on_complete(partial.commit(), peer)
        return MissingPieces(missing=missing)

    def _wanted(self, digest: str) -> BlobRef:
        ref = self._may_upload(digest)
        if ref is None:
            raise BlobRefused(ErrorCode.FORBIDDEN, f"blob {digest}: not wanted now")
        return ref


def _require(permitted: bool, digest: str) -> None:
    if not permitted:
        raise BlobMissing(digest)


async def _body(request: Request, max_bytes: int, down: Bucket) -> bytearray:
    """The whole body, or a refusal as soon as it is known to be too long, or stalls."""
    too_large = BlobRefused(
        ErrorCode.BODY_TOO_LARGE, f"body: more than {max_bytes} bytes, expected at most that"
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    loop = asyncio.get_running_loop()
    body, flow, chunks = bytearray(), Flow(loop.time()), request.stream()
    try:
        while True:
            async with asyncio.timeout(flow.seconds_left(loop.time())):
                chunk = await anext(chunks)
            body += chunk
            if len(body) > max_bytes:
                raise too_large
            if flow.note(len(chunk), loop.time()):
                raise TimeoutError
            flow.excuse(await down.take(len(chunk)))
    except StopAsyncIteration:
        return body
    except TimeoutError as error:
        raise BlobRefused(
            ErrorCode.BAD_REQUEST, f"body: stalled after {len(body)} bytes"
        ) from error
    except ClientDisconnect as error:
        raise BlobRefused(ErrorCode.BAD_REQUEST, "body: the client went away") from error
