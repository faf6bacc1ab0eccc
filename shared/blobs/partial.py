"""A blob that arrives piece by piece; what has arrived outlives the process."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from protocol.blobs import BlobRef, PieceList
from protocol.digests import PIECE_BYTES, digest_bytes
from shared.blobs.pieces import BadBlob, BadPiece, BlobMissing
from shared.files import write_atomic

DONE = b"\x01"
WRITE_BYTES = 256 * 1024
"""Written at a time. Larger writes get larger pages from the system, which must often be cleared
first: with whole pieces, on ext4 in a virtual machine, they cost up to five times as much CPU."""


class Store(Protocol):
    """What a blob that arrives must know of the store that it arrives in."""

    def has(self, digest: str) -> bool:
        """Whether the blob is here, complete."""

    def publish_partial(self, folder: Path, pieces: PieceList) -> None:
        """Make the complete data in `folder` a blob."""

    def free_bytes(self) -> int:
        """What another blob may take of the disk."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep everybody else from renaming for a moment."""


class PartialBlob:
    """The folder of one arriving blob. Several writers of one blob do each other no harm.

    It holds `pieces.json`, `data` at its full length, and `done`, one byte a piece: set once the
    piece was verified and written. Only `commit` waits for the disk: a piece that a power failure
    took is found by `recheck` in the next life, which costs less than a sync for each.
    """

    def __init__(self, store: Store, folder: Path, pieces: PieceList) -> None:
        self._store, self._folder = store, folder
        self.pieces = pieces
        self.ref = pieces.ref()

    def prepare(self) -> None:
        """Make the folder unless a sound one is there, for `BlobStore.partial` under its lock."""
        if self.is_sound():
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        free = self._store.free_bytes()
        if free < self.ref.size:
            words = f"blob {self.ref.digest[:12]} of {self.ref.size} bytes, {free} bytes are free"
            raise OSError(errno.ENOSPC, words, str(self._folder))
        self._folder.mkdir()
        with (self._folder / "data").open("wb") as file:
            file.truncate(self.ref.size)
        (self._folder / "done").write_bytes(bytes(len(self.pieces.pieces)))
        write_atomic(self._folder / "pieces.json", self.pieces.model_dump_json().encode())

    def is_sound(self) -> bool:
        """Whether everything is there that a start makes, so that pieces can be written."""
        try:
            return (
                (self._folder / "pieces.json").stat().st_size > 0
                and (self._folder / "data").stat().st_size == self.ref.size
                and (self._folder / "done").stat().st_size == len(self.pieces.pieces)
            )
        except FileNotFoundError:
            return False

    def recheck(self) -> None:
        """Hash every piece that is marked as done, and unmark those that are not what they were."""
        try:
            done = (self._folder / "done").read_bytes()
            with _opened(self._folder) as folder, (self._folder / "data").open("rb") as file:
                for index, digest in enumerate(self.pieces.pieces):
                    if done[index : index + 1] == DONE:
                        file.seek(index * PIECE_BYTES)
                        if digest_bytes(file.read(PIECE_BYTES)) != digest:
                            _write(folder, "done", index, b"\x00")
        except FileNotFoundError:
            return

    def piece_bytes(self, index: int) -> int:
        """Length of piece `index`: that of all pieces but the last is `PIECE_BYTES`."""
        return min(PIECE_BYTES, self.ref.size - index * PIECE_BYTES)

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
            index for index in range(len(self.pieces.pieces)) if done[index : index + 1] != DONE
        )

    def write_piece(self, index: int, data: bytes | bytearray) -> None:
        """Verify and keep piece `index`.

        Raises BadPiece if its length or SHA-256 differs, BlobMissing if it was deleted meanwhile.
        """
        if not 0 <= index < len(self.pieces.pieces):
            raise BadPiece(f"piece {index}: expected one of {len(self.pieces.pieces)}")
        offset, expected = index * PIECE_BYTES, self.piece_bytes(index)
        if len(data) != expected:
            raise BadPiece(f"piece {index}: {len(data)} bytes, expected {expected}")
        if digest_bytes(data) != self.pieces.pieces[index]:
            raise BadPiece(f"piece {index}: its SHA-256 differs from the piece list's")
        try:
            with _opened(self._folder) as folder:
                _write(folder, "data", offset, data)
                _write(folder, "done", index, DONE)
        except FileNotFoundError as error:
            # Locked: another process may just be giving the data its final name.
            with self._store.locked():
                is_complete = self._store.has(self.ref.digest)
            if not is_complete:
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


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """The folder itself, whatever its name stands for later.

    Somebody may delete it and begin again under its name between two writes: no mark may then come
    to stand for a piece that was written to the data before.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(folder: int, name: str, offset: int, data: bytes | bytearray) -> None:
    descriptor = os.open(name, os.O_WRONLY, dir_fd=folder)
    try:
        view, at = memoryview(data), 0
        while at < len(view):
            at += os.pwrite(descriptor, view[at : at + WRITE_BYTES], offset + at)
        if hasattr(os, "posix_fadvise"):
            # Linux begins to write now, and `commit` will have little to wait for.
            os.posix_fadvise(descriptor, offset, len(view), os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
