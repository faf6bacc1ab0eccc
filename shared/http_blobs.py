"""Fetch and upload blobs over HTTP, piece by piece: the way of those whom libp2p cannot reach.

Reading begins at the api, which answers 307 to a signed URL of the network role. That URL lives for
a minute: when it has expired, the api is asked again and the fetch goes on with the first missing
piece.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx
from pydantic import ValidationError

from protocol.blobs import MAX_PIECES, BlobRef, PieceList
from protocol.digests import PIECE_BYTES
from protocol.errors import ErrorBody, ErrorCode
from protocol.messages import MissingPieces
from protocol.values import Value
from shared.blobstore import BadBlob, BlobStore, PartialBlob, runs

TIMEOUT = httpx.Timeout(30.0)
"""Seconds to connect, and between two chunks of bytes either way."""

MAX_STALLS = 4
"""Attempts in a row that bring no new piece before a fetch is given up."""

FIRST_PAUSE_SECONDS = 0.25
"""Before the second attempt; doubled for each one that brings nothing."""

_MAX_LIST_BYTES = 70 * MAX_PIECES + 1024
_MAX_ERROR_BYTES = 16_384


Answer = TypeVar("Answer", bound=Value)


class TransferFailed(Exception):
    """A blob could not be moved over HTTP; `reason` says why. What was verified is kept."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UrlExpired(TransferFailed):
    """The network role refused the signed URL: get a new one from the api and go on."""


class UnknownBlob(TransferFailed):
    """There is no such blob, or none that we may read: to ask again is of no use."""


LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def check_same_host(api_url: str, other_url: str) -> None:
    """Raises TransferFailed unless `other_url` is on the api's host, at any port, and as secure.

    What the api names is followed there only: a member may reach hosts that the coordinator may
    not, and their answers would come back as blobs or refusals.
    """
    try:
        api, other = httpx.URL(api_url), httpx.URL(other_url)
    except httpx.InvalidURL as error:
        raise TransferFailed(f"{other_url}: named by {api_url}, is no URL: {error}") from error
    schemes = ("https",) if api.scheme == "https" else ("http", "https")
    same = other.host == api.host or {other.host, api.host} <= LOOPBACK
    if other.scheme not in schemes or not other.host or not same:
        raise TransferFailed(
            f"{other_url}: named by {api_url}, expected {' or '.join(schemes)} on its host"
        )


async def fetch_over_http(
    client: httpx.AsyncClient,
    url: str,
    ref: BlobRef,
    store: BlobStore,
    *,
    headers: dict[str, str] | None = None,
) -> None:
    """Fetch the blob `ref` into `store`, resuming what is there.

    `url` is the api's /v1/blobs/{digest}; `headers` go to the api only, and only its own host is
    asked for bytes. Raises TransferFailed. A piece that does not verify ends the fetch: the network
    role is the only source there is.
    """
    stalls, missing = 0, -1
    while not store.has(ref.digest):
        try:
            signed = await _signed_url(client, url, headers or {})
            partial = await _begin(client, signed, ref, store)
            await _fetch_missing(client, signed, partial)
            await asyncio.to_thread(partial.commit)
        except (UrlExpired, httpx.TransportError) as error:
            arriving = store.arriving(ref.digest)
            left = len(arriving.missing()) if arriving else -1
            stalls, missing = (0 if left < missing else stalls + 1), left
            if stalls >= MAX_STALLS:
                raise TransferFailed(f"blob {ref.digest}: {_words(error)}") from error
            await asyncio.sleep(FIRST_PAUSE_SECONDS * 2**stalls)
        except (httpx.HTTPError, httpx.InvalidURL, BadBlob) as error:
            raise TransferFailed(f"blob {ref.digest}: {_words(error)}") from error


async def upload_over_http(
    client: httpx.AsyncClient, url: str, ref: BlobRef, store: BlobStore
) -> None:
    """Send the pieces of the blob `ref` that the network role lacks. `url`: the signed base URL.

    Raises UrlExpired if the URL has expired or the blob is not wanted any more, TransferFailed
    otherwise, BlobMissing if `store` does not have it. Calling again goes on where this stopped.
    """
    path, pieces = store.path(ref.digest), store.pieces(ref.digest)
    try:
        begun = await _put(client, _extended(url, "/pieces"), pieces.model_dump_json().encode())
        with path.open("rb") as file:
            for index in begun.missing:
                file.seek(index * PIECE_BYTES)
                piece = await asyncio.to_thread(file.read, PIECE_BYTES)
                await _put(client, _extended(url, f"/pieces/{index}"), piece)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TransferFailed(f"blob {ref.digest}: {_words(error)}") from error


async def _signed_url(client: httpx.AsyncClient, url: str, headers: dict[str, str]) -> str:
    try:
        async with _answered(client, "GET", url, headers=headers) as response:
            location = response.headers.get("location", "")
            if response.status_code != httpx.codes.TEMPORARY_REDIRECT or not location:
                raise TransferFailed(
                    f"{url}: answered {response.status_code}, expected 307 to a signed URL"
                )
            signed = str(httpx.URL(url).join(location))
            check_same_host(url, signed)
            return signed
    except UrlExpired as refusal:
        raise TransferFailed(f"{url}: {refusal.reason}") from refusal


async def _begin(
    client: httpx.AsyncClient, signed: str, ref: BlobRef, store: BlobStore
) -> PartialBlob:
    """The parts that are here already, or a new start from the piece list of the network role."""
    arriving = store.arriving(ref.digest)
    if arriving is not None:
        return await asyncio.to_thread(store.partial, ref, arriving.pieces)
    async with _answered(client, "GET", _extended(signed, "/pieces")) as response:
        pieces = _parsed(PieceList, await _bounded(response, _MAX_LIST_BYTES))
    return await asyncio.to_thread(store.partial, ref, pieces)


async def _fetch_missing(client: httpx.AsyncClient, signed: str, partial: PartialBlob) -> None:
    for first, last in runs(partial.missing()):
        start = first * PIECE_BYTES
        end = min((last + 1) * PIECE_BYTES, partial.ref.size)
        wanted = {"range": f"bytes={start}-{end - 1}"}
        async with _answered(client, "GET", signed, headers=wanted) as response:
            if (
                response.headers.get("content-range")
                != f"bytes {start}-{end - 1}/{partial.ref.size}"
            ):
                raise TransferFailed(f"blob {partial.ref.digest}: another range was sent")
            await _write_pieces(response, partial, first, end - start)


async def _write_pieces(
    response: httpx.Response, partial: PartialBlob, index: int, length: int
) -> None:
    left, piece = length, bytearray()
    async for chunk in response.aiter_raw(256 * 1024):
        piece += chunk[:left]
        left -= min(left, len(chunk))
        while len(piece) >= PIECE_BYTES or (piece and not left):
            await asyncio.to_thread(partial.write_piece, index, bytes(piece[:PIECE_BYTES]))
            del piece[:PIECE_BYTES]
            index += 1
    if left:
        raise httpx.ReadError(f"the connection ended {left} bytes early")


async def _put(client: httpx.AsyncClient, url: str, body: bytes) -> MissingPieces:
    async with _answered(client, "PUT", url, content=body) as response:
        return _parsed(MissingPieces, await _bounded(response, _MAX_LIST_BYTES))


@asynccontextmanager
async def _answered(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: dict[str, str] | None = None,
    content: bytes | None = None,
) -> AsyncIterator[httpx.Response]:
    """A response that is no refusal, its body not read yet. Redirects are not followed."""
    async with client.stream(
        method, url, headers=headers, content=content, timeout=TIMEOUT, follow_redirects=False
    ) as response:
        if response.is_error:
            raise await _refusal(response)
        yield response


async def _refusal(response: httpx.Response) -> TransferFailed:
    kind = UrlExpired if response.status_code == httpx.codes.FORBIDDEN else TransferFailed
    try:
        body = ErrorBody.model_validate_json(await _bounded(response, _MAX_ERROR_BYTES))
    except (ValidationError, TransferFailed):
        return kind(f"answered {response.status_code}")
    if body.code is ErrorCode.UNKNOWN_BLOB:
        kind = UnknownBlob
    return kind(f"answered {response.status_code} {body.code}: {body.message}")


async def _bounded(response: httpx.Response, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > max_bytes:
            raise TransferFailed(f"an answer of more than {max_bytes} bytes")
    return bytes(body)


def _parsed(kind: type[Answer], body: bytes) -> Answer:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise TransferFailed(f"an answer that is no {kind.__name__}: {error}") from error


def _extended(url: str, suffix: str) -> str:
    parsed = httpx.URL(url)
    return str(parsed.copy_with(path=parsed.path + suffix))


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
