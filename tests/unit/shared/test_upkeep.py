"""A store finds what is damaged and mends what a crash left, whoever else uses it."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.digests import PIECE_BYTES
from shared.blobs import BadBlob, BlobMissing, BlobStore
from shared.blobs.upkeep import IDLE_SECONDS, STRAY_SECONDS, Mended, drop_idle, find_damage, mend
from shared.clock import now

NOTHING = Mended((), (), ())
DIGEST = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def damaged(store: BlobStore, progress=lambda *_: None) -> dict[str, str]:
    return {one.digest: one.words for one in find_damage(store, progress=progress)}


def arriving(store: BlobStore, data: bytes, *, idle: float = 0.0) -> str:
    """A blob of which nothing arrived for `idle` seconds; its digest."""
    source = BlobStore(store.root.parent / "source")
    pieces = source.pieces(source.add_bytes(data).digest)
    partial = store.partial(pieces.ref(), pieces)
    partial.write_piece(0, data[:PIECE_BYTES])
    at = now() - idle
    os.utime(store.root / "partial" / pieces.ref().digest / "done", (at, at))
    return pieces.ref().digest


def test_a_whole_store_has_no_damage_and_nothing_to_mend(store):
    for size in (0, 1, PIECE_BYTES + 1):
        store.add_bytes(bytes(size))
    said = []
    assert damaged(store, lambda done, total: said.append((done, total))) == {}
    assert said[0] == (0, PIECE_BYTES + 2)
    assert said[-1] == (PIECE_BYTES + 2, PIECE_BYTES + 2)
    assert said == sorted(said)
    assert mend(store, now=now() + 1e9) == NOTHING


@settings(max_examples=20, deadline=None)
@given(st.integers(min_value=0, max_value=2 * PIECE_BYTES + 9), st.integers(0, 7))
def test_every_flipped_bit_is_found_and_its_piece_named(tmp_path_factory, place, bit):
    store = BlobStore(tmp_path_factory.mktemp("store"))
    ref = store.add_bytes(random.Random(1).randbytes(2 * PIECE_BYTES + 10))
    path = store.path(ref.digest)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))
    words = f"1 of 3 pieces differ, the first is {place // PIECE_BYTES}"
    assert damaged(store) == {ref.digest: words}


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 4])
def test_a_blob_of_another_length_is_damaged(store, size):
    ref = store.add_bytes(bytes(PIECE_BYTES + 5))
    os.truncate(store.path(ref.digest), size)
    assert damaged(store) == {ref.digest: f"{size} bytes, expected {PIECE_BYTES + 5}"}


def test_a_damaged_mark_is_found_and_mended(store):
    torn, wrong = store.add_bytes(b"torn"), store.add_bytes(b"wrong")
    marks = store.root / "marks"
    other = (marks / f"{torn.digest}.json").read_bytes()
    (marks / f"{torn.digest}.json").write_text("{")
    (marks / f"{wrong.digest}.json").write_bytes(other)
    assert damaged(store) == {
        torn.digest: "its mark cannot be read",
        wrong.digest: "its mark is that of another blob",
    }
    assert mend(store, now=now()).marked == tuple(sorted((torn.digest, wrong.digest)))
    assert damaged(store) == {}
    assert store.pieces(wrong.digest).ref() == wrong


def test_data_that_lost_its_mark_is_marked_again_if_it_is_what_it_says(store):
    ref = store.add_bytes(b"sound")
    (store.root / "marks" / f"{ref.digest}.json").unlink()
    assert not store.has(ref.digest)
    assert mend(store, now=now()) == Mended((ref.digest,), (), ())
    assert store.read(ref, max_bytes=10) == b"sound"


def test_data_without_a_mark_that_answers_to_nothing_goes_after_its_grace(store):
    stray = store.root / "data" / DIGEST
    stray.write_bytes(b"something else")
    assert mend(store, now=now()) == NOTHING
    assert stray.exists()
    assert mend(store, now=now() + STRAY_SECONDS + 1) == Mended((), (), (DIGEST,))
    assert not stray.exists()


def test_damaged_data_with_a_damaged_mark_is_shown_and_not_deleted(store):
    ref = store.add_bytes(b"data")
    store.path(ref.digest).write_bytes(b"more")
    (store.root / "marks" / f"{ref.digest}.json").write_text("{")
    assert mend(store, now=now() + STRAY_SECONDS + 1) == NOTHING
    assert damaged(store) == {ref.digest: "its mark cannot be read"}


def test_a_mark_without_data_and_a_draft_of_a_mark_go_at_once(store):
    marks = store.root / "marks"
    (marks / f"{DIGEST}.json").write_text("{}")
    (marks / f".{DIGEST}.json.0123").write_text("{")
    assert mend(store, now=now()) == Mended((), (DIGEST,), ())
    assert list(marks.iterdir()) == []


def test_what_is_not_ours_in_the_folders_stays(store):
    (store.root / "data" / "README").write_text("mine")
    assert mend(store, now=now() + 1e9) == NOTHING
    assert (store.root / "data" / "README").exists()


def test_an_arrival_without_news_for_a_day_is_dropped_and_a_newer_one_stays(store):
    old = arriving(store, b"old", idle=IDLE_SECONDS + 60)
    kept = arriving(store, b"kept", idle=IDLE_SECONDS + 60)
    new = arriving(store, b"new", idle=IDLE_SECONDS - 60)
    assert drop_idle(store, keep={kept}, now=now()) == (old,)
    assert set(store.partials()) == {kept, new}


def test_an_arrival_that_was_cut_short_at_its_start_is_dropped_too(store):
    (store.root / "partial" / DIGEST).mkdir()
    assert drop_idle(store, keep=(), now=now()) == ()
    assert drop_idle(store, keep=(), now=now() + IDLE_SECONDS + 60) == (DIGEST,)


def test_what_is_left_of_an_arrival_whose_blob_is_here_is_no_loss(store):
    digest = arriving(store, b"data")
    ref = store.add_bytes(b"data")
    assert ref.digest == digest
    assert drop_idle(store, keep=(), now=now() + 1) == ()
    assert store.partials() == {}
    assert store.has(digest)


def test_a_transfer_whose_arrival_is_dropped_is_told_and_starts_again(store):
    data = bytes(2 * PIECE_BYTES)
    digest = arriving(store, data, idle=IDLE_SECONDS + 60)
    partial = store.arriving(digest)
    pieces = partial.pieces
    assert drop_idle(store, keep=(), now=now()) == (digest,)
    with pytest.raises(BlobMissing):
        partial.write_piece(1, data[PIECE_BYTES:])
    again = store.partial(pieces.ref(), pieces)
    assert again.missing() == (0, 1)


def test_a_piece_that_arrives_meanwhile_saves_the_arrival(store):
    digest = arriving(store, b"data", idle=IDLE_SECONDS + 60)
    os.utime(store.root / "partial" / digest / "done")
    assert not store.drop_partial(digest, idle_since=now() - IDLE_SECONDS)
    assert digest in store.partials()


ADD_FOREVER = """
import random, sys
from pathlib import Path
from shared.blobs import BlobStore
store = BlobStore(Path(sys.argv[1]))
draw = random.Random(int(sys.argv[2]))
print("ready", flush=True)
while True:
    store.add_bytes(draw.randbytes(draw.randrange(1, 5000)))
"""


def test_a_store_is_whole_again_after_kills_at_any_moment(store):
    for number in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", ADD_FOREVER, str(store.root), str(number)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        )
        assert child.stdout is not None
        child.stdout.readline()
        before = len(os.listdir(store.root / "data"))
        while len(os.listdir(store.root / "data")) < before + 3 + number:
            os.sched_yield()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    mend(BlobStore(store.root), now=now())
    names = {path.name for path in (store.root / "data").iterdir()}
    assert {path.stem for path in (store.root / "marks").iterdir()} == names
    assert set(store.digests()) == names
    assert damaged(store) == {}


def test_mending_and_looking_disturb_nobody_who_adds_and_deletes(store):
    """Threads lock the store as processes do: each opens the lock for itself."""
    until = time.monotonic() + 1.0
    failures: list[BaseException] = []

    def use(number: int) -> None:
        mine, draw = BlobStore(store.root), random.Random(number)
        while time.monotonic() < until:
            try:
                ref = mine.add_bytes(draw.randbytes(draw.randrange(1, 3000)))
                assert mine.read(ref, max_bytes=3000)
                mine.delete(ref.digest)
            except BaseException as error:  # noqa: BLE001 - shown below
                failures.append(error)
                return

    threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    rounds = 0
    while time.monotonic() < until:
        assert find_damage(store, progress=lambda *_: None) == ()
        assert mend(store, now=now() + 1e9) == NOTHING
        rounds += 1
    for thread in threads:
        thread.join()
    assert failures == []
    assert rounds > 3


RECEIVE = """
import sys
from pathlib import Path
from shared.blobs import BadBlob, BlobMissing, BlobStore
source, store = (BlobStore(Path(path)) for path in sys.argv[1:])
for digest in sorted(source.digests()):
    pieces, data = source.pieces(digest), source.path(digest).read_bytes()
    while not store.has(digest):
        try:
            partial = store.partial(pieces.ref(), pieces)
            for index in partial.missing():
                partial.write_piece(index, data[index * 4194304:][:4194304])
            partial.commit()
        except (BlobMissing, BadBlob):
            print("again", flush=True)
"""


def test_dropping_what_another_process_receives_costs_it_time_and_no_byte(store, tmp_path):
    source = BlobStore(tmp_path / "source")
    for number in range(3):
        source.add_bytes(random.Random(number).randbytes(2 * PIECE_BYTES + number))
    child = subprocess.Popen(
        [sys.executable, "-c", RECEIVE, str(source.root), str(store.root)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    dropped = 0
    while child.poll() is None:
        if dropped < 5:
            dropped += len(drop_idle(store, keep=(), now=now() + 2 * IDLE_SECONDS))
        assert mend(store, now=now() + 1e9) == NOTHING
    assert child.returncode == 0
    assert child.stdout is not None
    child.stdout.close()
    assert dropped > 0
    assert set(store.digests()) == set(source.digests())
    assert store.partials() == {}
    assert damaged(store) == {}


@pytest.fixture
def _hasty_threads():
    """Threads take turns so often that each order of their steps comes up."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_hasty_threads")
def test_what_is_dropped_and_begun_anew_meanwhile_is_never_taken_for_complete(store, tmp_path):
    source = BlobStore(tmp_path / "source")
    data = b"?" * 5000
    pieces = source.pieces(source.add_bytes(data).digest)
    digest, deadline = pieces.ref().digest, time.monotonic() + 60
    outcomes: list[bool] = []

    def going_on() -> bool:
        return len(outcomes) < 6 and time.monotonic() < deadline

    def receive() -> None:
        mine = BlobStore(store.root)
        while going_on():
            try:
                partial = mine.partial(pieces.ref(), pieces)
                for index in partial.missing():
                    partial.write_piece(index, data)
                partial.commit()
                outcomes.append(mine.verify(digest))
                mine.delete(digest)
            except (BlobMissing, BadBlob):
                continue

    receiver = threading.Thread(target=receive)
    receiver.start()
    while going_on():
        store.drop_partial(digest, idle_since=now() + 60)
        store.partial(pieces.ref(), pieces)
    receiver.join()
    assert outcomes == [True] * 6
