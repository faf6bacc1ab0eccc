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
from shared.blobs.partial import DONE, PartialBlob
from shared.blobs.pieces import BadBlob, BlobMissing, piece_list_of
from shared.files import sync_folder, write_atomic

_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """A folder of blobs. `reserve_bytes` of its disk are left to others by blobs that arrive."""

    def __init__(self, root: Path, *, reserve_bytes: int = 0) -> None:
        self.root = root
        self._reserve_bytes = reserve_bytes
        self.data_folder, self.marks_folder = root / "data", root / "marks"
        self._partial, self._drafts = root / "partial", root / "drafts"
        self._checked: set[str] = set()
        for folder in (self.data_folder, self.marks_folder, self._partial, self._drafts):
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
            and (self.data_folder / digest).exists()
        )

    def path(self, digest: str) -> Path:
        """Where the blob's bytes lie, to be read only. Raises BlobMissing."""
        if not self.has(digest):
            raise BlobMissing(digest)
        return self.data_folder / digest

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
        with self.locked():
            self._mark(digest).unlink(missing_ok=True)
            (self.data_folder / digest).unlink(missing_ok=True)
            shutil.rmtree(self._partial / digest, ignore_errors=True)
            self._checked.discard(digest)

    def digests(self) -> Iterator[str]:
        """The digests of all complete blobs, in no order."""
        for data in self.data_folder.iterdir():
            if self.has(data.name):
                yield data.name

    def partial(self, ref: BlobRef, pieces: PieceList) -> PartialBlob:
        """Start or go on receiving a blob. Raises BadBlob if `pieces` does not answer to `ref`.

        Raises OSError (ENOSPC) if the disk has no room for what is missing.
        """
        if pieces.ref() != ref:
            raise BadBlob(f"piece list of {pieces.ref()}, expected that of {ref}")
        partial = PartialBlob(self, self._partial / ref.digest, pieces)
        with self.locked():
            if not self.has(ref.digest):
                partial.prepare()
        return self._known_good(partial)

    def arriving(self, digest: str) -> PartialBlob | None:
        """The blob that `partial` began to receive, in whatever process; None if there is none."""
        folder = self._partial / digest
        if _DIGEST.fullmatch(digest) is None or not folder.is_dir():
            return None
        try:
            pieces = PieceList.model_validate_json((folder / "pieces.json").read_bytes())
        except (OSError, ValidationError):
            return None
        partial = PartialBlob(self, folder, pieces)
        if not partial.is_sound():
            # Somebody may be making it a blob right now; a crash while doing so leaves no data.
            with self.locked():
                if not self.has(digest) and not partial.is_sound():
                    return None
        return self._known_good(partial)

    def partials(self) -> dict[str, float]:
        """Digests of blobs that are still arriving, and when each last got a piece (since 1970)."""
        found: dict[str, float] = {}
        for folder in self._partial.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found[folder.name] = _news_of(folder)
        return found

    def drop_partial(self, digest: str, *, idle_since: float) -> bool:
        """Forget what has arrived of a blob unless it got a piece after `idle_since`.

        Whether it is gone; a complete blob stays. Whoever still writes to it gets BlobMissing.
        """
        folder = self._partial / digest
        if _DIGEST.fullmatch(digest) is None:
            return False
        with self.locked(), contextlib.suppress(FileNotFoundError):
            if _news_of(folder) > idle_since:
                return False
            shutil.rmtree(folder, ignore_errors=True)
            self._checked.discard(digest)
        return True

    def size_on_disk(self) -> int:
        """Bytes that complete and arriving blobs take up."""
        files = [*self.data_folder.iterdir(), *self._partial.glob("*/data")]
        total = 0
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                total += 512 * file.stat().st_blocks
        return total

    def bytes_to_come(self, ref: BlobRef) -> int:
        """What of the blob is not on this disk yet: nothing if it is here."""
        arriving = self._partial / ref.digest / "data"
        if self.has(ref.digest):
            return 0
        return _bytes_to_come(arriving) if arriving.exists() else ref.size

    def free_bytes(self) -> int:
        """What another blob may take: the free disk, less the reserve and what others will need."""
        promised = sum(map(_bytes_to_come, self._partial.glob("*/data")))
        return shutil.disk_usage(self.root).free - self._reserve_bytes - promised

    def _known_good(self, partial: PartialBlob) -> PartialBlob:
        """What another life wrote is hashed again: a power failure may have taken its bytes."""
        if partial.ref.digest not in self._checked:
            partial.recheck()
            self._checked.add(partial.ref.digest)
        return partial

    def publish_partial(self, folder: Path, pieces: PieceList) -> None:
        """Make the complete data in `folder` a blob, for `PartialBlob.commit`."""
        digest = pieces.ref().digest
        with contextlib.suppress(FileNotFoundError):
            self._publish(folder / "data", pieces, done=folder / "done")
        with self.locked():
            if self.has(digest):
                shutil.rmtree(folder, ignore_errors=True)
        self._checked.discard(digest)

    def _mark(self, digest: str) -> Path:
        return self.marks_folder / f"{digest}.json"

    def _publish(self, data: Path, pieces: PieceList, *, done: Path | None = None) -> None:
        """Move `data` to its final name, durably, then write the mark.

        Not if `done` lacks a piece, or if somebody began anew under the name of `data` meanwhile.
        """
        digest = pieces.ref().digest
        with data.open("rb") as file:
            if done is not None and done.read_bytes() != DONE * len(pieces.pieces):
                return
            os.fsync(file.fileno())
            with self.locked():
                if self.has(digest) or not os.path.samestat(os.fstat(file.fileno()), data.stat()):
                    return
                final = self.data_folder / digest
                os.replace(data, final)
                try:
                    sync_folder(self.data_folder)
                    write_atomic(self._mark(digest), pieces.model_dump_json().encode())
                except OSError:
                    # The disk is full: what has arrived must be there when it has room again.
                    os.replace(final, data)
                    raise

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other threads and processes for the moment of a few renames."""
        with (self.root / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _draft(self) -> Iterator[Path]:
        """The name for a draft, held by a lock that dies with this process."""
        with self.locked():
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
        with self.locked():
            for folder in self._drafts.iterdir():
                if not _is_held(folder / "held"):
                    shutil.rmtree(folder, ignore_errors=True)


def _news_of(folder: Path) -> float:
    """When a piece arrived last, or, where the start of the arrival was cut short, when that was.

    Raises FileNotFoundError if there is no such folder.
    """
    try:
        return (folder / "done").stat().st_mtime
    except FileNotFoundError:
        return folder.stat().st_mtime


def _bytes_to_come(data: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        state = data.stat()
        return max(0, state.st_size - 512 * state.st_blocks)
    return 0


def _is_held(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
