"""Which blobs go so that a store stays under its cap. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A blob that can be had again from elsewhere, and the bytes of disk that its end frees."""

    digest: str
    num_bytes: int


def choose(
    candidates: Sequence[Candidate], *, excess_bytes: int, pinned: Collection[str]
) -> tuple[str, ...] | None:
    """Digests whose end frees `excess_bytes`, in the order of `candidates`: used last, goes last.

    None of `pinned` is among them, nor one whose end frees nothing, and without the last of them
    too little would be freed. None if all of them together free too little: then nothing goes, as
    its loss would help nobody.
    """
    chosen: list[str] = []
    freed = 0
    for candidate in candidates:
        if freed >= excess_bytes:
            break
        if candidate.digest not in pinned and candidate.num_bytes > 0:
            chosen.append(candidate.digest)
            freed += candidate.num_bytes
    return tuple(chosen) if freed >= excess_bytes else None
