"""Opens a mixture's folder with this project's own modelling code, never the folder's.

What the tensors must be follows from the configuration, and the file's header is compared with it
before anything is allocated.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from transformers import GenerationConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from shared.mixing.hub.configuration_hdee_moe import HdeeMoeConfig
from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM
from shared.mixing.ingredients import MixingError
from shared.tensorfiles import MAX_HEADER_BYTES, TensorForm, check_file, check_finite

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_GENERATION = "generation_config.json"
_MAX_CONFIG_BYTES = 1 << 20
_MAX_FFNS = MAX_HEADER_BYTES // 128
_READ = {"architectures", "rope_theta", *HdeeMoeConfig.__annotations__}
"""What is read of a configuration: our fields, not all else that transformers would heed."""


def open_mixture(folder: Path) -> HdeeMoeForCausalLM:
    """The model in `folder`, fp32, ready for inference.

    Raises MixingError for a configuration that is none or cannot be, naming the field;
    TensorFileError when a tensor is missing, not expected or of another form; OSError.
    """
    config = read_config(folder)
    model = _empty(config)
    path = folder / _WEIGHTS
    check_file(path, mixture_tensors(config))
    check_finite(path)
    model.load_state_dict(load_file(path), strict=not config.tie_word_embeddings, assign=True)
    model.tie_weights()
    if (folder / _GENERATION).is_file():
        model.generation_config = _generation(folder / _GENERATION)
    return model.eval()


def reconfigured(model: HdeeMoeForCausalLM, config: HdeeMoeConfig) -> HdeeMoeForCausalLM:
    """A model of the very same weights that selects and decides as `config` says.

    Modules read their settings when they are made, so that none of `model` would heed another
    configuration. Raises RuntimeError when `config` has other tensors.
    """
    config._attn_implementation = model.config._attn_implementation
    other = _empty(config)
    other.load_state_dict(model.state_dict(), assign=True)
    other.tie_weights()
    return other.eval()


def read_config(folder: Path) -> HdeeMoeConfig:
    """The configuration of the mixture in `folder`. Raises MixingError, OSError."""
    path = folder / _CONFIG
    found = _read_json(path)
    if found.get("model_type") != HdeeMoeConfig.model_type:
        raise MixingError(
            f"{path.name}: model_type {found.get('model_type')!r:.80}, expected "
            f"{HdeeMoeConfig.model_type!r}"
        )
    try:
        config = HdeeMoeConfig.from_dict({key: found[key] for key in found if key in _READ})
    except Exception as error:  # transformers raises errors of many classes here
        raise MixingError(f"{path.name}: {_short(error)}") from error
    _check_forward_pass(config, found)
    layers, experts = config.num_hidden_layers, config.num_experts
    if layers > _MAX_FFNS or len(config.routed_layers) * experts > _MAX_FFNS:
        raise MixingError(
            f"{path.name}: num_hidden_layers {layers}, {experts} experts: expected at most "
            f"{_MAX_FFNS} FFNs, which is more than a file of ours can name"
        )
    config.dtype = torch.float32
    config._attn_implementation = "sdpa"
    return config


def _check_forward_pass(config: HdeeMoeConfig, found: Mapping[str, Any]) -> None:
    """That the angles and the activation are among those that we compute."""
    rope = config.rope_parameters or {}
    for field, value, is_known, expected in (
        ("hidden_act", config.hidden_act, config.hidden_act in ACT2FN, "an activation's name"),
        ("rope_scaling", found.get("rope_scaling"), found.get("rope_scaling") is None, "none"),
        ("rope_parameters", rope, rope.get("rope_type") == "default", "rope_type 'default'"),
    ):
        if not is_known:
            raise MixingError(f"{_CONFIG}: {field}: {value!r:.200}, expected {expected}")


def mixture_tensors(config: HdeeMoeConfig) -> dict[str, TensorForm]:
    """Name and form of every tensor of a mixture, in order; tied heads are none of their own."""
    model = _empty(config)
    tied = model._tied_weights_keys if config.tie_word_embeddings else {}
    return {
        name: ("F32", tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if name not in tied
    }


def _empty(config: HdeeMoeConfig) -> HdeeMoeForCausalLM:
    """A model whose weights are to be assigned."""
    try:
        with torch.device("meta"):
            model = HdeeMoeForCausalLM(config)
        model.model.rotary_emb = LlamaRotaryEmbedding(config=cast(Any, config))
    except Exception as error:  # torch and transformers raise errors of many classes here
        raise MixingError(f"{_CONFIG}: no model can be so: {error!r:.200}") from error
    return model


def _generation(path: Path) -> GenerationConfig:
    try:
        return GenerationConfig.from_dict(_read_json(path))
    except MixingError:
        raise
    except Exception as error:  # transformers raises errors of many classes here
        raise MixingError(f"{path.name}: {_short(error)}") from error


def _short(error: Exception) -> str:
    """An error's words in one line; they may quote a whole file."""
    return " ".join(f"{error!s:.400}".split())


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise MixingError(
            f"{path.name}: {path.stat().st_size} bytes, expected at most {_MAX_CONFIG_BYTES}"
        )
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise MixingError(f"{path.name}: no JSON: {error}") from error
    if not isinstance(found, dict):
        raise MixingError(f"{path.name}: {type(found).__name__}, expected an object")
    return found
