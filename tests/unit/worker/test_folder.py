"""One agent a folder, one coordinator a URL."""

import os

import pytest

from protocol.digests import canonical_bytes
from protocol.manifests import FILES, CheckpointManifest, ManifestFile
from protocol.messages import Offer
from shared.blobs import BlobStore
from shared.blobs.upkeep import IDLE_SECONDS
from shared.clock import now
from worker.errors import NotTheSameCoordinator, WorkerError
from worker.folder import KEPT_WORK_SECONDS, FolderInUse, WorkerFolder
from worker.notes import Delivery

FIRST = "12D3KooW" + "A" * 44
SECOND = "12D3KooW" + "B" * 44


def test_the_key_stays_the_same_over_restarts(tmp_path):
    folder = WorkerFolder(tmp_path)
    peer_id = folder.identity.peer_id
    folder.close()
    again = WorkerFolder(tmp_path)
    assert again.identity.peer_id == peer_id
    again.close()


@pytest.mark.parametrize("was_there", [True, False])
def test_what_was_made_for_nothing_is_gone_again_and_what_was_there_stays(tmp_path, was_there):
    root = tmp_path / "share" / "hdee" / "host_1"
    if was_there:
        root.mkdir(parents=True)
    WorkerFolder(root).close_or_remove(remains=False)
    assert (root / "worker.key").exists() is was_there
    assert (tmp_path / "share").exists() is was_there
    kept = WorkerFolder(root)
    kept.close_or_remove(remains=True)
    assert (root / "worker.key").exists()


def test_a_second_agent_in_the_same_folder_is_refused(tmp_path):
    folder = WorkerFolder(tmp_path)
    with pytest.raises(FolderInUse, match="another hdee-worker"):
        WorkerFolder(tmp_path)
    folder.close()


def test_another_key_behind_a_known_address_is_refused(tmp_path):
    folder = WorkerFolder(tmp_path)
    folder.pin_coordinator("http://a", FIRST)
    folder.pin_coordinator("http://a", FIRST)
    folder.pin_coordinator("http://b", SECOND)
    with pytest.raises(NotTheSameCoordinator, match="new key"):
        folder.pin_coordinator("http://a", SECOND)
    folder.close()


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkerError, match="--folder"):
        WorkerFolder(tmp_path / "file")


def test_a_torn_offer_is_forgotten_not_fatal(tmp_path):
    folder = WorkerFolder(tmp_path)
    (tmp_path / "offer.json").write_text('{"assignment": "a12')
    assert folder.remembered_offer() is None
    folder.forget_offer()
    assert not (tmp_path / "offer.json").exists()
    folder.close()


def test_each_device_has_an_offer_of_its_own_and_the_first_one_s_is_where_it_was(tmp_path, make):
    folder = WorkerFolder(tmp_path)
    first, third = offer(folder, make, number=1), offer(folder, make, number=2)
    folder.remember_offer(third, 2)
    assert folder.remembered_offer() is None
    folder.remember_offer(first)
    assert sorted(one.name for one in tmp_path.glob("offer*")) == ["offer-2.json", "offer.json"]
    assert folder.remembered_offers() == {0: first, 2: third}
    works = [folder.work(one) for one in (first.assignment, third.assignment, "a" * 17)]
    for work in works:
        work.mkdir(parents=True)
    folder.drop_work(third.assignment)
    assert works[1].exists(), "another device works on it"
    folder.forget_offer(2)
    folder.drop_work(third.assignment)
    assert [work.exists() for work in works] == [True, False, True]
    assert folder.remembered_offers() == {0: first}
    assert folder.path("trainer.log", 0) == tmp_path / "trainer.log"
    assert folder.path("trainer.log", 2) == tmp_path / "trainer-2.log"
    folder.close()


def test_a_sweep_keeps_what_a_delivery_needs_and_nothing_else(tmp_path):
    folder = WorkerFolder(tmp_path)
    kept, left = folder.blobs.add_bytes(b"kept"), folder.blobs.add_bytes(b"left")
    delivery = Delivery(assignment="a" + "0" * 16, submission=None, blobs=(kept.digest,), at=1.0)
    folder.remember_deliveries({"0" * 64: delivery})
    assert folder.remembered_deliveries() == {"0" * 64: delivery}
    (tmp_path / "work" / "a0").mkdir(parents=True)
    folder.sweep()
    assert folder.blobs.has(kept.digest)
    assert not folder.blobs.has(left.digest)
    assert not (tmp_path / "work" / "a0").exists()
    folder.close()


@pytest.mark.parametrize("torn", ["", "{", "[1]", '{"a": 5}', f'{{"{"0" * 64}": ["{"1" * 64}"]}}'])
def test_torn_deliveries_are_none(tmp_path, torn):
    folder = WorkerFolder(tmp_path)
    (tmp_path / "deliveries.json").write_text(torn)
    assert folder.remembered_deliveries() == {}
    folder.close()


@pytest.fixture
def folder(tmp_path):
    found = WorkerFolder(tmp_path)
    yield found
    found.close()


def checkpoint(folder, spec, *, step):
    """A training checkpoint that this worker made, as it puts it into its store."""
    files = tuple(
        ManifestFile(
            name=name, blob=folder.blobs.add_bytes(f"{name} {spec.digest} {step}".encode())
        )
        for name in FILES["training"]
    )
    manifest = CheckpointManifest(
        kind="training", spec=spec.digest, worker=FIRST, step=step, loss=1.0, files=files
    )
    ref = folder.blobs.add_bytes(canonical_bytes(manifest))
    return {ref.digest, *(file.blob.digest for file in files)}


def offer(folder, make, *, number=0):
    spec = make.spec()
    shard = folder.blobs.add_bytes(f"shard {number}".encode())
    return Offer(
        assignment=f"a{number:016d}",
        fencing=1,
        expires_in=30.0,
        spec=spec,
        shard=shard,
        parent=None,
        resume=None,
        checkpoint_seconds=10.0,
        reason="",
    )


def test_a_sweep_keeps_what_the_leases_of_all_devices_start_from(tmp_path, make):
    folder = WorkerFolder(tmp_path)
    first, second = offer(folder, make, number=1), offer(folder, make, number=2)
    stray = folder.blobs.add_bytes(b"nobody's").digest
    folder.remember_offer(first)
    folder.remember_offer(second, 1)
    assert folder.sweep() == (stray,)
    assert folder.blobs.has(first.shard.digest)
    assert folder.blobs.has(second.shard.digest)
    folder.close()


def test_a_sweep_keeps_what_was_made_under_the_lease_and_nobody_has_yet(folder, make):
    lease = offer(folder, make)
    folder.remember_offer(lease)
    mine = checkpoint(folder, lease.spec, step=3) | checkpoint(folder, lease.spec, step=7)
    others = checkpoint(folder, make.spec(domain="drama"), step=3)
    assert set(folder.sweep()) == others
    assert set(folder.blobs.digests()) == {*mine, lease.shard.digest}
    folder.forget_offer()
    assert set(folder.sweep()) == {*mine, lease.shard.digest}


def test_notes_of_deliveries_that_cannot_be_read_cost_nobody_an_expert(folder, make, caplog):
    """As after a change of version: what was made stays, and the log says why."""
    mine = checkpoint(folder, make.spec(), step=3)
    left = folder.blobs.add_bytes(b"left")
    (folder.root / "deliveries.json").write_text('{"from": "another version"}')
    for _ in range(2):
        folder.sweep()
        assert set(folder.blobs.digests()) == mine
        assert "all that this worker made is kept" in caplog.text
        folder.remember_deliveries({})
        caplog.clear()
    (folder.root / "deliveries.unreadable.json").unlink()
    assert set(folder.sweep()) == mine
    assert not folder.blobs.has(left.digest)


def trained(folder, assignment, *, age):
    """A folder of training whose newest checkpoint is `age` seconds old."""
    state = folder.work(assignment) / "checkpoints" / "step-00000005" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    os.utime(state, (now() - age, now() - age))
    return folder.work(assignment)


def test_training_that_lost_its_lease_stays_for_a_while(folder, make):
    """A laptop that slept for a day goes on where it was if it gets the assignment again."""
    lease = offer(folder, make)
    folder.remember_offer(lease)
    current = trained(folder, lease.assignment, age=2 * KEPT_WORK_SECONDS)
    ages = (KEPT_WORK_SECONDS - 60, 3600, 7200)
    old, newest, newer = (trained(folder, f"a{n:016d}", age=age) for n, age in enumerate(ages, 1))
    empty = folder.work("a" + "9" * 16)
    empty.mkdir()
    folder.sweep()
    assert current.exists()
    assert newest.exists()
    assert newer.exists()
    assert not old.exists()
    assert not empty.exists()


def test_a_worker_of_several_devices_keeps_what_each_of_them_trained_last(folder):
    """All of them were asked to stop, and gave their leases back."""
    folder.num_devices = 4
    kept = [trained(folder, f"a{n:016d}", age=60 * n) for n in range(5)]
    folder.sweep()
    assert [one.exists() for one in kept] == [True, True, True, True, False]


def test_training_that_lost_its_lease_does_not_stay_for_ever(folder):
    stays = trained(folder, "a" + "1" * 16, age=KEPT_WORK_SECONDS - 60)
    goes = trained(folder, "a" + "2" * 16, age=KEPT_WORK_SECONDS + 60)
    folder.sweep()
    assert stays.exists()
    assert not goes.exists()


def test_a_sweep_mends_what_a_kill_left_of_a_delivery(folder):
    ref = folder.blobs.add_bytes(b"an expert")
    one = Delivery(assignment="a" + "0" * 16, submission=None, blobs=(ref.digest,), at=1.0)
    folder.remember_deliveries({ref.digest: one})
    (folder.blobs.root / "marks" / f"{ref.digest}.json").unlink()
    assert folder.sweep() == ()
    assert folder.blobs.has(ref.digest)


def test_half_an_input_of_the_lease_is_kept_however_old_and_others_for_a_day(
    folder, make, tmp_path
):
    source = BlobStore(tmp_path / "source")
    pieces = [source.pieces(source.add_bytes(data).digest) for data in (b"one", b"two", b"three")]
    for number, each in enumerate(pieces):
        folder.blobs.partial(each.ref(), each)
        at = now() - (IDLE_SECONDS + 60 if number < 2 else 60)
        os.utime(folder.blobs.root / "partial" / each.ref().digest / "done", (at, at))
    lease = offer(folder, make).model_copy(update={"shard": pieces[0].ref()})
    folder.remember_offer(lease)
    folder.sweep()
    assert set(folder.blobs.partials()) == {pieces[0].ref().digest, pieces[2].ref().digest}
