"""Blobs by digest in a folder, whole and arriving."""

from shared.blobs.partial import PartialBlob as PartialBlob
from shared.blobs.pieces import BadBlob as BadBlob
from shared.blobs.pieces import BadPiece as BadPiece
from shared.blobs.pieces import BlobMissing as BlobMissing
from shared.blobs.pieces import piece_list_of as piece_list_of
from shared.blobs.store import BlobStore as BlobStore
