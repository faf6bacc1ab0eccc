"""Blobs that nobody needs are deleted, and never one that somebody may come to need."""

import os
from pathlib import Path

import pytest

from coordinator.ledger import queries
from coordinator.lifecycle import Holder
from coordinator.network.disposal import GRACE_SECONDS, sweep
from protocol.blobs import BlobRef
from protocol.manifests import CheckpointManifest, ManifestFile
from protocol.messages import AssignmentHeartbeat
from shared.blobstore import BlobStore

WORKER = "12D3KooW" + "A" * 44


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def aged(store: BlobStore, data: bytes, *, at: float) -> BlobRef:
    """A blob that has been complete since `at`."""
    ref = store.add_bytes(data)
    os.utime(store.root / "marks" / f"{ref.digest}.json", (at, at))
    return ref


@pytest.fixture
def long_ago(clock) -> float:
    return clock() - GRACE_SECONDS - 1


@pytest.fixture
def training(ledger, store, clock, make, long_ago):
    """A checkpoint that its worker announced, with all of its files here: id and manifest."""
    spec = make.spec()
    files = tuple(
        ManifestFile(name=name, blob=aged(store, name.encode(), at=long_ago))
        for name in ("model.safetensors", "optimizer.safetensors", "state.json")
    )
    manifest = CheckpointManifest(
        kind="training", spec=spec.digest, worker=WORKER, step=3, loss=1.0, files=files
    )
    ref = aged(store, manifest.model_dump_json().encode(), at=long_ago)
    with ledger.begin() as connection:
        queries.create_run(connection, run="test", coordinator=WORKER, now=clock())
        shard = make.shard(spec.domain, "train")
        queries.add_shard(connection, shard, now=clock())
        assignment = queries.add_assignment(
            connection, spec, shard=shard.blob, schemes=(), now=clock()
        )
        queries.register_worker(
            connection,
            queries.Registration(
                worker=WORKER,
                name="",
                software_version="1",
                capability=make.capability(),
                maddrs=(),
                token_digest="0" * 64,
                token_expires_at=clock() + 3600,
                certificate_expires_at=clock() + 3600,
            ),
            clock(),
        )
        terms = queries.OfferTerms(
            assignment=assignment, worker=WORKER, free_memory_bytes=1, reason=""
        )
        queries.offer_assignment(connection, terms, now=clock(), heartbeat_seconds=10.0)
        queries.acknowledge_lease(
            connection,
            assignment,
            Holder(worker=WORKER, fencing=1),
            now=clock(),
            heartbeat_seconds=10.0,
        )
        beat = AssignmentHeartbeat(
            fencing=1,
            step=3,
            loss=1.0,
            tokens_per_second=1.0,
            checkpoint=ref,
            checkpoint_step=3,
        )
        queries.renew_lease(
            connection,
            assignment,
            beat,
            worker=WORKER,
            flops_per_second=1e9,
            now=clock(),
            heartbeat_seconds=10.0,
        )
        (row,) = queries.announced_checkpoints(connection)
    return row.checkpoint_id, manifest


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
    assert set(store.digests()) == set()


def test_a_blob_that_has_not_wholly_arrived_is_left_alone(ledger, store, clock):
    other = BlobStore(store.root.parent / "other")
    pieces = other.pieces(other.add_bytes(b"x" * 10).digest)
    store.partial(pieces.ref(), pieces)
    assert sweep(ledger, store, keep=(), now=clock() + 1e9) == ()
    assert store.arriving(pieces.ref().digest) is not None


def test_many_blobs_are_swept_in_small_steps(ledger, store, clock, long_ago):
    refs = [aged(store, str(number).encode(), at=long_ago) for number in range(20)]
    assert set(sweep(ledger, store, keep=(), now=clock())) == {ref.digest for ref in refs}
