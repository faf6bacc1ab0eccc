"""Looks after a store: finds damaged blobs, mends what a crash left, drops old arrivals.

All of it may run while other processes use the store. Hashing is done without the store's lock, and
whatever was found is looked at again under it before anything is changed.
"""

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from protocol.blobs import PieceList
from protocol.digests import PIECE_BYTES, digest_bytes
from shared.blobs.pieces import BadBlob, BlobMissing, piece_list_of
from shared.blobs.store import BlobStore
from shared.files import write_atomic

IDLE_SECONDS = 86_400.0
"""A blob that got no piece for so long is no longer arriving."""

STRAY_SECONDS = 3600.0
"""Data without a mark that answers to no digest is deleted when it is older than this."""

_DIGEST = re.compile(r"[0-9a-f]{64}")

Progress = Callable[[int, int], None]
"""Takes the bytes done so far, and all there are."""


@dataclass(frozen=True)
class Damage:
    """A blob that is no longer what its digest says, in words."""

    digest: str
    num_bytes: int
    words: str


@dataclass(frozen=True)
class Mended:
    """What `mend` did: digests, sorted. `marked` are whole again, the others are gone."""

    marked: tuple[str, ...]
    marks: tuple[str, ...]
    data: tuple[str, ...]


def find_damage(
    store: BlobStore, *, digests: Iterable[str] | None = None, progress: Progress
) -> tuple[Damage, ...]:
    """Hashes complete blobs again: all, or those of `digests` that are here. Sorted by digest.

    Changes nothing. A blob that is deleted meanwhile is no damage.
    """
    sizes: dict[str, int] = {}
    for digest in sorted(store.digests() if digests is None else set(digests)):
        with contextlib.suppress(BlobMissing, FileNotFoundError):
            sizes[digest] = store.path(digest).stat().st_size
    total, done = sum(sizes.values()), 0
    found: list[Damage] = []
    progress(0, total)
    for digest, size in sizes.items():
        before = done

        def tell(read: int, before: int = before) -> None:
            progress(min(before + read, total), total)

        words = _damage(store, digest, tell)
        if words and store.has(digest):
            found.append(Damage(digest, size, words))
        done += size
        progress(done, total)
    return tuple(found)


def mend(store: BlobStore, *, now: float) -> Mended:
    """Makes marks and data agree again: either may be without the other after a crash.

    Data whose mark is missing or unreadable is hashed. What answers to its digest is marked, so
    that the blob is there again. What does not, and has no mark at all, goes once it is
    STRAY_SECONDS old, `now` being seconds since 1970; with a mark it is damage, and stays.
    """
    marks, strays = _clear_marks(store)
    marked = [digest for digest in strays if _mark_again(store, digest)]
    lost = [digest for digest in strays if digest not in marked]
    gone = [digest for digest in lost if _drop_stray(store, digest, now=now)]
    return Mended(tuple(sorted(marked)), tuple(sorted(marks)), tuple(sorted(gone)))


def drop_idle(store: BlobStore, *, keep: Collection[str], now: float) -> tuple[str, ...]:
    """Drops what arrived of blobs that got no piece for IDLE_SECONDS, except those in `keep`.

    Also what is left of an arrival whose blob is here. Returns the digests, sorted. A transfer that
    goes on at the same moment starts again; `now` is seconds since 1970.
    """
    gone: list[str] = []
    for digest in sorted(store.partials()):
        if store.has(digest):
            store.drop_partial(digest, idle_since=now)
        elif digest not in keep and store.drop_partial(digest, idle_since=now - IDLE_SECONDS):
            gone.append(digest)
    return tuple(gone)


def _damage(store: BlobStore, digest: str, tell: Callable[[int], None]) -> str:
    """What is wrong with a blob; nothing if it is whole, or gone."""
    try:
        expected = store.pieces(digest)
        if expected.ref().digest != digest:
            return "its mark is that of another blob"
        found = _read_pieces(store.path(digest), tell)
    except (BlobMissing, FileNotFoundError):
        return ""
    except ValidationError:
        return "its mark cannot be read"
    except OSError as error:
        return f"cannot be read from the disk: {error.strerror or error}"
    if found.size != expected.size:
        return f"{found.size} bytes, expected {expected.size}"
    pairs = zip(found.pieces, expected.pieces, strict=True)
    wrong = [index for index, (one, other) in enumerate(pairs) if one != other]
    if not wrong:
        return ""
    return f"{len(wrong)} of {len(expected.pieces)} pieces differ, the first is {wrong[0]}"


def _read_pieces(path: Path, tell: Callable[[int], None]) -> PieceList:
    pieces: list[str] = []
    size = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            pieces.append(digest_bytes(piece))
            size += len(piece)
            tell(size)
    return PieceList(size=size, pieces=tuple(pieces))


def _clear_marks(store: BlobStore) -> tuple[list[str], list[str]]:
    """Removes marks without data; returns their digests, and those of data without a sound mark."""
    gone: list[str] = []
    with store.locked():
        data = {path.name for path in store.data_folder.iterdir() if _DIGEST.fullmatch(path.name)}
        for path in list(store.marks_folder.iterdir()):
            # Marks are written under the lock: a draft that is seen here has lost its writer.
            if path.name.startswith("."):
                path.unlink(missing_ok=True)
            elif path.suffix == ".json" and path.stem not in data:
                path.unlink(missing_ok=True)
                gone.append(path.stem)
    return gone, [digest for digest in sorted(data) if not _is_marked(store, digest)]


def _is_marked(store: BlobStore, digest: str) -> bool:
    try:
        return store.pieces(digest).ref().digest == digest
    except (BlobMissing, ValidationError):
        return False


def _mark_again(store: BlobStore, digest: str) -> bool:
    """Whether the data still answers to its digest; then it has a mark afterwards."""
    path = store.data_folder / digest
    try:
        pieces = piece_list_of(path)
        if pieces.ref().digest != digest:
            return False
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (BadBlob, OSError):
        return False
    with store.locked():
        if not path.exists():
            return False
        if not _is_marked(store, digest):
            mark = store.marks_folder / f"{digest}.json"
            write_atomic(mark, pieces.model_dump_json().encode())
    return True


def _drop_stray(store: BlobStore, digest: str, *, now: float) -> bool:
    path = store.data_folder / digest
    with store.locked(), contextlib.suppress(FileNotFoundError):
        marked = (store.marks_folder / f"{digest}.json").exists()
        if marked or now - path.stat().st_mtime < STRAY_SECONDS:
            return False
        path.unlink()
        return True
    return False
