"""Fetching from several sources at once, from broken ones and from liars."""

import asyncio
import contextlib
import errno
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.blobs import BlobRef, PieceList
from protocol.digests import PIECE_BYTES
from shared.blobs import BlobStore
from shared.exchange import download, exchange, rates, streams
from shared.exchange.exchange import Exchange, FetchFailed
from shared.exchange.rates import Bucket, Rates
from shared.exchange.serving import BlobServer
from shared.exchange.sources import Read, Route, Source, Tier, UnknownBlob
from shared.exchange.streams import Status
from tests.wire import DATA, Handler, Remote, Wire, as_peer, read_request, tier, until

LARGE = random.Random(9).randbytes(9 * PIECE_BYTES + 77)


class Provider:
    """A provider of a store that counts what it sends, and that a test can make worse."""

    def __init__(self, folder: Path, store: BlobStore, name: str) -> None:
        self.wire = Wire(folder / name)
        self.name = name
        self.requests: list[dict[str, Any]] = []
        self.num_bytes = 0
        self.cut_after: int | None = None
        self.damage: set[int] = set()
        self._store = store

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._answer(await read_request(reader), reader, writer)
        writer.close()

    async def _answer(self, request: dict[str, Any], reader: Any, writer: Any) -> None:
        self.requests.append(request)
        if request["op"] == "pieces":
            body = self._store.pieces(request["digest"]).model_dump_json().encode()
        else:
            start = request["offset"]
            data = self._store.path(request["digest"]).read_bytes()
            body = bytearray(data[start : start + request["length"]])
            for index in self.damage:
                if start <= index * PIECE_BYTES < start + len(body):
                    body[index * PIECE_BYTES - start] ^= 1
        sent = bytes(body)
        if request["op"] == "bytes" and self.cut_after is not None:
            sent = sent[: self.cut_after]
        writer.write(bytes([Status.OK]) + len(body).to_bytes(8, "big"))
        writer.write(sent)
        self.num_bytes += len(sent) * (request["op"] == "bytes")
        await writer.drain()
        if len(sent) == len(body):
            await reader.read(1)


@contextlib.asynccontextmanager
async def providing(provider: Provider) -> Any:
    provider.wire.handler = provider.accept
    async with await asyncio.start_unix_server(provider.wire.accept, path=provider.wire.path):
        yield provider.wire.source(provider.name)


async def test_two_providers_share_the_pieces_and_nothing_is_sent_twice(
    tmp_path: Path, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(LARGE)
    one, two = (Provider(tmp_path, theirs, name) for name in ("one", "two"))
    async with providing(one) as first, providing(two) as second:
        route = await Exchange(mine).fetch(ref, [tier(first, second)])
    assert mine.read(ref, max_bytes=ref.size) == LARGE
    assert one.num_bytes + two.num_bytes == ref.size
    assert min(one.num_bytes, two.num_bytes) > 0
    assert {part.split(":")[0] for part in route.split(" + ")} == {"direct one", "direct two"}


async def test_a_liar_is_dropped_remembered_and_made_up_for(
    tmp_path: Path, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(LARGE)
    liar, honest = (Provider(tmp_path, theirs, name) for name in ("liar", "honest"))
    liar.damage = set(range(9))
    transfers = Exchange(mine)
    async with providing(liar) as first, providing(honest) as second:
        await transfers.fetch(ref, [tier(first, second)])
        assert mine.read(ref, max_bytes=ref.size) == LARGE
        mine.delete(ref.digest)
        asked = len(liar.requests)
        assert await transfers.fetch(ref, [tier(first, second)]) == "direct honest"
        assert len(liar.requests) == asked
        mine.delete(ref.digest)
        with pytest.raises(FetchFailed, match="no providers"):
            await transfers.fetch(ref, [tier(first)])


@pytest.mark.parametrize("cut", [0, 1, 1000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1])
async def test_a_line_that_breaks_after_every_few_bytes_loses_none_of_them(
    tmp_path: Path, theirs: BlobStore, mine: BlobStore, cut: int
) -> None:
    ref = theirs.add_bytes(DATA)
    broken, honest = (Provider(tmp_path, theirs, name) for name in ("broken", "honest"))
    broken.cut_after = cut
    transfers = Exchange(mine)
    async with providing(broken) as first, providing(honest) as second:
        for _ in range(2):
            with contextlib.suppress(FetchFailed):
                await transfers.fetch(ref, [tier(first)])
        await transfers.fetch(ref, [tier(second)])
    assert mine.read(ref, max_bytes=ref.size) == DATA
    assert broken.num_bytes + honest.num_bytes == ref.size


async def test_first_bytes_of_a_liar_are_fetched_anew_and_nobody_else_is_blamed(
    tmp_path: Path, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(DATA)
    liar, honest = (Provider(tmp_path, theirs, name) for name in ("liar", "honest"))
    liar.cut_after, liar.damage = 500, {0, 1, 2}
    transfers = Exchange(mine)
    async with providing(liar) as first, providing(honest) as second:
        with pytest.raises(FetchFailed):
            await transfers.fetch(ref, [tier(first)])
        assert await transfers.fetch(ref, [tier(second)]) == "direct honest"
    assert mine.read(ref, max_bytes=ref.size) == DATA


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cuts=st.lists(st.integers(0, 2 * PIECE_BYTES), max_size=6), seed=st.integers(0, 99))
def test_any_breaks_of_any_providers_give_the_blob_in_the_end(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], seed: int
) -> None:
    async def run() -> None:
        folder = tmp_path_factory.mktemp("breaks")
        theirs, mine = BlobStore(folder / "theirs"), BlobStore(folder / "mine")
        ref = theirs.add_bytes(DATA)
        transfers, draws = Exchange(mine), random.Random(seed)
        one, two = (Provider(folder, theirs, name) for name in ("1", "2"))
        async with providing(one) as first, providing(two) as second:
            for cut in cuts:
                draws.choice([one, two]).cut_after = cut
                with contextlib.suppress(FetchFailed):
                    await transfers.fetch(ref, [tier(first, second)])
            one.cut_after = None
            await transfers.fetch(ref, [tier(first, second)])
        assert mine.read(ref, max_bytes=ref.size) == DATA

    asyncio.run(run())


async def test_the_next_tier_takes_over_where_a_slow_one_is_left(
    tmp_path: Path,
    wire: Wire,
    theirs: BlobStore,
    mine: BlobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(download, "SLOW_SECONDS", 0.5)
    monkeypatch.setattr(exchange, "SLOW_RATE", 10_000_000.0)
    ref = theirs.add_bytes(DATA)
    slow = BlobServer(theirs, lambda *_: True, rates=Rates(up=Bucket(1_000_000)))
    wire.handler = as_peer(slow, "asker")
    honest = Provider(tmp_path, theirs, "honest")
    transfers = Exchange(mine)
    async with providing(honest) as second:
        await transfers.fetch(ref, [tier(wire.source("slow")), tier(second, route="http")])
    assert mine.read(ref, max_bytes=ref.size) == DATA
    assert 0 < honest.num_bytes < ref.size


async def test_the_last_tier_may_be_as_slow_as_it_is(
    wire: Wire, theirs: BlobStore, mine: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SLOW_SECONDS", 0.1)
    ref = theirs.add_bytes(DATA[:200_000])
    wire.handler = as_peer(
        BlobServer(theirs, lambda *_: True, rates=Rates(up=Bucket(400_000))), "asker"
    )
    assert await wire.fetch(ref, mine) == "direct provider"


async def test_a_slow_and_steady_source_is_kept_for_longer_than_one_window(
    wire: Wire, theirs: BlobStore, mine: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "STALL_SECONDS", 1.1)
    ref = theirs.add_bytes(DATA[:900_000])
    steady = BlobServer(theirs, lambda *_: True, rates=Rates(up=Bucket(400_000)))
    wire.handler = as_peer(steady, "asker")
    assert await wire.fetch(ref, mine) == "direct provider"


async def test_a_disk_that_fails_is_no_fault_of_the_source(
    wire: Wire, theirs: BlobStore, mine: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    ref = theirs.add_bytes(DATA)
    wire.serve(theirs)
    exchange = Exchange(mine)
    with monkeypatch.context() as patch:
        patch.setattr("shared.blobs.partial.os.pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            await exchange.fetch(ref, [tier(wire.source())])
    assert await exchange.fetch(ref, [tier(wire.source())]) == "direct provider"


async def test_a_blob_too_large_for_the_disk_is_not_begun(
    wire: Wire, theirs: BlobStore, mine: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = theirs.add_bytes(DATA)
    wire.serve(theirs)
    usage = type("Usage", (), {"free": ref.size - 1})
    monkeypatch.setattr("shared.blobs.store.shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="8388612 bytes are free"):
        await wire.fetch(ref, mine)


async def test_two_who_want_the_same_blob_fetch_it_once(
    tmp_path: Path, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(LARGE)
    provider, transfers = Provider(tmp_path, theirs, "one"), Exchange(mine)
    async with providing(provider) as source:
        routes = await asyncio.gather(*(transfers.fetch(ref, [tier(source)]) for _ in range(3)))
    assert sorted(routes) == ["direct one", "kept", "kept"]
    assert provider.num_bytes == ref.size


async def test_a_blob_is_fetched_by_one_at_a_time_after_a_failure_too(mine: BlobStore) -> None:
    ref, transfers = BlobRef(digest="0" * 64, size=5), Exchange(mine)
    gates = {name: asyncio.Event() for name in ("first", "second", "third")}
    begun: list[str] = []

    def fetching(name: str) -> asyncio.Task[str]:
        async def find() -> list[Source]:
            begun.append(name)
            await gates[name].wait()
            return []

        return asyncio.create_task(transfers.fetch(ref, [Tier("http", find)]))

    first = fetching("first")
    await until(lambda: begun == ["first"])
    second = fetching("second")
    await asyncio.sleep(0)
    gates["first"].set()
    await until(lambda: begun == ["first", "second"])
    third = fetching("third")
    for _ in range(5):
        await asyncio.sleep(0)
    assert begun == ["first", "second"]
    for gate in gates.values():
        gate.set()
    for task in (first, second, third):
        with pytest.raises(FetchFailed, match="no providers"):
            await task


class Nobody:
    """A source that says of every blob that there is none."""

    name = "http"
    route: Route = "http"

    async def pieces(self, ref: BlobRef) -> PieceList:
        raise UnknownBlob(f"no {ref.digest}")

    @contextlib.asynccontextmanager
    async def opened(self, ref: BlobRef, offset: int, length: int) -> AsyncIterator[Read]:
        raise UnknownBlob(f"no {ref.digest} from {offset} for {length}")
        yield


@pytest.mark.parametrize("has_list", [False, True])
async def test_what_there_is_not_is_told_from_what_cannot_be_reached(
    theirs: BlobStore, mine: BlobStore, has_list: bool
) -> None:
    ref = theirs.add_bytes(DATA)
    if has_list:
        mine.partial(ref, theirs.pieces(ref.digest))
    with pytest.raises(FetchFailed) as failure:
        await Exchange(mine).fetch(ref, [tier(Nobody(), route="http")])
    assert failure.value.is_unknown


async def test_a_blob_that_is_deleted_while_it_arrives_is_a_failed_fetch_and_comes_anew(
    wire: Wire, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(DATA)
    server = BlobServer(theirs, lambda *_: True)

    async def deleting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine.delete(ref.digest)
        await server.serve(Remote("asker"), reader, writer)

    mine.partial(ref, theirs.pieces(ref.digest))
    transfers = Exchange(mine)
    wire.handler = deleting
    with pytest.raises(FetchFailed, match="deleted meanwhile"):
        await transfers.fetch(ref, [tier(wire.source())])
    wire.serve(theirs)
    assert await transfers.fetch(ref, [tier(wire.source())]) == "direct provider"
    assert mine.read(ref, max_bytes=ref.size) == DATA


async def test_progress_counts_what_was_here_and_what_comes(
    wire: Wire, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(DATA)
    partial = mine.partial(ref, theirs.pieces(ref.digest))
    partial.write_piece(2, DATA[2 * PIECE_BYTES :])
    wire.serve(theirs)
    seen: list[int] = []
    await Exchange(mine).fetch(
        ref, [tier(wire.source())], on_progress=lambda _, num_bytes: seen.append(num_bytes)
    )
    assert seen == [5 + PIECE_BYTES, ref.size]


async def _silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def _half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes([Status.OK]) + (100).to_bytes(8, "big") + b"half")
    await reader.read()


async def _cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1024)
    writer.write(bytes([Status.OK]) + (100).to_bytes(8, "big") + b"half")


async def _endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes([Status.OK]) + b"\xff" * 8)
    await reader.read()


async def _no_piece_list(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes([Status.OK]) + (2).to_bytes(8, "big") + b"{}")
    await reader.read()


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = await read_request(reader)
    writer.write(bytes([Status.OK]) + request["length"].to_bytes(8, "big"))
    with contextlib.suppress(OSError):
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("handler", "is_liar", "reason"),
    [
        (_silent, False, "waited 0 s for an answer"),
        (_half_an_answer, False, "waited 0 s for bytes"),
        (_cut, False, "ended early"),
        (_drip, False, "stalled|waited 0 s for bytes"),
        (_endless, True, "a piece list of"),
        (_no_piece_list, True, "size"),
    ],
)
@pytest.mark.parametrize("has_list", [False, True])
async def test_a_broken_provider_is_left_with_its_reason(
    wire: Wire,
    theirs: BlobStore,
    mine: BlobStore,
    monkeypatch: pytest.MonkeyPatch,
    handler: Handler,
    is_liar: bool,
    reason: str,
    has_list: bool,
) -> None:
    monkeypatch.setattr(streams, "FIRST_BYTE_SECONDS", 0.1)
    monkeypatch.setattr(rates, "STALL_SECONDS", 0.2)
    ref = theirs.add_bytes(DATA)
    if has_list:
        mine.partial(ref, theirs.pieces(ref.digest))
        is_liar, reason = (
            is_liar or handler in (_half_an_answer, _cut),
            {
                _half_an_answer: "100 bytes offered",
                _cut: "100 bytes offered",
                _endless: "bytes offered",
                _no_piece_list: "2 bytes offered",
            }.get(handler, reason),
        )
    wire.handler = handler
    transfers = Exchange(mine)
    with pytest.raises(FetchFailed, match=reason):
        await transfers.fetch(ref, [tier(wire.source())])
    again = "no providers" if is_liar else reason
    with pytest.raises(FetchFailed, match=again):
        await transfers.fetch(ref, [tier(wire.source())])


async def test_no_stream_is_left_open_when_a_fetch_is_given_up(
    wire: Wire, theirs: BlobStore, mine: BlobStore
) -> None:
    ref = theirs.add_bytes(LARGE)
    server = BlobServer(theirs, lambda *_: True, rates=Rates(up=Bucket(1_000_000)))
    wire.handler = lambda reader, writer: server.serve(Remote("asker"), reader, writer)
    fetching = asyncio.create_task(wire.fetch(ref, mine))
    await until(lambda: server.num_streams == download.LANES_PER_SOURCE)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await until(lambda: server.num_streams == 0)


async def test_a_blob_of_nothing_arrives(wire: Wire, theirs: BlobStore, mine: BlobStore) -> None:
    wire.serve(theirs)
    ref = theirs.add_bytes(b"")
    await wire.fetch(ref, mine)
    assert mine.has(ref.digest)


async def test_an_unknown_blob_says_so(wire: Wire, theirs: BlobStore, mine: BlobStore) -> None:
    wire.serve(theirs)
    with pytest.raises(FetchFailed, match="does not have it for us"):
        await wire.fetch(BlobRef(digest="0" * 64, size=5), mine)
