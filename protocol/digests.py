"""Canonical bytes, and the digests that name specs, manifests and blobs.

Two values are the same thing exactly when their canonical bytes are equal: JSON with sorted keys,
no spaces, UTF-8, and Python's shortest round-trip form of a float.
"""

import hashlib
import json
from collections.abc import Sequence

from pydantic import BaseModel

PIECE_BYTES = 4 * 1024 * 1024
"""Length of every piece of a blob but the last, in bytes."""


def canonical_bytes(value: BaseModel | dict[str, object]) -> bytes:
    """The one encoding of `value` that is digested and signed.

    Raises ValueError for NaN and infinities, which JSON cannot name.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(
        plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def digest_bytes(data: bytes | bytearray) -> str:
    """SHA-256 of `data`, in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_value(value: BaseModel | dict[str, object]) -> str:
    """SHA-256 of the canonical bytes of `value`."""
    return digest_bytes(canonical_bytes(value))


def blob_digest(size: int, pieces: Sequence[str]) -> str:
    """The digest of a blob: that of its size and the digests of its pieces of `PIECE_BYTES`.

    Naming the list instead of the bytes lets a reader verify each piece as it arrives, from any
    provider, with one hash pass.
    """
    return digest_value({"pieces": list(pieces), "size": size})
