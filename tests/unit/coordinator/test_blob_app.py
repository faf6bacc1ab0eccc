"""The blob app and its client together: reading, resuming, uploading, and every refusal."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from typing_extensions import override

from coordinator.ledger import LedgerBusy
from coordinator.network import blob_app
from coordinator.network.blob_app import (
    MAX_PIECES_AT_ONCE,
    MAX_PIECES_OF_A_PEER,
    create_blob_app,
)
from coordinator.network.refusals import LEDGER_RETRY_SECONDS
from coordinator.urls import sign_url
from protocol.blobs import BlobRef
from protocol.digests import PIECE_BYTES
from protocol.errors import ErrorBody
from protocol.messages import MissingPieces
from shared.blobs import BlobStore
from shared.exchange.exchange import Exchange, FetchFailed
from shared.exchange.over_http import HttpSource, TransferFailed, UrlExpired, upload_over_http
from shared.exchange.rates import Bucket
from tests.wire import tier

SECRET = b"s" * 32
PEER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
DATA = random.Random(1).randbytes(2 * PIECE_BYTES + 11)


class Coordinator:
    """An api that redirects, and the network role's app, over one store, in this process."""

    def __init__(self, folder: Path) -> None:
        self.store = BlobStore(folder)
        self.now = 1_800_000_000.0
        self.readable: set[tuple[str, str]] = set()
        self.wanted: dict[str, BlobRef] = {}
        self.completed: list[tuple[BlobRef, str]] = []
        self.asked: list[tuple[str, str]] = []
        self.interfere: Callable[[Request], None] = lambda _: None
        self.network = create_blob_app(
            store=self.store,
            secret=SECRET,
            may_read=lambda digest, peer: (digest, peer) in self.readable,
            may_upload=self.wanted.get,
            on_complete=lambda ref, peer: self.completed.append((ref, peer)),
            now=lambda: self.now,
        )
        self.api = FastAPI()
        self.api.get("/v1/blobs/{digest}")(self._redirect)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self._dispatch), base_url="http://coordinator:8000"
        )

    def url(self, digest: str, purpose: Literal["get", "put"] = "get", peer: str = PEER) -> str:
        return sign_url(
            "http://coordinator:8001",
            digest=digest,
            purpose=purpose,
            peer=peer,
            expires_at=int(self.now) + 60,
            secret=SECRET,
        )

    async def _dispatch(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope)
        self.asked.append((request.method, request.url.path))
        self.interfere(request)
        app = self.api if request.url.port == 8000 else self.network
        await app(scope, receive, send)

    async def _redirect(self, digest: str, request: Request) -> RedirectResponse:
        assert request.headers["authorization"] == "Bearer token"
        return RedirectResponse(self.url(digest), status_code=307)


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path / "coordinator")


@pytest.fixture
def mine(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "worker")


def _suffixed(url: str, suffix: str) -> str:
    return url.replace("?", suffix + "?", 1)


async def _fetch(coordinator: Coordinator, ref: BlobRef, store: BlobStore) -> None:
    async with coordinator.client() as client:
        url = f"http://coordinator:8000/v1/blobs/{ref.digest}"
        source = HttpSource(client, url, headers=lambda: {"authorization": "Bearer token"})
        await Exchange(store).fetch(ref, [tier(source, route="http")])


def _published(coordinator: Coordinator, data: bytes = DATA) -> BlobRef:
    ref = coordinator.store.add_bytes(data)
    coordinator.readable.add((ref.digest, PEER))
    return ref


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, len(DATA)])
async def test_a_blob_arrives_whole(coordinator: Coordinator, mine: BlobStore, size: int) -> None:
    ref = _published(coordinator, DATA[:size])
    await _fetch(coordinator, ref, mine)
    assert mine.read(ref, max_bytes=size) == DATA[:size]


async def test_a_blob_that_is_here_is_not_asked_for(
    coordinator: Coordinator, mine: BlobStore
) -> None:
    ref = mine.add_bytes(b"here")
    await _fetch(coordinator, ref, mine)
    assert coordinator.asked == []


async def test_only_missing_pieces_are_fetched(coordinator: Coordinator, mine: BlobStore) -> None:
    ref = _published(coordinator)
    pieces = coordinator.store.pieces(ref.digest)
    mine.partial(ref, pieces).write_piece(1, DATA[PIECE_BYTES : 2 * PIECE_BYTES])
    await _fetch(coordinator, ref, mine)
    assert mine.read(ref, max_bytes=len(DATA)) == DATA
    assert coordinator.asked.count(("GET", f"/blobs/{ref.digest}")) == 2


async def test_an_expired_url_is_renewed_and_the_fetch_goes_on(
    coordinator: Coordinator, mine: BlobStore
) -> None:
    ref = _published(coordinator)

    def expire_once(request: Request) -> None:
        if request.url.path.endswith("/pieces"):
            coordinator.now += 61
            coordinator.interfere = lambda _: None

    coordinator.interfere = expire_once
    await _fetch(coordinator, ref, mine)
    assert mine.read(ref, max_bytes=len(DATA)) == DATA
    assert coordinator.asked.count(("GET", f"/v1/blobs/{ref.digest}")) == 2


async def test_a_url_that_is_always_expired_ends_in_a_refusal(
    coordinator: Coordinator, mine: BlobStore
) -> None:
    ref = _published(coordinator)

    def expire(request: Request) -> None:
        coordinator.now += 61 * (request.url.port == 8001)

    coordinator.interfere = expire
    with pytest.raises(FetchFailed, match="403 forbidden: the URL has expired"):
        await _fetch(coordinator, ref, mine)


async def test_damaged_bytes_are_refused_and_not_kept(
    coordinator: Coordinator, mine: BlobStore
) -> None:
    ref = _published(coordinator)
    path = coordinator.store.path(ref.digest)
    damaged = bytearray(DATA)
    damaged[PIECE_BYTES + 3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(FetchFailed, match="piece 1: its SHA-256 differs"):
        await _fetch(coordinator, ref, mine)
    arriving = mine.arriving(ref.digest)
    assert arriving is not None
    assert 1 in arriving.missing()


async def test_a_shortened_file_is_refused(coordinator: Coordinator, mine: BlobStore) -> None:
    ref = _published(coordinator)
    coordinator.store.path(ref.digest).write_bytes(DATA[:-1])
    with pytest.raises(FetchFailed, match="another range"):
        await _fetch(coordinator, ref, mine)


async def test_a_piece_list_of_another_blob_is_refused(
    coordinator: Coordinator, mine: BlobStore
) -> None:
    ref = _published(coordinator)
    with pytest.raises(FetchFailed, match="expected that of"):
        await _fetch(coordinator, BlobRef(digest=ref.digest, size=ref.size + 1), mine)


async def test_unknown_and_forbidden_blobs_are_refused_alike(coordinator: Coordinator) -> None:
    secret_ref = coordinator.store.add_bytes(b"not for this peer")
    answers = []
    async with coordinator.client() as client:
        for digest in (secret_ref.digest, "0" * 64):
            for suffix in ("", "/pieces"):
                answer = await client.get(_suffixed(coordinator.url(digest), suffix))
                body = ErrorBody.model_validate_json(answer.content)
                answers.append((answer.status_code, body.code, body.message.replace(digest, "D")))
    assert set(answers) == {(404, "unknown_blob", "blob D: not here for you")}


async def test_a_fetch_of_a_forbidden_blob_fails_with_the_reason(
    coordinator: Coordinator, mine: BlobStore
) -> None:
    ref = coordinator.store.add_bytes(b"not for this peer")
    with pytest.raises(FetchFailed, match="404 unknown_blob"):
        await _fetch(coordinator, ref, mine)


async def test_a_worker_that_reads_too_often_is_told_when_and_keeps_nobody_else_out(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_app, "BURST_GETS", 3)
    ref = coordinator.store.add_bytes(b"public")
    coordinator.readable |= {(ref.digest, PEER), (ref.digest, "another")}

    async with coordinator.client() as client:

        async def read(peer: str = PEER) -> httpx.Response:
            return await client.get(coordinator.url(ref.digest, peer=peer))

        assert [(await read()).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        body = ErrorBody.model_validate_json((await read()).content)
        assert body.code == "rate_limited"
        assert body.retry_after_seconds == pytest.approx(blob_app.GET_SECONDS, abs=1e-6)
        assert (await read("another")).status_code == 200
        coordinator.now += blob_app.GET_SECONDS + 1e-6
        assert (await read()).status_code == 200
        assert (await read()).status_code == 429


async def test_every_route_needs_its_own_signed_url(coordinator: Coordinator) -> None:
    ref = _published(coordinator)
    coordinator.wanted[ref.digest] = ref
    routes: list[tuple[str, str, Literal["get", "put"]]] = [
        ("GET", "", "get"),
        ("GET", "/pieces", "get"),
        ("GET", "/missing", "put"),
        ("PUT", "/pieces", "put"),
        ("PUT", "/pieces/0", "put"),
    ]
    async with coordinator.client() as client:
        for method, suffix, purpose in routes:
            wrong: Literal["get", "put"] = "put" if purpose == "get" else "get"
            good = _suffixed(coordinator.url(ref.digest, purpose), suffix)
            for url in (
                f"http://coordinator:8001/blobs/{ref.digest}{suffix}",
                good + "0",
                good.replace("expires=18", "expires=19"),
                good.replace(PEER, PEER[:-1] + "q"),
                good.replace(PEER, ""),
                _suffixed(coordinator.url(ref.digest, wrong), suffix),
                _suffixed(coordinator.url("0" * 64, purpose), suffix).replace("0" * 64, ref.digest),
            ):
                answer = await client.request(method, url)
                assert answer.status_code == 403, (method, url)
                assert ErrorBody.model_validate_json(answer.content).code == "forbidden"


async def test_a_range_outside_the_blob_is_refused(coordinator: Coordinator) -> None:
    ref = _published(coordinator, b"0123456789")
    async with coordinator.client() as client:
        url = coordinator.url(ref.digest)
        part = await client.get(url, headers={"range": "bytes=2-4"})
        assert (part.status_code, part.content) == (206, b"234")
        outside = await client.get(url, headers={"range": "bytes=10-12"})
        assert outside.status_code == 416


async def test_while_the_ledger_does_not_answer_a_reader_is_told_to_ask_again(
    coordinator: Coordinator,
) -> None:
    class Away(set[tuple[str, str]]):
        @override
        def __contains__(self, _: object) -> bool:
            raise LedgerBusy("all of its connections are in use")

    ref = coordinator.store.add_bytes(b"public")
    coordinator.readable = Away()
    async with coordinator.client() as client:
        answer = await client.get(coordinator.url(ref.digest))
    body = ErrorBody.model_validate_json(answer.content)
    assert (answer.status_code, body.code) == (429, "busy")
    assert body.retry_after_seconds == LEDGER_RETRY_SECONDS


async def test_what_is_no_digest_or_no_route_is_refused_in_our_words(
    coordinator: Coordinator,
) -> None:
    async with coordinator.client() as client:
        for path, code in (("/blobs/xyz", "bad_request"), ("/elsewhere", "not_found")):
            answer = await client.get(f"http://coordinator:8001{path}")
            assert ErrorBody.model_validate_json(answer.content).code == code


async def _upload(coordinator: Coordinator, ref: BlobRef, store: BlobStore) -> None:
    async with coordinator.client() as client:
        await upload_over_http(client, coordinator.url(ref.digest, "put"), ref, store, up=Bucket())


@pytest.mark.parametrize("size", [0, 1, len(DATA)])
async def test_a_wanted_blob_is_uploaded_and_reported_once_complete(
    coordinator: Coordinator, mine: BlobStore, size: int
) -> None:
    ref = mine.add_bytes(DATA[:size])
    coordinator.wanted[ref.digest] = ref
    await _upload(coordinator, ref, mine)
    assert coordinator.store.read(ref, max_bytes=size) == DATA[:size]
    assert coordinator.completed == [(ref, PEER)]


async def test_an_interrupted_upload_sends_the_missing_pieces_only(
    coordinator: Coordinator, mine: BlobStore
) -> None:
    ref = mine.add_bytes(DATA)
    coordinator.wanted[ref.digest] = ref

    def expire_before_the_last(request: Request) -> None:
        coordinator.now += 61 * request.url.path.endswith("/pieces/2")

    coordinator.interfere = expire_before_the_last
    with pytest.raises(UrlExpired, match="expired"):
        await _upload(coordinator, ref, mine)
    coordinator.interfere = lambda _: None
    async with coordinator.client() as client:
        url = _suffixed(coordinator.url(ref.digest, "put"), "/missing")
        state = MissingPieces.model_validate_json((await client.get(url)).content)
    assert state.missing == (2,)
    coordinator.asked.clear()
    await _upload(coordinator, ref, mine)
    assert [path for method, path in coordinator.asked if method == "PUT"] == [
        f"/blobs/{ref.digest}/pieces",
        f"/blobs/{ref.digest}/pieces/2",
    ]
    assert coordinator.completed == [(ref, PEER)]
    await _upload(coordinator, ref, mine)
    assert coordinator.store.has(ref.digest)


async def test_an_unwanted_upload_is_refused(coordinator: Coordinator, mine: BlobStore) -> None:
    ref = mine.add_bytes(DATA)
    with pytest.raises(UrlExpired, match="not wanted now"):
        await _upload(coordinator, ref, mine)
    assert coordinator.store.arriving(ref.digest) is None


async def test_an_upload_must_answer_to_what_is_wanted(
    coordinator: Coordinator, mine: BlobStore
) -> None:
    ref = mine.add_bytes(DATA)
    coordinator.wanted[ref.digest] = BlobRef(digest=ref.digest, size=1)
    with pytest.raises(TransferFailed, match="422 bad_request: piece list of"):
        await _upload(coordinator, ref, mine)


async def test_bad_and_oversized_bodies_are_refused(
    coordinator: Coordinator, mine: BlobStore
) -> None:
    ref = mine.add_bytes(DATA)
    coordinator.wanted[ref.digest] = ref
    base = coordinator.url(ref.digest, "put")

    async def chunks() -> Any:
        for _ in range(5):
            yield bytes(PIECE_BYTES // 4 + 1)

    async with coordinator.client() as client:

        async def put(suffix: str, content: Any) -> tuple[int, str]:
            answer = await client.put(_suffixed(base, suffix), content=content)
            return answer.status_code, ErrorBody.model_validate_json(answer.content).code

        assert await put("/pieces/0", b"too early") == (409, "wrong_state")
        assert await put("/pieces", b"{}") == (422, "bad_request")
        await client.put(
            _suffixed(base, "/pieces"), content=mine.pieces(ref.digest).model_dump_json()
        )
        assert await put("/pieces/0", bytes(PIECE_BYTES + 1)) == (413, "body_too_large")
        assert await put("/pieces/0", chunks()) == (413, "body_too_large")
        assert await put("/pieces/0", bytes(PIECE_BYTES)) == (422, "bad_request")
        assert await put("/pieces/0", b"short") == (422, "bad_request")
        assert await put("/pieces/99", DATA[:PIECE_BYTES]) == (422, "bad_request")
        assert await put("/pieces/x", b"") == (422, "bad_request")
    partial = coordinator.store.arriving(ref.digest)
    assert partial is not None
    assert partial.missing() == (0, 1, 2)
    assert coordinator.completed == []


@pytest.mark.parametrize(
    ("num_peers", "most_at_once"), [(1, MAX_PIECES_OF_A_PEER), (20, MAX_PIECES_AT_ONCE)]
)
async def test_so_many_pieces_are_in_memory_at_once_and_the_others_wait(
    coordinator: Coordinator, mine: BlobStore, num_peers: int, most_at_once: int
) -> None:
    ref = mine.add_bytes(DATA)
    coordinator.wanted[ref.digest] = ref
    num_puts = MAX_PIECES_AT_ONCE + 4
    bases = [
        coordinator.url(ref.digest, "put", peer=f"peer{number % num_peers}")
        for number in range(num_puts)
    ]
    reading, most = 0, 0
    all_at_once = asyncio.Event()

    async def body() -> Any:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        if reading == num_puts:
            all_at_once.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(all_at_once.wait(), 0.3)
        yield DATA[:PIECE_BYTES]
        reading -= 1

    async with coordinator.client() as client:
        pieces = mine.pieces(ref.digest).model_dump_json()
        await client.put(_suffixed(bases[0], "/pieces"), content=pieces)
        answers = await asyncio.gather(
            *(client.put(_suffixed(base, "/pieces/0"), content=body()) for base in bases)
        )
    assert [answer.status_code for answer in answers] == [200] * num_puts
    assert most == most_at_once


async def test_a_server_that_is_not_there_is_a_transfer_that_failed(
    mine: BlobStore,
) -> None:
    ref = BlobRef(digest="0" * 64, size=1)
    held = mine.add_bytes(b"x")
    async with httpx.AsyncClient() as client:
        source = HttpSource(client, "http://127.0.0.1:9/v1/blobs/0")
        with pytest.raises(FetchFailed):
            await Exchange(mine).fetch(ref, [tier(source, route="http")])
        url = "http://127.0.0.1:9/blobs/0?a=b"
        with pytest.raises(TransferFailed):
            await upload_over_http(client, url, held, mine, up=Bucket())
