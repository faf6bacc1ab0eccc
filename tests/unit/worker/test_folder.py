"""One agent a folder, one coordinator a URL."""

import pytest

from worker.errors import NotTheSameCoordinator, WorkerError
from worker.folder import Delivery, WorkerFolder

FIRST = "12D3KooW" + "A" * 44
SECOND = "12D3KooW" + "B" * 44


def test_the_key_stays_the_same_over_restarts(tmp_path):
    folder = WorkerFolder(tmp_path)
    peer_id = folder.identity.peer_id
    folder.close()
    again = WorkerFolder(tmp_path)
    assert again.identity.peer_id == peer_id
    again.close()


def test_a_second_agent_in_the_same_folder_is_refused(tmp_path):
    folder = WorkerFolder(tmp_path)
    with pytest.raises(WorkerError, match="another hdee-worker"):
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
