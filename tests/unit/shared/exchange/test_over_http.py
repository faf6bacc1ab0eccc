"""Fetching over a real connection that breaks off, and answers that no network role would give."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from protocol.blobs import BlobRef, PieceList
from protocol.digests import PIECE_BYTES
from shared.blobs import BlobStore
from shared.exchange.exchange import Exchange, FetchFailed
from shared.exchange.over_http import HttpSource, TransferFailed, check_same_host
from tests.wire import tier

DATA = random.Random(5).randbytes(PIECE_BYTES + 1000)


class BreakingServer:
    """Answers the three requests of a fetch; its first `breaks` bodies end after `kept` bytes."""

    def __init__(self, pieces: PieceList, *, breaks: int, kept: int) -> None:
        self.pieces = pieces
        self.breaks, self.kept = breaks, kept
        self.ranges: list[str] = []
        self.refusals = 0
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        path = lines[0].split()[1]
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines[1:])}
        if path.startswith("/v1/"):
            location = f"http://127.0.0.1:{self.port}/blobs/x?signed=1"
            self._write(writer, "307 Temporary Redirect", b"", f"location: {location}")
        elif self.refusals:
            self.refusals -= 1
            self._write(writer, "403 Forbidden", b"{}")
        elif path.startswith("/blobs/x/pieces?signed=1"):
            self._write(writer, "200 OK", self.pieces.model_dump_json().encode())
        else:
            self._send_range(writer, headers["range"])
        await writer.drain()
        writer.close()

    def _send_range(self, writer: asyncio.StreamWriter, wanted: str) -> None:
        self.ranges.append(wanted)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        data = DATA[int(first) : int(last) + 1]
        span = f"content-range: bytes {first}-{last}/{len(DATA)}"
        kept = self.kept if self.breaks > 0 else len(data)
        self.breaks -= 1
        self._write(writer, "206 Partial Content", data, span, kept=kept)

    def _write(
        self, writer: asyncio.StreamWriter, status: str, body: bytes, *lines: str, kept: int = -1
    ) -> None:
        head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *lines]
        writer.write("\r\n".join([*head, "", ""]).encode() + body[: kept if kept >= 0 else None])


@pytest.fixture
def ref_and_pieces(tmp_path: Path) -> tuple[BlobRef, PieceList]:
    source = BlobStore(tmp_path / "source")
    ref = source.add_bytes(DATA)
    return ref, source.pieces(ref.digest)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


async def _serve(server: BreakingServer) -> asyncio.Server:
    listening = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    return listening


async def _fetch(client: httpx.AsyncClient, url: str, ref: BlobRef, transfers: Exchange) -> str:
    return await transfers.fetch(ref, [tier(HttpSource(client, url), route="http")])


async def test_a_broken_connection_is_taken_up_at_its_last_byte(
    client: httpx.AsyncClient, tmp_path: Path, ref_and_pieces: tuple[BlobRef, PieceList]
) -> None:
    ref, pieces = ref_and_pieces
    server = BreakingServer(pieces, breaks=2, kept=700)
    transfers = Exchange(BlobStore(tmp_path / "mine"))
    async with await _serve(server):
        url = f"http://127.0.0.1:{server.port}/v1/blobs/x"
        with pytest.raises(FetchFailed, match="http: "):
            await _fetch(client, url, ref, transfers)
        arriving = transfers.store.arriving(ref.digest)
        assert arriving is not None
        assert arriving.missing() == (0, 1)
        await _fetch(client, url, ref, transfers)
    assert transfers.store.read(ref, max_bytes=len(DATA)) == DATA
    begun = {wanted.removeprefix("bytes=").partition("-")[0] for wanted in server.ranges}
    assert begun == {"0", str(PIECE_BYTES), "700", str(PIECE_BYTES + 700)}


async def test_an_expired_url_is_asked_for_again_within_the_fetch(
    client: httpx.AsyncClient, tmp_path: Path, ref_and_pieces: tuple[BlobRef, PieceList]
) -> None:
    ref, pieces = ref_and_pieces
    server = BreakingServer(pieces, breaks=0, kept=0)
    server.refusals = 3
    transfers = Exchange(BlobStore(tmp_path / "mine"))
    async with await _serve(server):
        url = f"http://127.0.0.1:{server.port}/v1/blobs/x"
        with pytest.raises(FetchFailed, match="http: answered 403"):
            await _fetch(client, url, ref, transfers)
        assert await _fetch(client, url, ref, transfers) == "http"


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, b"the bytes themselves", "answered 200, expected 307"),
        (500, b"<html>", "answered 500"),
        (403, b'{"code":"banned","message":"ask the operator"}', "403 banned: ask the operator"),
    ],
)
async def test_what_the_api_says_instead_of_a_url_is_the_reason(
    tmp_path: Path, status: int, body: bytes, reason: str
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body))
    async with httpx.AsyncClient(transport=transport) as client:
        ref = BlobRef(digest="0" * 64, size=1)
        with pytest.raises(FetchFailed, match=reason):
            await _fetch(client, "http://api/v1/blobs/x", ref, Exchange(BlobStore(tmp_path)))


@pytest.mark.parametrize(
    ("api", "other"),
    [
        ("http://swarm:1/v1/blobs/x", "http://swarm:2/blobs/x?s=1"),
        ("http://swarm:1", "https://SWARM/blobs/x"),
        ("https://swarm", "https://swarm:2/blobs/x"),
        ("http://[::1]:1", "http://[::1]:2/blobs/x"),
    ],
)
def test_another_port_of_the_api_s_host_is_followed(api: str, other: str) -> None:
    check_same_host(api, other)


@pytest.mark.parametrize(
    ("api", "other"),
    [
        ("http://swarm:1", "http://169.254.169.254/latest"),
        ("http://swarm:1", "http://swarm.example/blobs/x"),
        ("http://swarm:1", "http://swarm@other/blobs/x"),
        ("https://swarm", "http://swarm/blobs/x"),
        ("http://swarm:1", "file:///etc/passwd"),
        ("http://swarm:1", "/blobs/x"),
        ("http://swarm:1", "http://swarm:port/"),
    ],
)
def test_another_host_or_a_less_secure_one_is_named_and_not_followed(api: str, other: str) -> None:
    with pytest.raises(TransferFailed) as refused:
        check_same_host(api, other)
    assert api in refused.value.reason
    assert other in refused.value.reason


async def test_a_fetch_does_not_follow_the_api_to_another_host(tmp_path: Path) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(307, headers={"location": "http://router.home/admin"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        ref = BlobRef(digest="0" * 64, size=1)
        with pytest.raises(FetchFailed, match=r"router\.home"):
            await _fetch(client, "http://api/v1/blobs/x", ref, Exchange(BlobStore(tmp_path)))
    assert asked == ["api"]
