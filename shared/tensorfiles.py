"""Safetensors files by hand: what a spec's files must hold, checked before anything is allocated.

Files come from strangers, so the header is read with limits and compared with what the spec says:
names, dtypes, shapes, offsets without gaps or overlaps, the exact length of the file. Writing is
here too, so that every file is streamed, synced and renamed into place.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.specs import ModelShape, Trains

MAX_HEADER_BYTES = 1024 * 1024
_MAX_DIMENSIONS = 8
_MAX_EXTENT = 2**53
_CHUNK = 1 << 22
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
}

TensorForm = tuple[str, tuple[int, ...]]
"""The dtype in safetensors' words and the shape, such as ("F32", (4096, 128))."""


class TensorFileError(ValueError):
    """A tensor file is damaged or holds something else than it should; the message says what."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: its form, and its first and last byte (exclusive) in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def form(self) -> TensorForm:
        """The tensor's dtype and shape."""
        return self.dtype, self.shape


def model_tensors(shape: ModelShape) -> dict[str, TensorForm]:
    """Name and form of every weight of a Llama of `shape`, as Hugging Face names them, in order.

    A tied output embedding is no tensor of its own.
    """
    hidden, ffn, vocab = shape.hidden_size, shape.ffn_width, shape.vocab_size
    projections = {"q": hidden, "k": shape.kv_size, "v": shape.kv_size, "o": hidden}
    forms: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}"
        for part, rows in projections.items():
            forms[f"{prefix}.self_attn.{part}_proj.weight"] = (rows, hidden)
        forms[f"{prefix}.mlp.gate_proj.weight"] = (ffn, hidden)
        forms[f"{prefix}.mlp.up_proj.weight"] = (ffn, hidden)
        forms[f"{prefix}.mlp.down_proj.weight"] = (hidden, ffn)
        forms[f"{prefix}.input_layernorm.weight"] = (hidden,)
        forms[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
    forms["model.norm.weight"] = (hidden,)
    if not shape.tied_embeddings:
        forms["lm_head.weight"] = (vocab, hidden)
    return {name: ("F32", form) for name, form in forms.items()}


def moments_of(weights: Mapping[str, TensorForm]) -> dict[str, TensorForm]:
    """Name and form of Adam's moments of `weights`, frozen ones (zeros) too."""
    return {
        f"{moment}.{name}": form
        for moment in ("exp_avg", "exp_avg_sq")
        for name, form in weights.items()
    }


def max_bytes(expected: Mapping[str, TensorForm]) -> int:
    """Most bytes that a valid file of `expected` tensors can have."""
    return 8 + MAX_HEADER_BYTES + sum(_size(*form) for form in expected.values())


def read_header(
    path: Path, *, also: Mapping[str, np.dtype[Any]] | None = None
) -> dict[str, TensorEntry]:
    """The tensors that a file claims to hold, after checking that the claim is consistent.

    Dtypes are those of our own files, and those of `also`. Raises TensorFileError when the header
    is too long, is no JSON of the right form, names a key twice, or when the tensors leave gaps,
    overlap, or do not fill the file exactly.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if file_bytes < 8 or length > MAX_HEADER_BYTES or 8 + length > file_bytes:
            raise TensorFileError(
                f"{path.name}: header of {length} bytes in a file of {file_bytes} bytes, expected "
                f"at most {MAX_HEADER_BYTES} and inside the file"
            )
        header = _parse(file.read(length), path.name)
    start = 8 + length
    dtypes = {**_DTYPES, **(also or {})}
    entries = {name: _entry(name, value, start, dtypes) for name, value in header.items()}
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise TensorFileError(
                f"{_short(name)}: begins at byte {entry.begin}, expected {position}: "
                "no gaps, no overlaps"
            )
        position = entry.end
    if position != file_bytes:
        raise TensorFileError(
            f"{path.name}: {file_bytes} bytes, expected {position} after its last tensor"
        )
    return entries


def check_file(path: Path, expected: Mapping[str, TensorForm]) -> None:
    """Raises TensorFileError unless the file holds exactly the `expected` tensors."""
    entries = read_header(path)
    for name in sorted(entries.keys() ^ expected.keys()):
        problem = "missing" if name in expected else "not expected"
        raise TensorFileError(f"{path.name}: tensor {_short(name)} is {problem}")
    for name, form in expected.items():
        if entries[name].form != form:
            raise TensorFileError(
                f"{path.name}: tensor {name} is {entries[name].form}, expected {form}"
            )


def check_finite(path: Path, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Raises TensorFileError naming the first tensor that holds NaN or an infinity.

    `progress(done, total)` counts elements.
    """
    tensors = read_tensors(path)
    done, total = 0, sum(tensor.size for tensor in tensors.values())
    for name, tensor in tensors.items():
        flat = tensor.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            if not np.isfinite(flat[start : start + _CHUNK]).all():
                raise TensorFileError(f"{path.name}: tensor {name} has NaN or infinite values")
        done += tensor.size
        if progress is not None:
            progress(done, total)


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a file as read-only arrays over a memory map. Raises TensorFileError."""
    entries = read_header(path)
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    return {
        name: np.asarray(raw[entry.begin : entry.end].view(_DTYPES[entry.dtype])).reshape(
            entry.shape
        )
        for name, entry in entries.items()
    }


def write_tensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes `tensors` to `path` as safetensors: streamed, synced, renamed into place.

    The widest dtypes come first, so that every tensor is aligned. Raises OSError (a full disk),
    which leaves nothing at `path`, and TensorFileError for a dtype that no file of ours holds.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    forms: dict[str, TensorForm] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in names:
            raise TensorFileError(
                f"{name}: dtype {tensor.dtype}, expected one of {sorted(_DTYPES)}"
            )
        forms[name] = names[tensor.dtype], tensor.shape
    stream_tensors(path, forms, tensors.__getitem__)


def stream_tensors(
    path: Path,
    forms: Mapping[str, TensorForm],
    read: Callable[[str], npt.NDArray[Any]],
) -> None:
    """Writes the tensors of `forms` as `write_tensors` does, each as `read` gives it.

    No more than one is asked for at a time. Raises what `read` raises, which leaves nothing at
    `path`, and TensorFileError for a tensor that is not of its form.
    """
    header: dict[str, dict[str, object]] = {}
    position = 0
    ordered = sorted(forms.items(), key=lambda item: -_DTYPES[item[1][0]].itemsize)
    for name, (dtype, shape) in ordered:
        end = position + _size(dtype, shape)
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, (dtype, shape) in ordered:
                tensor = read(name)
                if (tensor.dtype, tensor.shape) != (_DTYPES[dtype], shape):
                    raise TensorFileError(
                        f"{name}: {tensor.dtype} {tensor.shape}, expected {dtype} {shape}"
                    )
                file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _parse(text: bytes, file_name: str) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        if len(keys) != len(set(keys)):
            raise ValueError("a key stands twice")
        return dict(pairs)

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON number")

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"{file_name}: header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise TensorFileError(f"{file_name}: header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise TensorFileError(f"{file_name}: __metadata__ is no map of strings")
    return header


def _entry(
    name: str, value: object, start: int, dtypes: Mapping[str, np.dtype[Any]]
) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorFileError(f"{_short(name)}: expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise TensorFileError(
            f"{_short(name)}: dtype {_short(dtype)}, expected one of {sorted(dtypes)}"
        )
    if not _counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise TensorFileError(f"{_short(name)}: shape {_short(shape)} is no list of sizes")
    if not _counts(offsets) or len(offsets) != 2:
        raise TensorFileError(f"{_short(name)}: data_offsets {_short(offsets)} are no pair")
    begin, end = offsets
    size = dtypes[dtype].itemsize * math.prod(shape)
    if end - begin != size:
        raise TensorFileError(
            f"{_short(name)}: {end - begin} bytes, expected {size} for {dtype} {_short(shape)}"
        )
    return TensorEntry(dtype=dtype, shape=tuple(shape), begin=start + begin, end=start + end)


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item <= _MAX_EXTENT for item in value
    )


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    return _DTYPES[dtype].itemsize * math.prod(shape)


def _short(value: object) -> str:
    return repr(value)[:80]


_TRAINED: dict[Trains, tuple[str, ...]] = {
    "all": ("",),
    "ffn": (".mlp.",),
    "ffn_embeddings": (".mlp.", "embed_tokens.", "lm_head."),
    "lora": (".lora_",),
}


def is_trained(trains: Trains, name: str) -> bool:
    """Whether an expert that `trains` these may change the tensor called `name`.

    The trainer freezes by this rule and the coordinator verifies by it.
    """
    return any(part in name for part in _TRAINED[trains])
