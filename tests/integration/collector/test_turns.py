"""How many collections run at once, whose turn it is, and what a full disk does to them."""

import asyncio
import errno
from typing import Any

import pytest

from coordinator.ledger import queries
from coordinator.network.collector import DISK_RETRY_SECONDS, MAX_COLLECTIONS
from shared.exchange.serving import BlobServer
from shared.exchange.streams import FIRST_BYTE_SECONDS
from tests.integration.collector.place import Place


async def test_only_so_many_collections_run_at_once_and_every_one_gets_its_turn(
    place: Place,
) -> None:
    for rng_seed in range(MAX_COLLECTIONS + 3):
        with place.ledger.begin() as connection:
            queries.expire_leases_of(connection, place.worker, now=place.clock())
        place.lease(place.make.spec(rng_seed=rng_seed + 1))
        place.announce_bytes(b"nobody can send this %d" % rng_seed, 5)
    await place.collector.collect()
    assert len(asyncio.all_tasks()) - 1 <= MAX_COLLECTIONS
    await place.until(lambda: len(place.wanted()) == MAX_COLLECTIONS + 3)


async def test_workers_that_send_nothing_do_not_keep_the_others_from_being_collected(
    place: Place,
) -> None:
    silent: list[int] = []

    class Holding(BlobServer):
        """Says nothing on the first streams."""

        async def serve(self, info: Any, reader: Any, writer: Any) -> None:
            if len(silent) < MAX_COLLECTIONS:
                silent.append(1)
                await reader.read()
                writer.close()
            else:
                await super().serve(info, reader, writer)

    await place.connect(server=Holding(place.theirs, lambda *_: True))
    refs = []
    for rng_seed in range(MAX_COLLECTIONS + 1):
        with place.ledger.begin() as connection:
            queries.expire_leases_of(connection, place.worker, now=place.clock())
        place.lease(place.make.spec(rng_seed=rng_seed + 1))
        refs.append(place.training(5)[0])
    started = asyncio.get_running_loop().time()
    assert await place.until_decided(refs[-1]) == ("durable", "")
    assert len(silent) == MAX_COLLECTIONS
    assert asyncio.get_running_loop().time() - started < FIRST_BYTE_SECONDS
    for ref in refs[:-1]:
        assert await place.until_decided(ref) == ("durable", "")


async def test_a_full_disk_is_told_now_and_then_and_collecting_goes_on_when_it_has_room(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    await place.connect()
    ref, _ = place.training(10)

    def told() -> int:
        return sum("the disk failed" in record.message for record in caplog.records)

    with monkeypatch.context() as patch:
        patch.setattr("shared.blobs.partial.os.pwrite", full)
        await place.until(lambda: told() == 1)
        since = place.clock()
        await place.until(lambda: told() == 2)
        assert place.clock() - since >= DISK_RETRY_SECONDS / 2
    assert (await place.until_decided(ref))[0] == "durable"
