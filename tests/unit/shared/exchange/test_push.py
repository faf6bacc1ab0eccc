"""Uploading over a stream of the owner's: what is wanted, from whom, and after interruptions."""

import asyncio
import contextlib
import errno
from typing import Any

import pytest

from protocol.blobs import BlobRef
from protocol.digests import PIECE_BYTES
from shared.blobs import BlobMissing, BlobStore
from shared.exchange import push as pushing
from shared.exchange import rates, streams
from shared.exchange.push import push
from shared.exchange.rates import Bucket
from shared.exchange.serving import BlobServer
from shared.exchange.sources import SourceBusy, SourceFailed, WrongBytes
from shared.exchange.streams import UNIT_BYTES, BlobRequest, Status
from tests.wire import DATA, Wire, as_peer, read_request, until


class Receiver:
    """Takes what it wants from one peer."""

    def __init__(self, wire: Wire, store: BlobStore) -> None:
        self.wanted: dict[str, BlobRef] = {}
        self.pushed: list[tuple[BlobRef, str]] = []
        self.server = BlobServer(
            store,
            lambda *_: False,
            may_push=lambda digest, peer: self.wanted.get(digest) if peer == "owner" else None,
            on_pushed=lambda ref, peer: self.pushed.append((ref, peer)),
        )
        wire.handler = as_peer(self.server, "owner")

    def want(self, ref: BlobRef) -> BlobRef:
        self.wanted[ref.digest] = ref
        return ref


@pytest.fixture
def receiver(wire: Wire, theirs: BlobStore) -> Receiver:
    return Receiver(wire, theirs)


@pytest.mark.parametrize("size", [0, 1, UNIT_BYTES + 1, PIECE_BYTES, len(DATA)])
async def test_what_is_wanted_is_uploaded_whole(
    wire: Wire, theirs: BlobStore, mine: BlobStore, receiver: Receiver, size: int
) -> None:
    ref = receiver.want(mine.add_bytes(DATA[:size]))
    await push(wire.open, ref, mine, up=Bucket())
    assert theirs.read(ref, max_bytes=size) == DATA[:size]
    assert receiver.pushed == [(ref, "owner")]
    await until(lambda: receiver.server.num_streams == 0)


async def test_a_slow_and_steady_push_lasts_longer_than_one_window(
    wire: Wire,
    theirs: BlobStore,
    mine: BlobStore,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rates, "STALL_SECONDS", 1.1)
    ref = receiver.want(mine.add_bytes(DATA[:600_000]))
    await push(wire.open, ref, mine, up=Bucket(400_000))
    assert receiver.pushed == [(ref, "owner")]


async def test_a_repeated_push_sends_nothing_and_is_kept_all_the_same(
    wire: Wire, theirs: BlobStore, mine: BlobStore, receiver: Receiver
) -> None:
    ref = receiver.want(mine.add_bytes(DATA))
    await push(wire.open, ref, mine, up=Bucket())
    (mine.root / "data" / ref.digest).write_bytes(b"")
    await push(wire.open, ref, mine, up=Bucket())
    assert theirs.verify(ref.digest)


async def test_only_what_is_missing_is_sent(
    wire: Wire, theirs: BlobStore, mine: BlobStore, receiver: Receiver
) -> None:
    ref = receiver.want(mine.add_bytes(DATA))
    partial = theirs.partial(ref, mine.pieces(ref.digest))
    partial.write_piece(1, DATA[PIECE_BYTES : 2 * PIECE_BYTES])
    data = bytearray(DATA)
    data[PIECE_BYTES : 2 * PIECE_BYTES] = bytes(PIECE_BYTES)
    (mine.root / "data" / ref.digest).write_bytes(data)
    await push(wire.open, ref, mine, up=Bucket())
    assert theirs.read(ref, max_bytes=ref.size) == DATA


async def test_what_nobody_wants_or_of_another_size_or_from_another_peer_is_refused_alike(
    wire: Wire, mine: BlobStore, receiver: Receiver
) -> None:
    wanted, unwanted = receiver.want(mine.add_bytes(b"wanted")), mine.add_bytes(b"unwanted")
    reasons = set()
    with pytest.raises(SourceFailed) as refused:
        await push(wire.open, unwanted, mine, up=Bucket())
    reasons.add(refused.value.reason)
    receiver.wanted[unwanted.digest] = BlobRef(digest=unwanted.digest, size=3)
    with pytest.raises(SourceFailed) as refused:
        await push(wire.open, unwanted, mine, up=Bucket())
    reasons.add(refused.value.reason)
    wire.handler = as_peer(receiver.server, "stranger")
    with pytest.raises(SourceFailed) as refused:
        await push(wire.open, wanted, mine, up=Bucket())
    reasons.add(refused.value.reason)
    assert reasons == {"the provider does not have it for us"}


async def test_wrong_bytes_are_refused_and_the_right_pieces_kept(
    wire: Wire, theirs: BlobStore, mine: BlobStore, receiver: Receiver
) -> None:
    ref = receiver.want(mine.add_bytes(DATA))
    path = mine.root / "data" / ref.digest
    path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    with pytest.raises(WrongBytes):
        await push(wire.open, ref, mine, up=Bucket())
    assert not theirs.has(ref.digest)
    arriving = theirs.arriving(ref.digest)
    assert arriving is not None
    assert arriving.missing() == (2,)
    path.write_bytes(DATA)
    await push(wire.open, ref, mine, up=Bucket())
    assert theirs.verify(ref.digest)


async def test_a_push_that_was_cut_goes_on_where_it_was(
    wire: Wire, theirs: BlobStore, mine: BlobStore, receiver: Receiver
) -> None:
    ref = receiver.want(mine.add_bytes(DATA))
    pushing_it = asyncio.create_task(push(wire.open, ref, mine, up=Bucket(10_000_000)))

    def has_some() -> bool:
        arriving = theirs.arriving(ref.digest)
        return arriving is not None and len(arriving.missing()) < 3

    await until(has_some)
    pushing_it.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pushing_it
    await until(lambda: receiver.server.num_streams == 0)
    assert not theirs.has(ref.digest)
    assert receiver.pushed == []
    await push(wire.open, ref, mine, up=Bucket())
    assert theirs.read(ref, max_bytes=ref.size) == DATA


async def test_a_full_disk_at_the_receiver_ends_the_push_and_nothing_is_called_kept(
    wire: Wire,
    theirs: BlobStore,
    mine: BlobStore,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    ref = receiver.want(mine.add_bytes(DATA))
    with monkeypatch.context() as patch:
        patch.setattr("shared.blobs.partial.os.pwrite", full)
        with pytest.raises(SourceFailed, match=r"ended|broke"):
            await push(wire.open, ref, mine, up=Bucket())
    assert receiver.pushed == []
    assert not theirs.has(ref.digest)
    await push(wire.open, ref, mine, up=Bucket())
    assert theirs.verify(ref.digest)


async def test_a_peer_has_so_many_pushes_at_once(
    wire: Wire, mine: BlobStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = receiver.want(mine.add_bytes(DATA))
    slow = [asyncio.create_task(push(wire.open, ref, mine, up=Bucket(100_000))) for _ in range(2)]
    await until(lambda: receiver.server.num_streams == 2)
    with pytest.raises(SourceBusy):
        await push(wire.open, ref, mine, up=Bucket())
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)


async def test_a_receiver_that_falls_silent_is_not_waited_for(
    wire: Wire, mine: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "UNIT_SECONDS", 0.1)
    ref = mine.add_bytes(DATA)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(bytes([Status.OK]) + bytes(8))
        await reader.read()

    wire.handler = silent
    monkeypatch.setattr(streams, "FIRST_BYTE_SECONDS", 0.1)
    with pytest.raises(SourceFailed, match="waited 0 s for an answer"):
        await push(wire.open, ref, mine, up=Bucket())


@pytest.mark.parametrize(
    "bad",
    [
        b"\xff\xff\xff\xff",
        (2).to_bytes(4, "big") + b"{}",
        (60).to_bytes(4, "big") + b'{"size":5,"pieces":["' + b"0" * 37 + b'"]}',
    ],
)
async def test_a_piece_list_that_is_none_ends_the_push(
    wire: Wire, theirs: BlobStore, mine: BlobStore, receiver: Receiver, bad: bytes
) -> None:
    ref = receiver.want(mine.add_bytes(b"12345"))
    request = BlobRequest(op="push", digest=ref.digest, offset=0, length=5)
    answer: Any = b""
    with contextlib.suppress(SourceFailed):
        async with streams.asked(wire.open, request) as (_, reader, writer):
            writer.write(bad)
            answer = await asyncio.wait_for(reader.read(1), 5)
    assert answer in (b"", b"x")
    assert theirs.arriving(ref.digest) is None
    await until(lambda: receiver.server.num_streams == 0)


async def test_what_is_not_here_cannot_be_pushed(wire: Wire, mine: BlobStore) -> None:
    with pytest.raises(BlobMissing):
        await push(wire.open, BlobRef(digest="0" * 64, size=5), mine, up=Bucket())
