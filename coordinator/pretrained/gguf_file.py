"""A GGUF file of a Llama: its metadata, its tensors, quantised or not, and its tokenizer.

Needs the optional extra `gguf`. The file is mapped; one tensor at a time becomes fp32.
"""

import importlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coordinator.pretrained.gguf_tokenizer import tokenizer_of
from coordinator.pretrained.source import Anatomy, SourceError, make_anatomy

_SHAPE = {
    "hidden_size": "llama.embedding_length",
    "num_layers": "llama.block_count",
    "num_heads": "llama.attention.head_count",
    "ffn_width": "llama.feed_forward_length",
    "context_length": "llama.context_length",
}
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's names of the weights, and Hugging Face's."""


class GgufFile:
    """A file of llama.cpp's. A Source."""

    def __init__(self, path: Path) -> None:
        """Raises SourceError without the extra, and for a file that is none of these."""
        self._path = path
        try:
            self._library: Any = importlib.import_module("gguf")
        except ImportError as error:
            raise SourceError(
                f"{path}: the library `gguf` is not installed; `pip install 'hdee[gguf]'` brings it"
            ) from error
        try:
            self._reader = _bounded(self._library.GGUFReader)(path)
            self._tensors = {
                _hugging_face(str(tensor.name)): tensor for tensor in self._reader.tensors
            }
        except OSError as error:
            raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
        except Exception as error:  # whatever the library stumbles over in a damaged file
            raise SourceError(f"{path}: not a GGUF file: {error!r:.200}") from error

    @cached_property
    def anatomy(self) -> Anatomy:
        """What its metadata says. Raises SourceError for another forward pass than ours."""
        where = str(self._path)
        for key, expected in (("general.architecture", "llama"), ("llama.rope.scaling.type", None)):
            value = self.field(key)
            if value != expected and not (expected is None and value == "none"):
                raise SourceError(f"{where}: {key} = {value!r:.80}: expected {expected or 'none'}")
        values = {name: self._needed(key) for name, key in _SHAPE.items()}
        values["vocab_size"] = len(self._needed("tokenizer.ggml.tokens"))
        values["num_kv_heads"] = self.field("llama.attention.head_count_kv") or values["num_heads"]
        values["rope_theta"] = _shortest(self.field("llama.rope.freq_base") or 10_000.0)
        values["norm_eps"] = _shortest(self._needed("llama.attention.layer_norm_rms_epsilon"))
        values["tied_embeddings"] = "lm_head.weight" not in self._tensors
        eos_id = self._needed("tokenizer.ggml.eos_token_id")
        bos_id = self.field("tokenizer.ggml.bos_token_id")
        anatomy = make_anatomy(
            where, values, bos_id=eos_id if bos_id is None else bos_id, eos_id=eos_id
        )
        size = anatomy.shape.hidden_size // anatomy.shape.num_heads
        for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
            if self.field(f"llama.{key}") not in (size, None):
                raise SourceError(
                    f"{where}: llama.{key} = {self.field(f'llama.{key}')}: expected {size}, "
                    "embedding_length divided by head_count"
                )
        return anatomy

    @property
    def files(self) -> Mapping[str, Path]:
        """The file itself."""
        return {"gguf": self._path}

    def extents(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor, by Hugging Face's names."""
        return {
            name: tuple(int(extent) for extent in reversed(tensor.shape))
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor as fp32. Raises SourceError for an encoding that the library cannot undo."""
        tensor = self._tensors[name]
        try:
            full = self._library.dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise SourceError(f"{self._path}: tensor {name}: {error}") from error
        full = np.asarray(full, dtype=np.float32).reshape(self.extents()[name])
        if name.endswith(".q_proj.weight"):
            return _interleaved(full, self.anatomy.shape.num_heads)
        if name.endswith(".k_proj.weight"):
            return _interleaved(full, self.anatomy.shape.kv_heads)
        return full

    def tokenizer(self) -> bytes:
        """The tokenizer in its metadata. Raises SourceError for a kind that is not known here."""
        ids = {"bos_id": self.anatomy.bos_id, "eos_id": self.anatomy.eos_id}
        return tokenizer_of(self.field, where=str(self._path), **ids)

    def field(self, key: str) -> Any:
        """The value of a key of the metadata; None where there is none."""
        field = self._reader.get_field(key)
        try:
            return None if field is None else field.contents()
        except (ValueError, LookupError) as error:
            raise SourceError(f"{self._path}: {key}: {error}") from error

    def _needed(self, key: str) -> Any:
        value = self.field(key)
        if value is None:
            raise SourceError(f"{self._path}: {key} is missing")
        return value


def _bounded(reader: Any) -> Any:
    """The library's reader, made to stop at the end of the file: it would read on for ever."""

    class Bounded(reader):  # type: ignore[misc]
        def _get(self, offset: int, dtype: Any, count: Any = 1, *more: Any, **named: Any) -> Any:
            end = offset + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise ValueError(f"it ends before byte {end}")
            return super()._get(offset, dtype, count, *more, **named)

    return Bounded


def _hugging_face(name: str) -> str:
    """Hugging Face's name of a tensor; the same name where it has none."""
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    block, _, part = stem.partition(".")[2].partition(".")
    if stem.startswith("blk.") and part in _LAYER_NAMES:
        return f"model.layers.{block}.{_LAYER_NAMES[part]}.{kind}"
    return name


def _interleaved(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of queries or keys in Hugging Face's order: halves, where llama.cpp has pairs."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _shortest(value: float) -> float:
    """The number that was meant by a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
