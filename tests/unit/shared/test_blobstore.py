"""The blob store: piece maths, verification, interruption, and several processes at once."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.blobs import BlobRef, PieceList
from protocol.digests import PIECE_BYTES, digest_bytes
from shared.blobs import BadBlob, BadPiece, BlobMissing, BlobStore, piece_list_of


def _bytes(size: int, rng_seed: int = 0) -> bytes:
    return random.Random(rng_seed).randbytes(size)


def _split(data: bytes) -> list[bytes]:
    return [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.mark.parametrize(
    "size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES]
)
def test_the_piece_list_covers_every_byte_once(tmp_path: Path, size: int) -> None:
    data = _bytes(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    pieces = piece_list_of(path)
    assert pieces.size == size
    assert pieces.pieces == tuple(digest_bytes(piece) for piece in _split(data))


@pytest.mark.parametrize("size", [0, 1000, PIECE_BYTES + 7])
def test_an_added_file_reads_back_and_adding_it_again_changes_nothing(
    store: BlobStore, tmp_path: Path, size: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(_bytes(size))
    ref = store.add_file(path)
    assert store.add_file(path) == ref
    assert store.add_bytes(_bytes(size)) == ref
    assert store.has(ref.digest)
    assert store.read(ref, max_bytes=size) == path.read_bytes()
    assert store.pieces(ref.digest).ref() == ref
    assert store.verify(ref.digest)
    assert list(store.digests()) == [ref.digest]
    assert list((store.root / "drafts").iterdir()) == []


def test_a_blob_survives_the_removal_of_the_file_it_came_from(
    store: BlobStore, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"weights")
    ref = store.add_file(path)
    path.unlink()
    assert store.path(ref.digest).read_bytes() == b"weights"


def test_a_symbolic_link_is_followed(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    ref = store.add_file(tmp_path / "link")
    (tmp_path / "file").unlink()
    assert store.read(ref, max_bytes=100) == b"weights"


def test_what_is_not_there_is_missing(store: BlobStore) -> None:
    digest = "0" * 64
    assert not store.has(digest)
    for ask in (store.path, store.pieces, store.verify):
        with pytest.raises(BlobMissing):
            ask(digest)
    with pytest.raises(BlobMissing):
        store.read(BlobRef(digest=digest, size=1), max_bytes=10)
    store.delete(digest)


@pytest.mark.parametrize("name", ["", "..", "../lock", "a" * 63, "A" * 64, "0" * 64 + "\n", "/etc"])
def test_what_is_no_digest_never_becomes_a_path(store: BlobStore, name: str) -> None:
    assert not store.has(name)
    assert store.arriving(name) is None
    with pytest.raises(BlobMissing):
        store.path(name)
    store.delete(name)
    assert (store.root / "lock").exists()


def test_read_refuses_more_than_the_bound(store: BlobStore) -> None:
    ref = store.add_bytes(b"12345")
    with pytest.raises(BadBlob, match="expected at most 4"):
        store.read(ref, max_bytes=4)


def test_damage_on_disk_is_found(store: BlobStore) -> None:
    ref = store.add_bytes(b"12345")
    store.path(ref.digest).write_bytes(b"12445")
    assert not store.verify(ref.digest)
    with pytest.raises(BadBlob, match="do not answer"):
        store.read(ref, max_bytes=10)


def test_bytes_without_a_mark_are_no_blob_and_can_be_added_again(store: BlobStore) -> None:
    ref = store.add_bytes(b"12345")
    (store.root / "marks" / f"{ref.digest}.json").unlink()
    assert not store.has(ref.digest)
    assert list(store.digests()) == []
    assert store.add_bytes(b"12345") == ref
    assert store.has(ref.digest)


def test_a_mark_without_bytes_is_no_blob_and_can_be_added_again(store: BlobStore) -> None:
    ref = store.add_bytes(b"12345")
    store.path(ref.digest).unlink()
    assert not store.has(ref.digest)
    assert store.add_bytes(b"12345") == ref
    assert store.read(ref, max_bytes=10) == b"12345"


def test_deleting_removes_bytes_mark_and_parts(store: BlobStore, tmp_path: Path) -> None:
    data = _bytes(PIECE_BYTES + 5)
    ref = store.add_bytes(data)
    pieces = store.pieces(ref.digest)
    store.delete(ref.digest)
    assert not store.has(ref.digest)
    partial = store.partial(ref, pieces)
    store.delete(ref.digest)
    with pytest.raises(BlobMissing):
        partial.write_piece(0, data[:PIECE_BYTES])
    assert store.arriving(ref.digest) is None


@pytest.fixture
def incoming(tmp_path: Path) -> tuple[bytes, PieceList]:
    data = _bytes(2 * PIECE_BYTES + 11)
    path = tmp_path / "source"
    path.write_bytes(data)
    return data, piece_list_of(path)


def test_a_piece_list_must_answer_to_the_reference(
    store: BlobStore, incoming: tuple[bytes, PieceList]
) -> None:
    _, pieces = incoming
    with pytest.raises(BadBlob, match="expected that of"):
        store.partial(BlobRef(digest="0" * 64, size=pieces.size), pieces)
    assert list((store.root / "partial").iterdir()) == []


def test_a_bad_piece_counts_for_nothing(
    store: BlobStore, incoming: tuple[bytes, PieceList]
) -> None:
    data, pieces = incoming
    partial = store.partial(pieces.ref(), pieces)
    good = data[:PIECE_BYTES]
    for index, bad in (
        (0, good[:-1]),
        (0, good + b"\0"),
        (0, bytes([good[0] ^ 1]) + good[1:]),
        (1, good),
        (2, good),
        (3, b""),
        (-1, good),
    ):
        with pytest.raises(BadPiece):
            partial.write_piece(index, bad)
    assert partial.missing() == (0, 1, 2)
    with pytest.raises(BadBlob, match="3 of 3 pieces missing, the first is 0"):
        partial.commit()
    assert not store.has(pieces.ref().digest)


def test_commit_is_idempotent_and_late_writers_are_harmless(
    store: BlobStore, incoming: tuple[bytes, PieceList]
) -> None:
    data, pieces = incoming
    ref = pieces.ref()
    first, second = store.partial(ref, pieces), store.partial(ref, pieces)
    for index, piece in enumerate(_split(data)):
        first.write_piece(index, piece)
    assert second.missing() == ()
    assert first.commit() == ref
    second.write_piece(0, data[:PIECE_BYTES])
    assert second.missing() == ()
    assert second.commit() == ref
    assert store.partial(ref, pieces).commit() == ref
    assert store.read(ref, max_bytes=len(data)) == data
    assert store.arriving(ref.digest) is None


def test_an_empty_blob_arrives_without_pieces(store: BlobStore) -> None:
    pieces = PieceList(size=0, pieces=())
    partial = store.partial(pieces.ref(), pieces)
    assert partial.missing() == ()
    assert store.read(partial.commit(), max_bytes=0) == b""


def test_parts_that_lost_their_data_start_again(
    store: BlobStore, incoming: tuple[bytes, PieceList]
) -> None:
    data, pieces = incoming
    ref = pieces.ref()
    store.partial(ref, pieces).write_piece(0, data[:PIECE_BYTES])
    assert store.partial(ref, pieces).missing() == (1, 2)
    os.truncate(store.root / "partial" / ref.digest / "data", 10)
    assert store.partial(ref, pieces).missing() == (0, 1, 2)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(3)), restarts=st.sets(st.integers(0, 3)), spoiled=st.booleans())
def test_any_order_and_any_interruption_give_the_same_blob(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    restarts: set[int],
    spoiled: bool,
) -> None:
    folder = tmp_path_factory.mktemp("store")
    data = _bytes(2 * PIECE_BYTES + 11)
    (folder / "source").write_bytes(data)
    pieces = piece_list_of(folder / "source")
    ref = pieces.ref()
    partial = BlobStore(folder / "blobs").partial(ref, pieces)
    for count, index in enumerate(order):
        if count in restarts:
            again = BlobStore(folder / "blobs").arriving(ref.digest)
            assert again is not None
            partial = again
        assert partial.missing() == tuple(sorted(order[count:]))
        if spoiled:
            with pytest.raises(BadPiece):
                partial.write_piece(index, b"x")
        partial.write_piece(index, _split(data)[index])
    assert partial.commit() == ref
    assert BlobStore(folder / "blobs").read(ref, max_bytes=len(data)) == data


WRITER = """
import sys
from pathlib import Path
from protocol.blobs import PieceList
from shared.blobs import BlobStore
store = BlobStore(Path(sys.argv[1]))
source = Path(sys.argv[2])
pieces = PieceList.model_validate_json(Path(sys.argv[3]).read_text())
partial = store.partial(pieces.ref(), pieces)
with source.open("rb") as file:
    for index in range(len(pieces.pieces)):
        partial.write_piece(index, file.read(4194304))
        print(index, flush=True)
        if sys.argv[4] == "wait":
            sys.stdin.readline()
partial.commit()
store.add_file(source)
"""


def _writer(
    store: BlobStore, tmp_path: Path, pieces: PieceList, mode: str
) -> "subprocess.Popen[str]":
    (tmp_path / "pieces.json").write_text(pieces.model_dump_json())
    arguments = [str(store.root), str(tmp_path / "source"), str(tmp_path / "pieces.json"), mode]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_leaves_its_verified_pieces(
    store: BlobStore, tmp_path: Path, incoming: tuple[bytes, PieceList]
) -> None:
    data, pieces = incoming
    with _writer(store, tmp_path, pieces, "wait") as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        writer.send_signal(signal.SIGKILL)
    partial = BlobStore(store.root).arriving(pieces.ref().digest)
    assert partial is not None
    assert partial.missing() == (1, 2)
    for index in partial.missing():
        partial.write_piece(index, _split(data)[index])
    assert store.read(partial.commit(), max_bytes=len(data)) == data


def test_two_processes_may_write_the_same_blob_at_once(
    store: BlobStore, tmp_path: Path, incoming: tuple[bytes, PieceList]
) -> None:
    data, pieces = incoming
    writers = [_writer(store, tmp_path, pieces, "run") for _ in range(2)]
    for writer in writers:
        writer.communicate(timeout=30)
        assert writer.returncode == 0
    assert store.read(pieces.ref(), max_bytes=len(data)) == data
    assert list((store.root / "partial").iterdir()) == []
    assert list((store.root / "drafts").iterdir()) == []


DRAFTER = """
import sys
from pathlib import Path
from shared.blobs import BlobStore
with BlobStore(Path(sys.argv[1]))._draft() as draft:
    draft.write_bytes(b"half")
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_drafts_of_a_living_process_stay_and_of_a_dead_one_go(store: BlobStore) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRAFTER, str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as drafter:
        assert drafter.stdout is not None
        assert drafter.stdout.readline() == "held\n"
        BlobStore(store.root)
        assert len(list((store.root / "drafts").iterdir())) == 1
        drafter.send_signal(signal.SIGKILL)
    BlobStore(store.root)
    assert list((store.root / "drafts").iterdir()) == []


def test_arriving_blobs_leave_the_reserve_and_what_others_will_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(1).randbytes(2 * PIECE_BYTES)
    source = BlobStore(tmp_path / "source")
    first, second = source.add_bytes(data), source.add_bytes(data[1:])
    store = BlobStore(tmp_path / "store", reserve_bytes=1000)
    usage = type("Usage", (), {"free": first.size + second.size + 999})
    monkeypatch.setattr("shared.blobs.store.shutil.disk_usage", lambda _: usage)
    store.partial(first, source.pieces(first.digest))
    with pytest.raises(OSError, match="bytes are free"):
        store.partial(second, source.pieces(second.digest))
    usage.free += 1
    store.partial(second, source.pieces(second.digest))
