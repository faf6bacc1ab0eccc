"""A Hugging Face directory of a Llama: config.json, safetensors, and its tokenizer."""

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coordinator.pretrained.config import anatomy_of
from coordinator.pretrained.source import Anatomy, SourceError
from shared.tensorfiles import TensorEntry, TensorFileError, read_header
from shared.text.vocabulary import read_given

MAX_JSON_BYTES = 16_000_000
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")
_HALVES = {"F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), **_HALVES}


class Folder:
    """A directory as `save_pretrained` writes it. A Source."""

    def __init__(self, path: Path) -> None:
        """Raises SourceError, which says what is missing or is not as in a Llama."""
        self._path = path
        self._config = read_json(path / "config.json")

    @cached_property
    def anatomy(self) -> Anatomy:
        """What config.json says. Raises SourceError for another forward pass than ours."""
        return anatomy_of(self._config, where=str(self._path / "config.json"))

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """config.json and the files of weights."""
        names = sorted(set(self._places.values()))
        return {name: self._path / name for name in ["config.json", *names]}

    @cached_property
    def _places(self) -> dict[str, str]:
        """Tensor to the name of its file."""
        if not (self._path / INDEX).exists():
            return dict.fromkeys(self._header(WEIGHTS), WEIGHTS)
        found = read_json(self._path / INDEX).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise SourceError(f"{self._path / INDEX}: weight_map: expected tensors and their files")
        for name, file in found.items():
            if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
                raise SourceError(
                    f"{self._path / INDEX}: weight_map.{name:.80} = {file!r:.80}: expected the "
                    "name of a safetensors file beside it"
                )
        return found

    @cached_property
    def _entries(self) -> dict[str, tuple[Path, TensorEntry]]:
        headers = {file: self._header(file) for file in sorted(set(self._places.values()))}
        entries = {}
        for name, file in self._places.items():
            if name not in headers[file]:
                raise SourceError(f"{self._path / file}: tensor {name:.80} is missing")
            entries[name] = self._path / file, headers[file][name]
        return entries

    def extents(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor. Raises SourceError for a damaged or missing file."""
        return {name: entry.shape for name, (_, entry) in self._entries.items()}

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor as fp32, exactly. Raises SourceError for integers."""
        path, entry = self._entries[name]
        if entry.dtype not in _DTYPES:
            raise SourceError(
                f"{path}: tensor {name} is {entry.dtype}, expected one of {sorted(_DTYPES)}"
            )
        count = int(np.prod(entry.shape))
        raw = np.fromfile(path, dtype=_DTYPES[entry.dtype], count=count, offset=entry.begin)
        if entry.dtype == "BF16":
            # A bfloat16 is the upper half of a float32.
            raw = (raw.astype("<u4") << 16).view("<f4")
        return np.asarray(raw, dtype="<f4").reshape(entry.shape)

    def tokenizer(self) -> bytes:
        """Its tokenizer.json, else its SentencePiece model. Raises SourceError without either."""
        for name in ("tokenizer.json", "tokenizer.model"):
            if (self._path / name).exists():
                ids = {"bos_id": self.anatomy.bos_id, "eos_id": self.anatomy.eos_id}
                return read_given(self._path / name, **ids)
        raise SourceError(f"{self._path}: has neither tokenizer.json nor tokenizer.model")

    def _header(self, file: str) -> dict[str, TensorEntry]:
        path = self._path / file
        try:
            return read_header(path, also=_HALVES)
        except OSError as error:
            raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
        except TensorFileError as error:
            raise SourceError(f"{path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises SourceError, naming it, for anything else."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise SourceError(f"{path}: expected at most {MAX_JSON_BYTES} bytes")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise SourceError(f"{path}: expected a JSON object")
    return found
