"""Checkpoints that are named count against the cap of the store, and are never refused by it."""

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.messages import Offer
from shared.blobs import BlobStore
from worker.cache import Cache
from worker.folder import WorkerFolder
from worker.holdings import Holdings
from worker.shelf import Shelf

CHECKPOINT_BYTES = 65_536


class Member:
    """The part of a membership that a shelf needs; nobody hears what it says."""

    def __init__(self, folder: WorkerFolder, cache: Cache) -> None:
        self.folder = folder
        self.durable: set[str] = set()
        self.forgotten: list[str] = []
        nobody: Any = SimpleNamespace(forget=self._forget)
        self.holdings = Holdings(folder, cache, transfers=nobody, presence=nobody)

    def publish(self, *_: object, **__: object) -> None:
        return

    def _forget(self, keys: Iterable[str]) -> None:
        self.forgotten += keys


@pytest.fixture
def folder(tmp_path):
    found = WorkerFolder(tmp_path / "worker")
    yield found
    found.close()


@pytest.fixture
def shelf_of(folder, make):
    def made(*, cap_bytes: int) -> tuple[Shelf, BlobStore, Cache]:
        shard = folder.blobs.add_bytes(b"shard" * 10_000)
        offer = Offer(
            assignment="a" + "0" * 16,
            fencing=1,
            expires_in=30.0,
            spec=make.spec(),
            shard=shard,
            parent=None,
            resume=None,
            checkpoint_seconds=10.0,
            reason="",
        )
        folder.remember_offer(offer)
        cache = Cache(folder, cap_bytes=cap_bytes)
        cache.add(shard, public=True)
        member: Any = Member(folder, cache)
        return Shelf(member, offer, SimpleNamespace(update=lambda **_: None)), folder.blobs, cache

    return made


@pytest.fixture
def checkpoint(tmp_path):
    made = tmp_path / "checkpoint"
    made.mkdir()
    for number, name in enumerate(("model", "optimizer", "state")):
        suffix = "json" if name == "state" else "safetensors"
        (made / f"{name}.{suffix}").write_bytes(bytes([number]) * CHECKPOINT_BYTES)
    return made


async def test_inputs_of_earlier_work_make_way_for_a_checkpoint(folder, shelf_of, checkpoint):
    shelf, blobs, cache = shelf_of(cap_bytes=6 * CHECKPOINT_BYTES)
    earlier = blobs.add_bytes(b"x" * 3 * CHECKPOINT_BYTES)
    cache.add(earlier, public=True)
    named = await shelf.put("training", checkpoint, {"event": "checkpoint", "step": 5})
    assert all(blobs.has(ref.digest) for ref in named.blobs)
    assert not blobs.has(earlier.digest)
    (offer,) = folder.remembered_offers().values()
    assert blobs.has(offer.shard.digest)
    assert blobs.size_on_disk() <= 6 * CHECKPOINT_BYTES


async def test_a_checkpoint_is_named_where_nothing_can_make_way(shelf_of, checkpoint, caplog):
    shelf, blobs, _ = shelf_of(cap_bytes=CHECKPOINT_BYTES)
    named = await shelf.put("training", checkpoint, {"event": "checkpoint", "step": 5})
    assert all(blobs.has(ref.digest) for ref in named.blobs)
    assert "raise --disk" in caplog.text
    assert asyncio.get_running_loop().time() >= named.at
