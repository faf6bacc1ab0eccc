"""Blobs by digest in a folder: add, read, verify, and receive piece by piece.

    data/<digest>               the bytes
    marks/<digest>.json         the piece list, written last: a blob is there when its mark is
    partial/<digest>/           a blob that is still arriving (see `PartialBlob`)
    drafts/                     files on their way to a final name

Several processes may use one folder at once. Readers see complete blobs only, adding the same blob
twice at the same time is harmless, and what a killed process leaves in `drafts` is removed by the
next one. No promise is made against somebody who writes into the folder by other means; `verify`
finds out.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from protocol.blobs import BlobRef, PieceList
from protocol.digests import PIECE_BYTES, digest_bytes
from shared.files import sync_folder, write_atomic

_DIGEST = re.compile(r"[0-9a-f]{64}")
_DONE = b"\x01"


class BlobMissing(KeyError):
    """The store does not have this blob, or not all of it."""


class BadBlob(ValueError):
    """Bytes or a piece list do not answer to the digest that they came under."""


class BadPiece(BadBlob):
    """A piece has the wrong length or SHA-256; nothing of it was kept."""


def piece_list_of(path: Path) -> PieceList:
    """Hash the file at `path`, one pass. Raises BadBlob if it changes meanwhile."""
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        pieces: list[str] = []
        while piece := file.read(PIECE_BYTES):
            pieces.append(digest_bytes(piece))
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise BadBlob(f"{path}: changed while it was read, expected a finished file")
    return PieceList(size=after.st_size, pieces=tuple(pieces))


def runs(indices: tuple[int, ...]) -> list[tuple[int, int]]:
    """Ascending indices as (first, last) of each gapless run: one request fetches each."""
    found: list[tuple[int, int]] = []
    for index in indices:
        if found and found[-1][1] == index - 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return found


class BlobStore:
    """A folder of blobs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._data, self._marks = root / "data", root / "marks"
        self._partial, self._drafts = root / "partial", root / "drafts"
        for folder in (self._data, self._marks, self._partial, self._drafts):
            folder.mkdir(parents=True, exist_ok=True)
        self._sweep_drafts()

    def add_file(self, path: Path) -> BlobRef:
        """Add the file at `path`, which must not be written to any more. Hashes it once.

        On the same file system it is linked, not copied. Raises BadBlob if it changes meanwhile.
        """
        with self._draft() as draft:
            try:
                os.link(path.resolve(), draft)
            except OSError:
                shutil.copyfile(path, draft)
            pieces = piece_list_of(draft)
            self._publish(draft, pieces)
        return pieces.ref()

    def add_bytes(self, data: bytes) -> BlobRef:
        """Add `data` as a blob."""
        with self._draft() as draft:
            draft.write_bytes(data)
            pieces = piece_list_of(draft)
            self._publish(draft, pieces)
        return pieces.ref()

    def has(self, digest: str) -> bool:
        """Whether the blob is here, complete and marked. False for what is no digest."""
        return (
            _DIGEST.fullmatch(digest) is not None
            and self._mark(digest).exists()
            and (self._data / digest).exists()
        )

    def path(self, digest: str) -> Path:
        """Where the blob's bytes lie, to be read only. Raises BlobMissing."""
        if not self.has(digest):
            raise BlobMissing(digest)
        return self._data / digest

    def pieces(self, digest: str) -> PieceList:
        """The piece list of a complete blob. Raises BlobMissing."""
        if not self.has(digest):
            raise BlobMissing(digest)
        try:
            return PieceList.model_validate_json(self._mark(digest).read_bytes())
        except FileNotFoundError as error:
            raise BlobMissing(digest) from error

    def complete_since(self, digest: str) -> float:
        """When the blob became complete here, in seconds since 1970. Raises BlobMissing."""
        try:
            return self._mark(digest).stat().st_mtime
        except FileNotFoundError as error:
            raise BlobMissing(digest) from error

    def read(self, ref: BlobRef, *, max_bytes: int) -> bytes:
        """All bytes of a small blob, verified.

        Raises BlobMissing, or BadBlob if `ref` names more than `max_bytes` or they are damaged.
        """
        if ref.size > max_bytes:
            raise BadBlob(f"blob {ref.digest}: {ref.size} bytes, expected at most {max_bytes}")
        data = self.path(ref.digest).read_bytes()
        offsets = range(0, len(data), PIECE_BYTES)
        pieces = tuple(digest_bytes(data[at : at + PIECE_BYTES]) for at in offsets)
        if PieceList(size=len(data), pieces=pieces).ref() != ref:
            raise BadBlob(f"blob {ref.digest}: the bytes on disk do not answer to {ref}")
        return data

    def verify(self, digest: str) -> bool:
        """Hash the blob again: whether it is still what its digest says. Raises BlobMissing."""
        try:
            return piece_list_of(self.path(digest)).ref().digest == digest
        except FileNotFoundError as error:
            raise BlobMissing(digest) from error

    def delete(self, digest: str) -> None:
        """Forget the blob and what has arrived of it; no error if there is nothing."""
        if _DIGEST.fullmatch(digest) is None:
            return
        with self._locked():
            self._mark(digest).unlink(missing_ok=True)
            (self._data / digest).unlink(missing_ok=True)
            shutil.rmtree(self._partial / digest, ignore_errors=True)

    def digests(self) -> Iterator[str]:
        """The digests of all complete blobs, in no order."""
        for data in self._data.iterdir():
            if self.has(data.name):
                yield data.name

    def partial(self, ref: BlobRef, pieces: PieceList) -> "PartialBlob":
        """Start or go on receiving a blob. Raises BadBlob if `pieces` does not answer to `ref`."""
        if pieces.ref() != ref:
            raise BadBlob(f"piece list of {pieces.ref()}, expected that of {ref}")
        partial = PartialBlob(self, self._partial / ref.digest, pieces)
        with self._locked():
            if not self.has(ref.digest):
                partial.prepare()
        return partial

    def arriving(self, digest: str) -> "PartialBlob | None":
        """The blob that `partial` began to receive, in whatever process; None if there is none."""
        folder = self._partial / digest
        if _DIGEST.fullmatch(digest) is None or not folder.is_dir():
            return None
        try:
            pieces = PieceList.model_validate_json((folder / "pieces.json").read_bytes())
        except (OSError, ValidationError):
            return None
        return PartialBlob(self, folder, pieces)

    def publish_partial(self, folder: Path, pieces: PieceList) -> None:
        """Make the complete data in `folder` a blob, for `PartialBlob.commit`."""
        data = folder / "data"
        if data.exists():
            with contextlib.suppress(FileNotFoundError):
                self._publish(data, pieces)
        with self._locked():
            shutil.rmtree(folder, ignore_errors=True)

    def _mark(self, digest: str) -> Path:
        return self._marks / f"{digest}.json"

    def _publish(self, data: Path, pieces: PieceList) -> None:
        """Move `data` to its final name, durably, then write the mark."""
        digest = pieces.ref().digest
        with data.open("rb") as file:
            os.fsync(file.fileno())
        with self._locked():
            if self.has(digest):
                return
            os.replace(data, self._data / digest)
            sync_folder(self._data)
            write_atomic(self._mark(digest), pieces.model_dump_json().encode())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude other threads and processes for the moment of a few renames."""
        with (self.root / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _draft(self) -> Iterator[Path]:
        """The name for a draft, held by a lock that dies with this process."""
        with self._locked():
            folder = self._drafts / secrets.token_hex(8)
            folder.mkdir()
            held = (folder / "held").open("wb")
            fcntl.flock(held, fcntl.LOCK_EX)
        with held:
            try:
                yield folder / "draft"
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _sweep_drafts(self) -> None:
        """Remove drafts whose process is gone: nobody holds their lock any more."""
        with self._locked():
            for folder in self._drafts.iterdir():
                if not _is_held(folder / "held"):
                    shutil.rmtree(folder, ignore_errors=True)


class PartialBlob:
    """A blob that arrives piece by piece; what has arrived outlives the process.

    The folder holds `pieces.json`, `data` at its full length, and `done`, one byte a piece: set
    once the piece was verified and is on disk. Several writers of one blob do each other no harm.
    """

    def __init__(self, store: BlobStore, folder: Path, pieces: PieceList) -> None:
        self._store, self._folder = store, folder
        self.pieces = pieces
        self.ref = pieces.ref()

    def prepare(self) -> None:
        """Make the folder unless a sound one is there, for `BlobStore.partial` under its lock."""
        with contextlib.suppress(FileNotFoundError):
            if (
                (self._folder / "pieces.json").stat().st_size > 0
                and (self._folder / "data").stat().st_size == self.ref.size
                and (self._folder / "done").stat().st_size == len(self.pieces.pieces)
            ):
                return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        with (self._folder / "data").open("wb") as file:
            file.truncate(self.ref.size)
        (self._folder / "done").write_bytes(bytes(len(self.pieces.pieces)))
        write_atomic(self._folder / "pieces.json", self.pieces.model_dump_json().encode())

    def missing(self) -> tuple[int, ...]:
        """Indices of the pieces that are not here yet, ascending."""
        if self._store.has(self.ref.digest):
            return ()
        try:
            done = (self._folder / "done").read_bytes()
        except FileNotFoundError:
            done = b""
            if self._store.has(self.ref.digest):
                return ()
        return tuple(
            index for index in range(len(self.pieces.pieces)) if done[index : index + 1] != _DONE
        )

    def write_piece(self, index: int, data: bytes) -> None:
        """Verify and keep piece `index`.

        Raises BadPiece if its length or SHA-256 differs, BlobMissing if it was deleted meanwhile.
        """
        if not 0 <= index < len(self.pieces.pieces):
            raise BadPiece(f"piece {index}: expected one of {len(self.pieces.pieces)}")
        offset = index * PIECE_BYTES
        expected = min(PIECE_BYTES, self.ref.size - offset)
        if len(data) != expected:
            raise BadPiece(f"piece {index}: {len(data)} bytes, expected {expected}")
        if digest_bytes(data) != self.pieces.pieces[index]:
            raise BadPiece(f"piece {index}: its SHA-256 differs from the piece list's")
        try:
            self._write("data", offset, data)
            self._write("done", index, _DONE)
        except FileNotFoundError as error:
            if not self._store.has(self.ref.digest):
                raise BlobMissing(self.ref.digest) from error

    def commit(self) -> BlobRef:
        """Make the blob complete; harmless if it is. Raises BadBlob if a piece is missing."""
        missing = self.missing()
        if missing:
            raise BadBlob(
                f"blob {self.ref.digest}: {len(missing)} of {len(self.pieces.pieces)} pieces "
                f"missing, the first is {missing[0]}"
            )
        self._store.publish_partial(self._folder, self.pieces)
        if not self._store.has(self.ref.digest):
            raise BlobMissing(self.ref.digest)
        return self.ref

    def _write(self, name: str, offset: int, data: bytes) -> None:
        # Durable before it is marked as done, so that the mark holds after a power failure too.
        with (self._folder / name).open("r+b") as file:
            file.seek(offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def _is_held(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
