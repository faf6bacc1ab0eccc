"""Disks that are full in the middle of a transfer, on either side, and have room again."""

import asyncio
import contextlib
import errno
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from protocol.blobs import BlobRef
from protocol.digests import PIECE_BYTES
from shared.blobs import BlobStore
from shared.exchange.exchange import Exchange, FetchFailed
from shared.exchange.over_http import upload_over_http
from shared.exchange.push import push
from shared.exchange.rates import Bucket
from shared.exchange.sources import SourceFailed
from tests.integration.exchange.ground import LIST_BYTES, Ground, Provider, until
from tests.integration.exchange.provider import signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

DATA = random.Random(15).randbytes(6 * PIECE_BYTES + 5)
OLD = random.Random(16).randbytes(PIECE_BYTES + 1)
DISK_BYTES = 10 * PIECE_BYTES
SLOW = 12_000_000.0


class Disk:
    """A small disk of its own that can be filled to its last byte."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._filler = root / "filler"

    def fill(self) -> None:
        """Somebody else writes until nothing more fits."""
        with contextlib.suppress(OSError), self._filler.open("ab") as file:
            while True:
                os.write(file.fileno(), bytes(64 * 1024))
        assert not shutil.disk_usage(self.root).free

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a disk that is small enough to be filled")
    root = tmp_path / "disk"
    root.mkdir()
    options = f"size={DISK_BYTES}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "hdee-test", str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield Disk(root)
    subprocess.run(["umount", "-l", str(root)], check=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(ground: Ground) -> Provider:
    return await ground.provider(rate=SLOW)


async def test_a_fetch_to_a_full_disk_says_so_keeps_old_blobs_and_goes_on_when_there_is_room(
    ground: Ground, provider: Provider, disk: Disk
) -> None:
    ref = provider.store.add_bytes(DATA)
    mine = BlobStore(disk.root / "blobs")
    old = mine.add_bytes(OLD)
    exchange = Exchange(mine)
    with ground.counted() as received:
        fetching = asyncio.create_task(exchange.fetch(ref, [ground.tier(provider)]))
        await until(lambda: received() > ref.size / 2)
        disk.fill()
        with pytest.raises(OSError, match="space left") as full:
            await asyncio.wait_for(fetching, 10)
        assert full.value.errno == errno.ENOSPC
        assert mine.read(old, max_bytes=old.size) == OLD
        assert not mine.has(ref.digest)
        arriving = mine.arriving(ref.digest)
        assert arriving is not None
        missing = arriving.missing()
        assert 0 < len(missing) < 7
        with pytest.raises(OSError, match="space left"):
            await exchange.fetch(ref, [ground.tier(provider)])
        assert mine.arriving(ref.digest) is not None
        disk.free()
        before = received()
        await exchange.fetch(ref, [ground.tier(provider)])
    assert received() - before <= sum(arriving.piece_bytes(index) for index in missing) + LIST_BYTES
    assert mine.read(ref, max_bytes=ref.size) == DATA
    assert mine.verify(old.digest)


async def test_a_fetch_that_can_never_fit_is_not_begun(
    ground: Ground, provider: Provider, disk: Disk
) -> None:
    ref = provider.store.add_bytes(DATA)
    mine = BlobStore(disk.root / "blobs")
    old = mine.add_bytes(OLD)
    disk.fill()
    before = provider.sent
    with pytest.raises(OSError, match=r"\d+ bytes are free"):
        await Exchange(mine).fetch(ref, [ground.tier(provider)])
    assert provider.sent - before < LIST_BYTES
    assert mine.partials() == {}
    assert mine.verify(old.digest)


class Receiver:
    """A provider whose disk is small, to which a blob is to be uploaded."""

    def __init__(self, ground: Ground, provider: Provider, mine: BlobStore, ref: BlobRef) -> None:
        self.ground, self.provider, self.mine, self.ref = ground, provider, mine, ref
        self.old = provider.store.add_bytes(OLD)

    async def push(self, rate: float | None = None) -> None:
        opener = self.ground.asker.opener(self.provider.peer_id, self.provider.maddrs)
        await push(opener, self.ref, self.mine, up=Bucket(rate))

    async def upload(self, rate: float | None = None) -> None:
        url = signed(self.provider.url, self.ref.digest, "put")
        async with httpx.AsyncClient() as client:
            await upload_over_http(client, url, self.ref, self.mine, up=Bucket(rate))

    def missing(self) -> tuple[int, ...]:
        arriving = self.provider.store.arriving(self.ref.digest)
        return tuple(range(7)) if arriving is None else arriving.missing()


@pytest_asyncio.fixture(loop_scope="module")
async def receiver(ground: Ground, disk: Disk) -> AsyncIterator[Receiver]:
    provider = await ground.provider(folder=disk.root / "blobs", http=True)
    mine = ground.store()
    found = Receiver(ground, provider, mine, mine.add_bytes(DATA))
    await provider.tell("want", found.ref)
    yield found
    ground.end(provider)


@pytest.mark.parametrize("way", ["push", "upload"])
async def test_an_upload_to_a_full_disk_fails_and_goes_on_when_there_is_room(
    receiver: Receiver, disk: Disk, way: str
) -> None:
    upload: Any = getattr(receiver, way)
    uploading = asyncio.create_task(upload(SLOW))
    await until(lambda: len(receiver.missing()) < 4)
    disk.fill()
    with pytest.raises(SourceFailed):
        await asyncio.wait_for(uploading, 10)
    store, ref = receiver.provider.store, receiver.ref
    assert not store.has(ref.digest)
    assert receiver.provider.hears("push") == receiver.provider.hears("http") == []
    assert store.verify(receiver.old.digest)
    missing = receiver.missing()
    assert 0 < len(missing) < 4
    with pytest.raises(SourceFailed):
        await upload()
    assert receiver.missing() == missing
    # Who reads is not harmed by a disk that is full.
    mine = receiver.ground.store()
    await Exchange(mine).fetch(receiver.old, [receiver.ground.tier(receiver.provider)])
    disk.free()
    before = receiver.provider.received
    await upload()
    most = len(missing) * PIECE_BYTES + LIST_BYTES
    assert receiver.provider.received - before <= most
    assert store.read(ref, max_bytes=ref.size) == DATA
    assert store.verify(receiver.old.digest)


async def test_a_disk_that_is_full_when_the_blob_is_complete_costs_none_of_it(
    ground: Ground, provider: Provider, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The piece list that makes it a blob does not fit any more."""
    ref = provider.store.add_bytes(DATA)
    mine = BlobStore(disk.root / "blobs")
    exchange, publish = Exchange(mine), mine.publish_partial

    def publish_in_need(*arguments: Any) -> None:
        disk.fill()
        publish(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(mine, "publish_partial", publish_in_need)
        with pytest.raises(OSError, match="space left"):
            await exchange.fetch(ref, [ground.tier(provider)])
    assert not mine.has(ref.digest)
    disk.free()
    before = provider.sent
    await exchange.fetch(ref, [ground.tier(provider)])
    assert mine.verify(ref.digest)
    assert provider.sent - before <= LIST_BYTES


async def test_a_blob_whose_mark_a_crash_took_is_fetched_all_the_same(
    ground: Ground, provider: Provider
) -> None:
    """What arrived was moved to its place, and the process ended before it said so."""
    ref = provider.store.add_bytes(DATA)
    mine = ground.store()
    fetching = asyncio.create_task(Exchange(mine).fetch(ref, [ground.tier(provider)]))
    await until(lambda: mine.arriving(ref.digest) is not None)
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
    folder = mine.root / "partial" / ref.digest
    (folder / "done").write_bytes(b"\x01" * 7)
    os.replace(folder / "data", mine.data_folder / ref.digest)
    again = ground.reopened(mine)
    await Exchange(again).fetch(ref, [ground.tier(provider)])
    assert again.verify(ref.digest)


async def test_nobody_is_blamed_for_a_full_disk(
    ground: Ground, provider: Provider, disk: Disk
) -> None:
    ref = provider.store.add_bytes(DATA)
    mine = BlobStore(disk.root / "blobs")
    exchange = Exchange(mine)
    disk.fill()
    with pytest.raises(OSError, match="free"):
        await exchange.fetch(ref, [ground.tier(provider)])
    disk.free()
    unknown = BlobRef(digest="cd" * 32, size=9)
    with pytest.raises(FetchFailed, match="does not have it for us"):
        await exchange.fetch(unknown, [ground.tier(provider)])
    assert await exchange.fetch(ref, [ground.tier(provider)]) == f"peer {provider.peer_id}"
