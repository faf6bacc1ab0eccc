"""What becomes durable, and that nothing is lost or kept too long on the way."""

import asyncio
import json
from pathlib import Path

from coordinator.ledger import queries
from shared.blobs import BlobStore
from tests.integration.collector.place import Place, digests_of, sound


async def test_the_last_two_training_checkpoints_are_kept_and_older_blobs_deleted(
    place: Place,
) -> None:
    await place.connect()
    made = []
    for step in (5, 10, 15):
        made.append(place.training(step))
        assert await place.until_decided(made[-1][0]) == ("durable", "")
    assert place.decided(made[0][0])[0] == "superseded"
    assert set(place.store.digests()) == digests_of(*made[1]) | digests_of(*made[2])
    assert all(place.store.verify(digest) for digest in place.store.digests())
    with place.ledger.read() as connection:
        resume = queries.resume_of(connection, place.assignment, None)
    assert resume is not None
    assert resume.manifest == made[2][1]


async def test_a_sound_expert_is_durable_and_waits_for_its_verification(place: Place) -> None:
    await place.connect()
    manifest = place.manifest(sound(place.spec, place.spec.train.num_steps), "expert")
    ref = place.submit(manifest)
    assert await place.until_decided(ref) == ("durable", "")
    assert set(place.store.digests()) == digests_of(ref, manifest)
    with place.ledger.read() as connection:
        [row] = queries.durable_submissions(connection)
    assert (row.assignment, row.manifest) == (place.assignment, manifest)
    assert place.standing().expires_at is None


async def test_a_new_collector_goes_on_with_what_the_old_one_had_brought(place: Place) -> None:
    await place.connect()
    ref, manifest = place.training(5)
    model, optimizer = (
        manifest.blob(name).digest for name in ("model.safetensors", "optimizer.safetensors")
    )
    half = asyncio.Event()
    place.on_read = lambda digest: half.set() if digest == optimizer else None
    await place.collector.collect()
    async with asyncio.timeout(60):
        await half.wait()
    await place.collector.stop()
    assert place.decided(ref)[0] == "announced"
    asked = place.asked.count(model)
    place.collector = place.new_collector()
    assert await place.until_decided(ref) == ("durable", "")
    assert place.asked.count(model) == asked, "what is here is not fetched again"


async def test_a_blob_deleted_under_a_finished_check_is_brought_again_before_it_counts(
    place: Place,
) -> None:
    """Two checkpoints may have a blob in common; the end of one deletes what the other needs."""
    await place.connect()
    ref, manifest = place.training(5)
    model = manifest.blob("model.safetensors").digest
    deletions = []

    class Deleting(BlobStore):
        def path(self, digest: str) -> Path:
            found = super().path(digest)
            if digest == optimizer and not deletions:
                deletions.append(model)
                self.delete(model)
            return found

    optimizer = manifest.blob("optimizer.safetensors").digest
    place.store = Deleting(place.store.root)
    place.collector = place.new_collector()
    assert await place.until_decided(ref) == ("durable", "")
    assert deletions == [model]
    assert set(place.store.digests()) == digests_of(ref, manifest)
    assert (
        json.loads(place.store.path(manifest.blob("state.json").digest).read_bytes())["step"] == 5
    )
