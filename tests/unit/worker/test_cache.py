"""Inputs stay for the next lease, and no eviction ever costs what only this worker has."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.blobs import BlobRef
from protocol.digests import PIECE_BYTES
from shared.blobs import BlobStore
from worker.cache import Cache
from worker.folder import WorkerFolder
from worker.notes import Delivery

BLOCKS = 65_536
"""Bytes of each blob here: whole blocks on any file system."""


@pytest.fixture
def folder(tmp_path: Path):
    found = WorkerFolder(tmp_path / "worker")
    yield found
    found.close()


def blob(folder: WorkerFolder, number: int) -> BlobRef:
    return folder.blobs.add_bytes(bytes([number]) * BLOCKS)


def delivered(folder: WorkerFolder, *refs: BlobRef) -> None:
    one = Delivery(
        assignment="a" + "0" * 16,
        submission=None,
        blobs=tuple(ref.digest for ref in refs),
        at=1.0,
    )
    folder.remember_deliveries({"0" * 64: one})


def test_inputs_outlive_the_agent_used_last_first(folder):
    cache = Cache(folder, cap_bytes=None)
    shard, other, weights = (blob(folder, number) for number in range(3))
    cache.add(shard, public=True)
    cache.add(other, public=True)
    cache.add(weights, public=False)
    cache.add(shard, public=True)
    gone = blob(folder, 9)
    assert folder.sweep() == (gone.digest,)
    again = Cache(folder, cap_bytes=None)
    assert again.digests() == (shard.digest, weights.digest, other.digest)
    assert again.public_refs() == (shard, other)
    assert again.is_public(shard.digest)
    assert not again.is_public(weights.digest)
    assert not again.is_public("0" * 64)


def test_what_was_used_longest_ago_goes_first_and_no_more_than_must(folder):
    cache = Cache(folder, cap_bytes=3 * BLOCKS)
    first, second, third = (blob(folder, number) for number in range(3))
    for ref in (first, second, third, first):
        cache.add(ref, public=True)
    assert cache.make_room(0, needed=()) == ()
    assert cache.make_room(BLOCKS, needed=()) == (second.digest,)
    assert cache.digests() == (first.digest, third.digest)
    assert Cache(folder, cap_bytes=None).digests() == (first.digest, third.digest)
    assert cache.make_room(2 * BLOCKS, needed=()) == (third.digest,)


def test_a_smaller_cap_takes_effect_at_once(folder):
    cache = Cache(folder, cap_bytes=None)
    refs = [blob(folder, number) for number in range(4)]
    for ref in refs:
        cache.add(ref, public=True)
    gone = Cache(folder, cap_bytes=2 * BLOCKS).make_room(0, needed=())
    assert gone == tuple(ref.digest for ref in refs[:2])


def test_nothing_that_is_needed_or_not_durable_or_not_an_input_is_evicted(folder):
    cache = Cache(folder, cap_bytes=4 * BLOCKS)
    needed, owed, made, spare = (blob(folder, number) for number in range(4))
    for ref in (owed, needed, spare):
        cache.add(ref, public=True)
    delivered(folder, owed)
    assert cache.make_room(BLOCKS, needed={needed.digest}) == (spare.digest,)
    with pytest.raises(OSError, match="--disk") as full:
        cache.make_room(2 * BLOCKS, needed={needed.digest})
    assert full.value.errno == errno.ENOSPC
    assert all(folder.blobs.has(ref.digest) for ref in (needed, owed, made))


def test_where_room_cannot_be_made_nothing_is_lost(folder):
    cache = Cache(folder, cap_bytes=2 * BLOCKS)
    ref = blob(folder, 1)
    cache.add(ref, public=True)
    with pytest.raises(OSError, match="raise --disk"):
        cache.make_room(3 * BLOCKS, needed=())
    assert folder.blobs.has(ref.digest)


def test_the_disk_is_a_cap_too(folder):
    cache = Cache(folder, cap_bytes=None)
    free = shutil.disk_usage(folder.root).free
    with pytest.raises(OSError, match="--folder") as full:
        cache.make_room(2 * free, needed=())
    assert full.value.errno == errno.ENOSPC


def test_what_was_made_here_counts_against_the_cap_and_needs_no_more_of_the_disk(folder):
    cache = Cache(folder, cap_bytes=3 * BLOCKS)
    first, second = (blob(folder, number) for number in range(2))
    for ref in (first, second):
        cache.add(ref, public=True)
    assert cache.make_way(BLOCKS, needed=()) == ()
    assert cache.make_way(2 * BLOCKS, needed={first.digest}) == (second.digest,)
    with pytest.raises(OSError, match="raise --disk"):
        cache.make_way(3 * BLOCKS, needed={first.digest})
    free = shutil.disk_usage(folder.root).free
    assert Cache(folder, cap_bytes=None).make_way(2 * free, needed=()) == ()


def test_what_has_arrived_of_a_blob_needs_no_room_again(folder, tmp_path):
    source = BlobStore(tmp_path / "source")
    data = bytes([7]) * PIECE_BYTES
    pieces = source.pieces(source.add_bytes(data + b"a").digest)
    ref = pieces.ref()
    assert folder.blobs.bytes_to_come(ref) == ref.size
    arriving = folder.blobs.partial(ref, pieces)
    assert folder.blobs.bytes_to_come(ref) == ref.size
    arriving.write_piece(0, data)
    assert folder.blobs.bytes_to_come(ref) == 1
    cache = Cache(folder, cap_bytes=PIECE_BYTES + BLOCKS)
    assert cache.make_room(folder.blobs.bytes_to_come(ref), needed={ref.digest}) == ()
    arriving.write_piece(1, b"a")
    arriving.commit()
    assert folder.blobs.bytes_to_come(ref) == 0


def test_what_arrived_of_blobs_that_no_longer_come_goes_before_any_input(folder, tmp_path):
    source = BlobStore(tmp_path / "source")
    data = bytes([7]) * PIECE_BYTES
    partials = []
    for last in (b"a", b"b"):
        pieces = source.pieces(source.add_bytes(data + last).digest)
        folder.blobs.partial(pieces.ref(), pieces).write_piece(0, data)
        partials.append(pieces.ref().digest)
    cache = Cache(folder, cap_bytes=2 * PIECE_BYTES + 8 * BLOCKS)
    ref = blob(folder, 1)
    cache.add(ref, public=True)
    assert cache.make_room(PIECE_BYTES, needed={partials[0]}) == ()
    assert set(folder.blobs.partials()) == {partials[0]}
    assert folder.blobs.has(ref.digest)


def test_an_input_that_the_disk_damaged_between_two_lives_is_deleted(folder):
    cache = Cache(folder, cap_bytes=None)
    good, bad = blob(folder, 1), blob(folder, 2)
    for ref in (good, bad):
        cache.add(ref, public=True)
    assert cache.is_sound(bad.digest)
    os.truncate(folder.blobs.path(bad.digest), 5)
    again = Cache(folder, cap_bytes=None)
    assert again.is_sound(good.digest)
    assert not again.is_sound(bad.digest)
    assert not folder.blobs.has(bad.digest)
    assert again.digests() == (good.digest,)
    assert not again.is_sound(bad.digest)


@pytest.mark.parametrize("torn", ["", "{", "[1]", '{"a": 5}', f'{{"{"0" * 64}": {{"size": -1}}}}'])
def test_a_torn_list_of_inputs_is_none_and_costs_only_a_fetch(folder, torn):
    ref = blob(folder, 1)
    (folder.root / "inputs.json").write_text(torn)
    cache = Cache(folder, cap_bytes=None)
    assert cache.digests() == ()
    assert folder.sweep() == (ref.digest,)


def test_a_kill_between_eviction_and_its_note_leaves_no_phantom(folder):
    cache = Cache(folder, cap_bytes=None)
    ref, other = blob(folder, 1), blob(folder, 2)
    cache.add(ref, public=True)
    cache.add(other, public=True)
    folder.blobs.delete(ref.digest)
    again = Cache(folder, cap_bytes=BLOCKS)
    assert again.digests() == (other.digest,)
    assert ref.digest not in again
    assert not again.is_public(ref.digest)
    assert again.make_room(0, needed=()) == ()


def test_the_list_of_inputs_has_an_end(folder, monkeypatch):
    monkeypatch.setattr("worker.cache.MAX_INPUTS", 5)
    cache = Cache(folder, cap_bytes=None)
    digests = [f"{number:064x}" for number in range(5 + 3)]
    for digest in digests:
        cache.add(BlobRef(digest=digest, size=1), public=True)
    assert len(folder.remembered_inputs()) == 5
    assert digests[2] not in cache
    assert digests[3] in cache


moves = st.lists(
    st.tuples(st.sampled_from(["add", "room", "owe", "restart"]), st.integers(0, 5)), max_size=12
)


@settings(max_examples=25, deadline=None)
@given(moves)
def test_whatever_happens_the_cap_holds_and_what_is_owed_stays(tmp_path_factory, story):
    """The store holds at most its cap after `make_room`, or `make_room` says that it cannot."""
    folder = WorkerFolder(tmp_path_factory.mktemp("worker"))
    cap = 4 * BLOCKS
    cache, owed = Cache(folder, cap_bytes=cap), set()
    for move, number in story:
        ref = BlobStore(folder.root / "other").add_bytes(bytes([number]) * BLOCKS)
        if move == "add":
            folder.blobs.add_bytes(bytes([number]) * BLOCKS)
            cache.add(ref, public=True)
        elif move == "owe":
            owed.add(blob(folder, 100 + number))
            delivered(folder, *owed)
        elif move == "restart":
            folder.sweep()
            cache = Cache(folder, cap_bytes=cap)
        else:
            try:
                cache.make_room(BLOCKS, needed={ref.digest})
            except OSError:
                held = [one for one in cache.digests() if one != ref.digest]
                kept = folder.blobs.size_on_disk() - BLOCKS * len(held)
                assert kept + BLOCKS > cap
            else:
                assert folder.blobs.size_on_disk() + BLOCKS <= cap
        assert all(folder.blobs.has(one.digest) for one in owed)
    folder.close()


CHURN = """
import itertools, random, sys
from pathlib import Path
from worker.cache import Cache
from worker.folder import WorkerFolder
folder = WorkerFolder(Path(sys.argv[1]))
cache, draw = Cache(folder, cap_bytes=6 * 65536), random.Random(sys.argv[2])
for number in itertools.count():
    cache.make_room(65536, needed=())
    cache.add(folder.blobs.add_bytes(draw.randbytes(65536)), public=True)
    print(number, flush=True)
"""


def test_kills_at_any_moment_leave_a_list_that_is_true_and_a_store_under_its_cap(tmp_path):
    root = tmp_path / "worker"
    for rng_seed, steps in enumerate((7, 8, 11)):
        child = subprocess.Popen(
            [sys.executable, "-c", CHURN, str(root), str(rng_seed)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        )
        assert child.stdout is not None
        for _ in range(steps):
            assert child.stdout.readline()
        child.kill()
        child.wait()
        child.stdout.close()
        with contextlib.closing(WorkerFolder(root)) as folder:
            folder.sweep()
            cache = Cache(folder, cap_bytes=6 * BLOCKS)
            assert set(cache.digests()) == set(folder.blobs.digests())
            assert len(cache.digests()) >= 5
            assert all(cache.is_sound(digest) for digest in cache.digests())
            cache.make_room(0, needed=())
            assert folder.blobs.size_on_disk() <= 6 * BLOCKS
