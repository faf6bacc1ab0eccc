"""Per-token label log-likelihoods, computed once for each checkpoint, width, shard and context.

An entry is two files: the array in NumPy's own format and, written last, the SHA-256 of that file.
An entry whose bytes do not answer to it counts as missing, so nothing waits for the disk: what a
power failure takes is computed again. Entries on gate and test text are as
secret as the text, so the folder belongs under the run's sealed one.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.float32]

_READ_BYTES = 1 << 20
ROUNDING = 1e-4
"""A logarithm of a probability of one may come out this much above zero, in nats."""


@dataclass(frozen=True)
class CacheKey:
    """What log-likelihoods depend on: the weights, the FFN prefix used, the text, the context.

    `checkpoint` is the blob digest of model.safetensors, `shard` that of the shard's file;
    `context_length` is in tokens.
    """

    checkpoint: str
    ffn_width: int
    shard: str
    context_length: int

    @property
    def stem(self) -> str:
        """The name of the entry's files, without their suffix."""
        return f"{self.checkpoint}-{self.ffn_width}-{self.shard}-{self.context_length}"


class LikelihoodCache:
    """Arrays by key in one folder. One process writes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._checked: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def find(self, key: CacheKey, *, num_labels: int) -> Labels | None:
        """The entry, mapped and read-only, float32 [num_labels]; None if missing or damaged."""
        array, marker = self._paths(key)
        try:
            if key.stem not in self._checked and marker.read_text("ascii") != _digest_file(array):
                return None
            entry: Labels = np.load(array, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if entry.dtype != np.float32 or entry.shape != (num_labels,):
            return None
        self._checked.add(key.stem)
        return entry

    def put(self, key: CacheKey, labels: Labels, *, num_labels: int) -> None:
        """Store an entry: the array under a temporary name, renamed; then its digest likewise.

        Raises ValueError unless `labels` are finite float32 [num_labels], none of them above 0.
        """
        _check_labels(labels, num_labels)
        array, marker = self._paths(key)
        self._checked.discard(key.stem)
        marker.unlink(missing_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, labels, allow_pickle=False)
        contents = buffer.getbuffer()
        temporary = array.with_suffix(".writing")
        temporary.write_bytes(contents)
        temporary.replace(array)
        temporary.write_text(hashlib.sha256(contents).hexdigest(), "ascii")
        temporary.replace(marker)

    def forget(self, checkpoint: str) -> None:
        """Remove every entry of a checkpoint, at all widths and on all shards."""
        for path in self._folder.glob(f"{checkpoint}-*"):
            path.unlink(missing_ok=True)
            self._checked.discard(path.stem)

    def _paths(self, key: CacheKey) -> tuple[Path, Path]:
        return self._folder / f"{key.stem}.npy", self._folder / f"{key.stem}.sha256"


def _check_labels(labels: Labels, num_labels: int) -> None:
    if labels.dtype != np.float32 or labels.shape != (num_labels,):
        raise ValueError(
            f"log-likelihoods: got {labels.dtype} {labels.shape}, expected float32 ({num_labels},)"
        )
    if not np.isfinite(labels).all() or (labels > ROUNDING).any():
        worst = int(np.argmax(~np.isfinite(labels) | (labels > ROUNDING)))
        raise ValueError(
            f"log-likelihoods: label {worst} is {labels[worst]}, expected finite, at most 0"
        )


def _digest_file(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            sha256.update(block)
    return sha256.hexdigest()
