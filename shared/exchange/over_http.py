"""Fetch and upload blobs over HTTP, piece by piece: the way of those whom libp2p cannot reach.

Reading begins at the api, which answers 307 to a signed URL of the network role; for uploading the
api names such a URL too.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import httpx
from pydantic import ValidationError

from protocol.blobs import MAX_PIECES, BlobRef, PieceList
from protocol.digests import PIECE_BYTES
from protocol.errors import ErrorBody, ErrorCode
from protocol.messages import MissingPieces
from protocol.values import Value
from shared.blobs import BlobStore
from shared.exchange.rates import Bucket, Flow
from shared.exchange.sources import Read, Route, SourceFailed, UnknownBlob
from shared.exchange.streams import list_bound

TIMEOUT = httpx.Timeout(30.0)
"""Seconds to connect, and between two chunks of bytes either way."""

_MAX_LIST_BYTES = 70 * MAX_PIECES + 1024
_MAX_ERROR_BYTES = 16_384


Answer = TypeVar("Answer", bound=Value)


class TransferFailed(SourceFailed):
    """A blob could not be moved over HTTP; `reason` says why. What was verified is kept."""


class UrlExpired(TransferFailed):
    """The network role refused the signed URL: get a new one from the api and go on."""


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


class HttpSource:
    """The coordinator's network role, by way of the api's /v1/blobs/{digest} at `url`.

    `headers` go to the api only, and only its own host is asked for bytes. The api answers 307 to a
    signed URL that lives for a minute; when it has expired, the api is asked again.
    """

    name = "http"
    route: Route = "http"

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        *,
        headers: Callable[[], dict[str, str]] = dict,
        down: Bucket | None = None,
    ) -> None:
        self._client = client
        self._url = url
        self._headers = headers
        self._down = down or Bucket()
        self._signed: str | None = None

    async def pieces(self, ref: BlobRef) -> PieceList:
        """See `Source`."""
        async with self._asked("/pieces") as response:
            return _parsed(PieceList, await _bounded(response, list_bound(ref)))

    @asynccontextmanager
    async def opened(self, ref: BlobRef, offset: int, length: int) -> AsyncIterator[Read]:
        """See `Source`."""
        last = offset + length - 1
        async with self._asked("", headers={"range": f"bytes={offset}-{last}"}) as response:
            if response.headers.get("content-range") != f"bytes {offset}-{last}/{ref.size}":
                raise TransferFailed("another range was sent than was asked for")
            yield _reader(response, self._down)

    @asynccontextmanager
    async def _asked(
        self, suffix: str, *, headers: dict[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        try:
            async with AsyncExitStack() as stack:
                response = await self._answer(stack, suffix, headers)
                yield response
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TransferFailed(_words(error)) from error

    async def _answer(
        self, stack: AsyncExitStack, suffix: str, headers: dict[str, str] | None
    ) -> httpx.Response:
        with contextlib.suppress(UrlExpired):
            return await self._entered(stack, suffix, headers)
        self._signed = None
        return await self._entered(stack, suffix, headers)

    async def _entered(
        self, stack: AsyncExitStack, suffix: str, headers: dict[str, str] | None
    ) -> httpx.Response:
        if self._signed is None:
            self._signed = await _signed_url(self._client, self._url, self._headers())
        url = _extended(self._signed, suffix)
        asking = _answered(self._client, "GET", url, headers=headers)
        return await stack.enter_async_context(asking)


def _reader(response: httpx.Response, down: Bucket) -> Read:
    chunks, left, flow = response.aiter_raw(), bytearray(), Flow(_time())

    async def read(max_bytes: int) -> bytearray:
        nonlocal left
        while not left:
            try:
                async with asyncio.timeout(flow.seconds_left(_time())):
                    left += await anext(chunks)
            except StopAsyncIteration:
                raise TransferFailed("the connection ended early") from None
            except TimeoutError:
                raise TransferFailed("stalled: no bytes came") from None
            except httpx.HTTPError as error:
                raise TransferFailed(_words(error)) from error
            if flow.note(len(left), _time()):
                raise TransferFailed("stalled: hardly any bytes came")
        chunk, left = left, left[max_bytes:]
        del chunk[max_bytes:]
        flow.excuse(await down.take(len(chunk)))
        return chunk

    return read


async def upload_over_http(
    client: httpx.AsyncClient, url: str, ref: BlobRef, store: BlobStore, *, up: Bucket
) -> None:
    """Send the pieces of the blob `ref` that the network role lacks. `url`: the signed base URL.

    Raises UrlExpired if the URL has expired or the blob is not wanted any more, TransferFailed
    otherwise, BlobMissing if `store` does not have it. Calling again goes on where this stopped.
    """
    path, pieces = store.path(ref.digest), store.pieces(ref.digest)
    try:
        begun = await _put(
            client, _extended(url, "/pieces"), _flowing(pieces.model_dump_json().encode(), up)
        )
        with path.open("rb") as file:
            for index in begun.missing:
                file.seek(index * PIECE_BYTES)
                piece = await asyncio.to_thread(file.read, PIECE_BYTES)
                await _put(client, _extended(url, f"/pieces/{index}"), _flowing(piece, up))
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


async def _flowing(data: bytes, up: Bucket) -> AsyncIterator[bytes]:
    step = up.chunk_bytes
    for offset in range(0, len(data), step):
        chunk = data[offset : offset + step]
        await up.take(len(chunk))
        yield chunk


async def _put(client: httpx.AsyncClient, url: str, body: AsyncIterator[bytes]) -> MissingPieces:
    async with _answered(client, "PUT", url, content=body) as response:
        return _parsed(MissingPieces, await _bounded(response, _MAX_LIST_BYTES))


@asynccontextmanager
async def _answered(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: dict[str, str] | None = None,
    content: AsyncIterator[bytes] | None = None,
) -> AsyncIterator[httpx.Response]:
    """A response that is no refusal, its body not read yet. Redirects are not followed."""
    async with client.stream(
        method, url, headers=headers, content=content, timeout=TIMEOUT, follow_redirects=False
    ) as response:
        if response.is_error:
            raise await _refusal(response)
        yield response


async def _refusal(response: httpx.Response) -> SourceFailed:
    kind: type[SourceFailed] = (
        UrlExpired if response.status_code == httpx.codes.FORBIDDEN else TransferFailed
    )
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


def _time() -> float:
    return asyncio.get_running_loop().time()


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
