"""Pieces of blobs: their list, and what can be wrong with them."""

import os
from pathlib import Path

from protocol.blobs import PieceList
from protocol.digests import PIECE_BYTES, digest_bytes


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
