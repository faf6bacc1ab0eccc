"""Uploads that are cut, mixed and killed: only what is missing travels, and half is nothing."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from protocol.blobs import BlobRef
from protocol.digests import PIECE_BYTES
from shared.exchange.exchange import Exchange, FetchFailed
from shared.exchange.over_http import TransferFailed, upload_over_http
from shared.exchange.push import push
from shared.exchange.rates import CHUNK_BYTES, Bucket
from shared.exchange.sources import SourceFailed
from shared.exchange.streams import UNIT_BYTES, OpenStream
from tests.integration.exchange.ground import LIST_BYTES, Ground, Provider, until
from tests.integration.exchange.provider import signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

DATA = random.Random(14).randbytes(6 * PIECE_BYTES + 5)
NUM_PIECES = 7
SLOW = 12_000_000.0
HEADERS = 1000
"""More than what is said before the first piece: a request and the length of the list, the list."""


class Place:
    """A receiver that is a process of its own, and what the asker has for it."""

    def __init__(self, ground: Ground, receiver: Provider) -> None:
        self.ground, self.receiver = ground, receiver
        self.mine = ground.store()
        self.ref = self.mine.add_bytes(DATA)

    def opener(self) -> OpenStream:
        receiver = self.receiver
        return self.ground.asker.opener(receiver.peer_id, receiver.maddrs)

    async def push(self, *, rate: float | None = None, cut: int | None = None) -> None:
        opener = self.opener()
        await push(cut_after(opener, cut) if cut else opener, self.ref, self.mine, up=Bucket(rate))

    async def upload(self, client: httpx.AsyncClient, *, rate: float | None = None) -> None:
        url = signed(self.receiver.url, self.ref.digest, "put")
        await upload_over_http(client, url, self.ref, self.mine, up=Bucket(rate))

    def missing(self) -> tuple[int, ...]:
        """What the receiver lacks, as its disk says."""
        arriving = self.receiver.store.arriving(self.ref.digest)
        if self.receiver.store.has(self.ref.digest):
            return ()
        return tuple(range(NUM_PIECES)) if arriving is None else arriving.missing()

    def bytes_of(self, missing: tuple[int, ...]) -> int:
        return sum(min(PIECE_BYTES, self.ref.size - index * PIECE_BYTES) for index in missing)

    async def is_nothing(self) -> None:
        """Nobody who asks for the blob, by whatever way, is told of any part of it."""
        receiver, digest = self.receiver, self.ref.digest
        assert not receiver.store.has(digest)
        assert digest not in set(receiver.store.digests())
        assert [*receiver.hears("push"), *receiver.hears("http")] == []
        with pytest.raises(FetchFailed, match="does not have it for us"):
            await Exchange(self.ground.store()).fetch(self.ref, [self.ground.tier(receiver)])
        async with httpx.AsyncClient() as client:
            url = signed(receiver.url, digest, "get")
            for one in (url, url.replace("?", "/pieces?")):
                assert (await client.get(one)).status_code == 404


@pytest_asyncio.fixture(loop_scope="module")
async def place(ground: Ground) -> AsyncIterator[Place]:
    receiver = await ground.provider(http=True)
    place = Place(ground, receiver)
    await receiver.tell("want", place.ref)
    yield place
    ground.end(receiver)


class CutWriter:
    """A stream's writer whose stream ends after so many bytes."""

    def __init__(self, writer: asyncio.StreamWriter, left: int) -> None:
        self._writer, self._left = writer, left

    def write(self, data: Any) -> None:
        if self._writer.is_closing():
            return
        self._writer.write(bytes(data[: self._left]))
        self._left -= len(data)
        if self._left <= 0:
            self._writer.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


def cut_after(opener: OpenStream, num_bytes: int) -> OpenStream:
    async def open_stream() -> Any:
        reader, writer = await opener()
        return reader, CutWriter(writer, num_bytes)

    return open_stream


async def test_a_push_cut_at_any_boundary_leaves_nothing_to_read_and_goes_on(
    place: Place,
) -> None:
    """Each cut is of the stream; the bytes of a piece that was not whole travel again."""
    cuts = [1, 200, HEADERS + CHUNK_BYTES, UNIT_BYTES + HEADERS, PIECE_BYTES - 1, PIECE_BYTES]
    cuts += [PIECE_BYTES + HEADERS, 2 * PIECE_BYTES + HEADERS, 2 * PIECE_BYTES + HEADERS - 1]
    total = 0
    for cut in cuts:
        before = place.bytes_of(place.missing())
        with pytest.raises(SourceFailed):
            await place.push(cut=cut)
        total += cut
        await place.is_nothing()
        assert place.bytes_of(place.missing()) <= before
    assert len(place.missing()) < NUM_PIECES
    left, received = place.bytes_of(place.missing()), place.receiver.received
    await place.push()
    assert place.receiver.received - received <= left + LIST_BYTES
    assert place.receiver.store.read(place.ref, max_bytes=place.ref.size) == DATA
    assert place.receiver.hears("push") == [place.ref.digest]


async def test_a_blob_begun_by_push_goes_on_over_http_and_ends_by_push(place: Place) -> None:
    receiver = place.receiver
    with pytest.raises(SourceFailed):
        await place.push(cut=3 * PIECE_BYTES)
    await receiver.tell("settle")
    await place.is_nothing()
    begun = len(place.missing())
    # The end of a stream that is cut may be lost, but not so much.
    assert begun in (NUM_PIECES - 1, NUM_PIECES - 2)
    received = receiver.received
    async with httpx.AsyncClient() as client:
        uploading = asyncio.create_task(place.upload(client, rate=SLOW))
        await until(lambda: len(place.missing()) <= begun - 2)
        uploading.cancel()
        await asyncio.gather(uploading, return_exceptions=True)
    await place.is_nothing()
    missing = place.missing()
    # HTTP begins where the push was cut, and is itself cut within a piece.
    assert receiver.received - received <= (begun - len(missing) + 1) * PIECE_BYTES + LIST_BYTES
    received = receiver.received
    await place.push()
    # What the cut request had sent of a piece may still be on its way.
    assert receiver.received - received <= place.bytes_of(missing) + PIECE_BYTES + LIST_BYTES
    assert receiver.store.read(place.ref, max_bytes=place.ref.size) == DATA
    assert receiver.hears("push") == [place.ref.digest]
    assert receiver.store.partials() == {}


async def test_push_and_http_at_the_same_time_give_one_sound_blob(place: Place) -> None:
    async with httpx.AsyncClient() as client:
        outcomes = await asyncio.gather(
            place.push(rate=SLOW),
            place.upload(client, rate=SLOW),
            place.push(),
            place.upload(client),
            return_exceptions=True,
        )
    assert all(one is None or isinstance(one, SourceFailed) for one in outcomes), outcomes
    assert outcomes.count(None) >= 2, outcomes
    assert place.receiver.store.read(place.ref, max_bytes=place.ref.size) == DATA
    assert place.receiver.store.partials() == {}


@pytest.mark.parametrize("victim", ["the receiver's daemon", "our own daemon", "the receiver"])
async def test_a_push_goes_on_where_it_was_when_what_was_killed_is_back(
    place: Place, victim: str
) -> None:
    receiver, asker = place.receiver, place.ground.asker
    pushing = asyncio.create_task(place.push(rate=SLOW))
    await until(lambda: len(place.missing()) < NUM_PIECES - 2)
    own = asker.daemon_pid or 0
    pid = {
        "the receiver's daemon": receiver.daemon_pid,
        "our own daemon": own,
        "the receiver": receiver.pid,
    }
    os.kill(pid[victim], signal.SIGKILL)
    with pytest.raises(SourceFailed):
        await asyncio.wait_for(pushing, 10)
    assert not receiver.store.has(place.ref.digest)
    if victim == "the receiver":
        receiver.plan.wanted[place.ref.digest] = place.ref.size
        receiver.kill()
        await receiver.begin()
    await receiver.tell("settle")
    missing, before = place.missing(), receiver.received
    assert 0 < len(missing) < NUM_PIECES - 2
    async with asyncio.timeout(60):
        while not receiver.store.has(place.ref.digest):
            try:
                await place.push()
            except SourceFailed:
                await asyncio.sleep(0.1)
    assert receiver.received - before <= place.bytes_of(missing) + LIST_BYTES
    assert receiver.store.verify(place.ref.digest)
    await until(lambda: receiver.hears("push") == [place.ref.digest])


async def test_wrong_pieces_over_http_and_push_never_complete_a_blob(place: Place) -> None:
    path = place.mine.path(place.ref.digest)
    path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    async with httpx.AsyncClient() as client:
        with pytest.raises(TransferFailed, match="SHA-256 differs"):
            await place.upload(client)
    with pytest.raises(SourceFailed, match="do not answer to the digest"):
        await place.push()
    await place.is_nothing()
    assert place.missing() == (NUM_PIECES - 1,)


async def test_what_is_not_wanted_any_more_is_refused_halfway_by_both_ways(place: Place) -> None:
    with pytest.raises(SourceFailed):
        await place.push(cut=PIECE_BYTES + HEADERS)
    await place.receiver.tell("want", BlobRef(digest=place.ref.digest, size=5))
    with pytest.raises(SourceFailed, match="does not have it for us"):
        await place.push()
    async with httpx.AsyncClient() as client:
        with pytest.raises(SourceFailed, match="piece list of"):
            await place.upload(client)
    await place.is_nothing()
