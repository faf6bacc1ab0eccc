"""A Llama from elsewhere, as a folder or a file: its shape, its tensors, its tokenizer.

Nothing of it is run, and nothing unpickled: weights come from safetensors or GGUF alone. One tensor
is in memory at a time.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from coordinator.text.prepared import PrepareError
from protocol.digests import digest_value
from protocol.ids import Digest
from protocol.specs import ModelShape
from shared.tensorfiles import model_tensors, stream_tensors

MAX_LAYERS = 1024
"""More would only be a way to keep us busy naming tensors."""

_CHUNK = 1 << 22


class SourceError(PrepareError):
    """A model cannot be used; the message names the file, the key, its value, what was expected."""


@dataclass(frozen=True)
class Anatomy:
    """What a model's configuration says: its shape, its longest context, and its special ids.

    `eos_id` ends what the model writes, `bos_id` begins its documents.
    """

    shape: ModelShape
    bos_id: int
    eos_id: int


class Source(Protocol):
    """A model in files."""

    @property
    def anatomy(self) -> Anatomy:
        """What its configuration says."""

    @property
    def files(self) -> Mapping[str, Path]:
        """The files that its weights and its shape come from, by a name that stays the same."""

    def extents(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor there is, by the names of `model_tensors`."""

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor as fp32."""

    def tokenizer(self) -> bytes:
        """Its tokenizer, as `shared.text.vocabulary` takes it."""


def make_anatomy(where: str, values: Mapping[str, Any], *, bos_id: int, eos_id: int) -> Anatomy:
    """The anatomy with these values of ModelShape. Raises SourceError when they are none."""
    try:
        shape = ModelShape.model_validate(dict(values))
    except ValidationError as error:
        item = error.errors()[0]
        key = ".".join(map(str, item["loc"]))
        words = str(item["msg"]).removeprefix("Value error, ")
        shown = f"{key} = {item['input']!r:.200}: " if key else ""
        raise SourceError(f"{where}: {shown}{words}") from error
    if shape.num_layers > MAX_LAYERS:
        raise SourceError(
            f"{where}: num_layers = {shape.num_layers}: expected at most {MAX_LAYERS}"
        )
    for key, token in (("bos_token_id", bos_id), ("eos_token_id", eos_id)):
        if not 0 <= token < shape.vocab_size:
            raise SourceError(
                f"{where}: {key} = {token}: expected from 0 to {shape.vocab_size - 1}"
            )
    return Anatomy(shape=shape, bos_id=bos_id, eos_id=eos_id)


def check_tensors(source: Source, where: str) -> None:
    """Raises SourceError unless the tensors are those of a Llama of the source's shape.

    Beside them there may be what transformers leaves unread, too: tables of rotary angles, and the
    output embedding of a model whose embeddings are tied.
    """
    expected = {name: form for name, (_, form) in model_tensors(source.anatomy.shape).items()}
    found = source.extents()
    for name, extents in expected.items():
        if name not in found:
            raise SourceError(f"{where}: tensor {name} is missing, expected {list(extents)}")
        if found[name] != extents:
            raise SourceError(
                f"{where}: tensor {name} is {list(found[name])}, expected {list(extents)}"
            )
    for name in sorted(found.keys() - expected.keys()):
        if not name.endswith(".rotary_emb.inv_freq") and name != "lm_head.weight":
            raise SourceError(
                f"{where}: tensor {name!r:.100}: not part of a Llama as we compute it"
            )


def write_own(source: Source, path: Path) -> None:
    """The model at its own width as a file of ours, fp32. Raises SourceError for NaN, OSError."""
    stream_tensors(path, model_tensors(source.anatomy.shape), lambda name: _finite(source, name))


def origin_of(source: Source) -> Digest:
    """The digest of all files that the weights and the shape come from."""
    return digest_value({name: _sha256(path) for name, path in source.files.items()})


def _finite(source: Source, name: str) -> npt.NDArray[np.float32]:
    tensor = source.read(name)
    if not np.isfinite(tensor).all():
        raise SourceError(f"tensor {name} has NaN or infinite values")
    return tensor


def _sha256(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()
