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
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from coordinator.urls import Purpose, SignedQuery, UrlRefused, check_url
from protocol.blobs import MAX_PIECES, BlobRef, PieceList
from protocol.digests import PIECE_BYTES
from protocol.errors import HTTP_STATUS, ErrorBody, ErrorCode
from protocol.ids import Digest
from protocol.messages import MissingPieces
from shared.blobstore import BadBlob, BlobMissing, BlobStore, PartialBlob

MAX_LIST_BYTES = 70 * MAX_PIECES + 1024
BODY_SECONDS = 120.0
"""How long a client may take to send one piece."""

MAX_PIECES_AT_ONCE = 8
"""Pieces in memory at once, of all clients; the others wait for their turn."""


class _Refused(Exception):
    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def create_blob_app(
    *,
    store: BlobStore,
    secret: bytes,
    may_read: Callable[[str, str], bool],
    may_upload: Callable[[str], BlobRef | None],
    on_complete: Callable[[BlobRef], None],
    now: Callable[[], float],
) -> FastAPI:
    """The app over `store`; `secret` is what `coordinator.urls.sign_url` signs with.

    `may_read` takes a digest and a peer id. `may_upload` answers with the reference of a blob that
    is wanted now, None if it is not. `on_complete` is called when an upload is complete, and again
    when its client repeats itself.
    """
    app = FastAPI(openapi_url=None)
    _add_reading(app, store, may_read, Depends(_allowed("get", secret, now)))
    uploads = _Uploads(store, may_upload, on_complete)
    _add_uploading(app, uploads, Depends(_allowed("put", secret, now)))
    _add_refusals(app)
    return app


def _allowed(
    purpose: Purpose, secret: bytes, now: Callable[[], float]
) -> Callable[[Digest, Request], str]:
    def check(digest: Digest, request: Request) -> str:
        """The peer that the URL was made for."""
        query = SignedQuery(*(request.query_params.get(name, "") for name in SignedQuery._fields))
        try:
            check_url(digest, query, purpose=purpose, now=now(), secret=secret)
        except UrlRefused as refused:
            raise _Refused(ErrorCode.FORBIDDEN, refused.reason) from refused
        return query.peer

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


def _add_uploading(app: FastAPI, uploads: "_Uploads", uploader: Any) -> None:
    turns = asyncio.Semaphore(MAX_PIECES_AT_ONCE)

    @app.put("/blobs/{digest}/pieces", dependencies=[uploader])
    async def begin(digest: Digest, request: Request) -> MissingPieces:
        body = await _body(request, MAX_LIST_BYTES)
        return await run_in_threadpool(uploads.begin, digest, body)

    @app.get("/blobs/{digest}/missing", dependencies=[uploader])
    def missing(digest: Digest) -> MissingPieces:
        return MissingPieces(missing=uploads.arriving(digest).missing())

    @app.put("/blobs/{digest}/pieces/{index}", dependencies=[uploader])
    async def piece(digest: Digest, index: int, request: Request) -> MissingPieces:
        partial = await run_in_threadpool(uploads.arriving, digest)
        async with turns:
            data = await _body(request, PIECE_BYTES)
            await run_in_threadpool(partial.write_piece, index, data)
        return await run_in_threadpool(uploads.complete, partial)


class _Uploads:
    """What may be uploaded now, and what happens when it is complete. Runs in worker threads."""

    def __init__(
        self,
        store: BlobStore,
        may_upload: Callable[[str], BlobRef | None],
        on_complete: Callable[[BlobRef], None],
    ) -> None:
        self._store = store
        self._may_upload = may_upload
        self._on_complete = on_complete

    def begin(self, digest: str, body: bytes) -> MissingPieces:
        ref = self._wanted(digest)
        try:
            pieces = PieceList.model_validate_json(body)
        except ValidationError as error:
            raise _Refused(ErrorCode.BAD_REQUEST, f"piece list: {error}"[:2000]) from error
        return self.complete(self._store.partial(ref, pieces))

    def arriving(self, digest: str) -> PartialBlob:
        ref = self._wanted(digest)
        partial = self._store.arriving(digest)
        if partial is None and self._store.has(digest):
            partial = self._store.partial(ref, self._store.pieces(digest))
        if partial is None:
            raise _Refused(ErrorCode.WRONG_STATE, f"blob {digest}: PUT its piece list first")
        return partial

    def complete(self, partial: PartialBlob) -> MissingPieces:
        missing = partial.missing()
        if not missing:
            self._on_complete(partial.commit())
        return MissingPieces(missing=missing)

    def _wanted(self, digest: str) -> BlobRef:
        ref = self._may_upload(digest)
        if ref is None:
            raise _Refused(ErrorCode.FORBIDDEN, f"blob {digest}: not wanted now")
        return ref


def _require(permitted: bool, digest: str) -> None:
    if not permitted:
        raise BlobMissing(digest)


async def _body(request: Request, max_bytes: int) -> bytes:
    """The whole body, or a refusal as soon as it is known to be too long or too slow."""
    too_large = _Refused(
        ErrorCode.BODY_TOO_LARGE, f"body: more than {max_bytes} bytes, expected at most that"
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError as error:
        raise _Refused(
            ErrorCode.BAD_REQUEST, f"body: not complete after {BODY_SECONDS} seconds"
        ) from error
    except ClientDisconnect as error:
        raise _Refused(ErrorCode.BAD_REQUEST, "body: the client went away") from error
    return bytes(body)


def _answer(code: ErrorCode, message: str) -> JSONResponse:
    body = ErrorBody(code=code, message=message[:2000])
    return JSONResponse(body.model_dump(mode="json"), status_code=HTTP_STATUS[code])


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(_Refused)
    def refused(_: Request, error: _Refused) -> Response:
        return _answer(error.code, error.message)

    @app.exception_handler(BlobMissing)
    def blob_missing(_: Request, error: BlobMissing) -> Response:
        return _answer(ErrorCode.UNKNOWN_BLOB, f"blob {error.args[0]}: not here for you")

    @app.exception_handler(BadBlob)
    def bad_blob(_: Request, error: BadBlob) -> Response:
        return _answer(ErrorCode.BAD_REQUEST, str(error))

    @app.exception_handler(RequestValidationError)
    def bad_request(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _answer(ErrorCode.BAD_REQUEST, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(HTTPException)
    def unrouted(_: Request, error: HTTPException) -> Response:
        return _answer(ErrorCode.NOT_FOUND, str(error.detail))

    @app.exception_handler(Exception)
    def failed(_: Request, __: Exception) -> Response:
        return _answer(ErrorCode.INTERNAL, "the network role failed; its log says why")
