"""References to blobs, their piece lists, and what a shard of tokens holds."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from protocol.digests import PIECE_BYTES, blob_digest
from protocol.ids import Digest, DomainId
from protocol.values import Count, Positive, Value

Split = Literal["train", "dev", "gate", "test"]

MAX_PIECES = 65_536
MAX_BLOB_BYTES = MAX_PIECES * PIECE_BYTES


class BlobRef(Value):
    """Names a blob: its digest (see `protocol.digests.blob_digest`) and its size in bytes."""

    digest: Digest
    size: Annotated[int, Field(ge=0, le=MAX_BLOB_BYTES)]


class PieceList(Value):
    """The size of a blob in bytes and the SHA-256 of each of its pieces, in order."""

    size: Annotated[int, Field(ge=0, le=MAX_BLOB_BYTES)]
    pieces: Annotated[tuple[Digest, ...], Field(strict=False, max_length=MAX_PIECES)]

    @model_validator(mode="after")
    def _one_digest_for_each_piece(self) -> Self:
        expected = -(-self.size // PIECE_BYTES)
        if len(self.pieces) != expected:
            raise ValueError(
                f"pieces: {len(self.pieces)} digests, expected {expected} for {self.size} bytes"
            )
        return self

    def ref(self) -> BlobRef:
        """The reference that this list answers to."""
        return BlobRef(digest=blob_digest(self.size, self.pieces), size=self.size)


class ShardManifest(Value):
    """One split of one domain: which blob holds it, and how much text that is.

    `num_bytes` is the UTF-8 length of the documents, the denominator of bits per byte.
    """

    domain: DomainId
    split: Split
    blob: BlobRef
    num_documents: Positive
    num_tokens: Positive
    num_bytes: Positive
    vocab_size: Count
