"""Blobs that nobody needs are deleted, and never one that somebody may come to need."""

import os
from pathlib import Path

import pytest

from coordinator.ledger import queries
from coordinator.network.disposal import GRACE_SECONDS, sweep
from protocol.blobs import BlobRef
from shared.blobs import BlobStore
from shared.blobs.upkeep import IDLE_SECONDS

WORKER = "12D3KooW" + "A" * 44


def aged(store: BlobStore, data: bytes, *, at: float) -> BlobRef:
    """A blob that has been complete since `at`."""
    ref = store.add_bytes(data)
    os.utime(store.root / "marks" / f"{ref.digest}.json", (at, at))
    return ref


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def long_ago(clock) -> float:
    return clock() - GRACE_SECONDS - 1


@pytest.fixture
def training(announce, ledger, store, long_ago):
    """A checkpoint that its worker announced, with all of its files here: id and manifest."""
    return announce(ledger, store, at=long_ago)


def test_what_nothing_names_is_swept_after_its_grace(ledger, store, clock, long_ago):
    old, new = aged(store, b"old", at=long_ago), aged(store, b"new", at=clock() - 60)
    kept = aged(store, b"the tokenizer", at=long_ago)
    assert sweep(ledger, store, keep={kept.digest}, now=clock()) == (old.digest,)
    assert set(store.digests()) == {new.digest, kept.digest}
    assert sweep(ledger, store, keep={kept.digest}, now=clock()) == ()


def test_a_shard_of_the_ledger_is_never_swept(ledger, store, clock, make, long_ago):
    blob = aged(store, b"shard", at=long_ago)
    shard = make.shard("python", "train").model_copy(update={"blob": blob})
    with ledger.begin() as connection:
        queries.create_run(connection, run="test", coordinator=WORKER, now=clock())
        queries.add_shard(connection, shard, now=clock())
    assert sweep(ledger, store, keep=(), now=clock()) == ()
    assert store.has(blob.digest)


def test_what_a_checkpoint_needs_stays_while_it_is_collected_and_while_it_is_held(
    ledger, store, clock, training
):
    checkpoint_id, manifest = training
    before = set(store.digests())
    assert sweep(ledger, store, keep=(), now=clock()) == ()
    with ledger.begin() as connection:
        queries.mark_durable(connection, checkpoint_id, manifest, clock())
    assert sweep(ledger, store, keep=(), now=clock()) == ()
    assert set(store.digests()) == before


def test_what_a_cancelled_assignment_leaves_is_swept(ledger, store, clock, training):
    checkpoint_id, manifest = training
    with ledger.begin() as connection:
        queries.mark_durable(connection, checkpoint_id, manifest, clock())
        (row,) = queries.all_assignments(connection)
        settled = queries.settle_assignment(
            connection, row.assignment, "cancel", reason="", now=clock()
        )
        assert isinstance(settled, queries.Settled)
    gone = sweep(ledger, store, keep=(), now=clock())
    assert len(gone) == 4
    assert {file.blob.digest for file in manifest.files} <= set(gone)
    (shard,) = store.digests()
    assert store.path(shard).read_bytes() == b"train shard"


def arriving(store: BlobStore, data: bytes, *, at: float) -> BlobRef:
    """A blob of which something came last at `at`."""
    other = BlobStore(store.root.parent / "other")
    pieces = other.pieces(other.add_bytes(data).digest)
    store.partial(pieces.ref(), pieces)
    os.utime(store.root / "partial" / pieces.ref().digest / "done", (at, at))
    return pieces.ref()


def test_what_arrived_of_a_blob_is_swept_once_nothing_came_for_a_day(ledger, store, clock):
    new = arriving(store, b"new", at=clock() - IDLE_SECONDS + 60)
    old = arriving(store, b"old", at=clock() - IDLE_SECONDS - 60)
    assert sweep(ledger, store, keep=(), now=clock()) == (old.digest,)
    assert set(store.partials()) == {new.digest}


def test_what_arrived_of_a_checkpoint_stays_while_it_is_collected(ledger, store, clock, training):
    """However slow its line: the manifest names the file, or the file was asked for."""
    checkpoint_id, manifest = training
    at = clock() - IDLE_SECONDS - 60
    (first, second) = (file.blob for file in manifest.files[:2])
    for ref, data in ((first, b"model.safetensors"), (second, b"optimizer.safetensors")):
        store.delete(ref.digest)
        assert arriving(store, data, at=at) == ref
    wanted = arriving(store, b"wanted", at=at)
    with ledger.begin() as connection:
        queries.want_blobs(connection, checkpoint_id, [wanted], clock())
    assert sweep(ledger, store, keep=(), now=clock()) == ()
    assert set(store.partials()) == {first.digest, second.digest, wanted.digest}
    with ledger.begin() as connection:
        queries.mark_refused(connection, checkpoint_id, "", clock())
    assert {first.digest, second.digest, wanted.digest} <= set(
        sweep(ledger, store, keep=(), now=clock())
    )
    assert store.partials() == {}


def test_a_sweep_mends_what_a_kill_left(ledger, store, clock, training):
    _, manifest = training
    digest = manifest.files[0].blob.digest
    (store.root / "marks" / f"{digest}.json").unlink()
    assert sweep(ledger, store, keep=(), now=clock()) == ()
    assert store.has(digest)


def test_many_blobs_are_swept_in_small_steps(ledger, store, clock, long_ago):
    refs = [aged(store, str(number).encode(), at=long_ago) for number in range(20)]
    assert set(sweep(ledger, store, keep=(), now=clock())) == {ref.digest for ref in refs}
