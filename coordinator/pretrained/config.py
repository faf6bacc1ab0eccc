"""config.json of a Hugging Face directory: the shape it describes, if we compute the same. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from coordinator.pretrained.source import Anatomy, SourceError, make_anatomy

_FORWARD_PASS: dict[str, tuple[object, ...]] = {
    "model_type": ("llama", "mistral"),
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "rope_scaling": (None,),
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
    "quantization_config": (None,),
    "auto_map": (None,),
}
"""Keys of config.json that change what is computed, and the values with which it is a Llama's."""

_MISTRALS_OWN = {"num_key_value_heads", "sliding_window"}
"""Keys that a Mistral has other values of when they are not named."""

_SHAPE = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
    "context_length": "max_position_embeddings",
}


def anatomy_of(config: Mapping[str, Any], *, where: str) -> Anatomy:
    """What `config` says. Raises SourceError, which names `where`, for another forward pass."""
    _check_forward_pass(config, where)
    values: dict[str, Any] = {}
    for name, key in _SHAPE.items():
        if key not in config:
            raise SourceError(f"{where}: {key} is missing")
        values[name] = config[key]
    groups = config.get("num_key_value_heads")
    values["num_kv_heads"] = values["num_heads"] if groups is None else groups
    values["rope_theta"] = _rope_theta(config, where)
    values["norm_eps"] = config.get("rms_norm_eps", 1e-6)
    values["tied_embeddings"] = config.get("tie_word_embeddings", False)
    bos_id, eos_id = _special_ids(config, where)
    anatomy = make_anatomy(where, values, bos_id=bos_id, eos_id=eos_id)
    size = anatomy.shape.hidden_size // anatomy.shape.num_heads
    if config.get("head_dim", size) not in (size, None):
        raise SourceError(
            f"{where}: head_dim = {config['head_dim']!r:.80}: expected {size}, hidden_size divided "
            "by num_attention_heads"
        )
    _check_unused(config, where, anatomy.shape.vocab_size)
    return anatomy


def _check_forward_pass(config: Mapping[str, Any], where: str) -> None:
    for key, allowed in _FORWARD_PASS.items():
        value = config.get(key)
        if not any(type(value) is type(one) and value == one for one in allowed):
            words = " or ".join(map(json.dumps, allowed))
            raise SourceError(f"{where}: {key} = {json.dumps(value)[:200]}: expected {words}")
    missing = sorted(_MISTRALS_OWN - config.keys())
    if config["model_type"] == "mistral" and missing:
        raise SourceError(f"{where}: {missing[0]} is missing, which is not as in a Llama")


def _check_unused(config: Mapping[str, Any], where: str, vocab_size: int) -> None:
    """What is not heeded here must be possible, too: else the file is not what it says."""
    for key in ("attention_dropout", "initializer_range"):
        value = config.get(key)
        if value is not None and not (type(value) in (int, float) and 0 <= value <= 1):
            raise SourceError(
                f"{where}: {key} = {json.dumps(value):.80}: expected a number from 0 to 1"
            )
    # -1 is what old releases wrote for no padding
    for key, least in (("bos_token_id", 0), ("eos_token_id", 0), ("pad_token_id", -1)):
        for token in _ids(config, key) or []:
            if type(token) is not int or not least <= token < vocab_size:
                raise SourceError(
                    f"{where}: {key} = {json.dumps(config[key]):.80}: expected from {least} to "
                    f"{vocab_size - 1}"
                )


def _rope_theta(config: Mapping[str, Any], where: str) -> object:
    """The base of the rotary angles, from the key of transformers 5 or from that of 4."""
    rope, older = config.get("rope_parameters"), config.get("rope_theta", 10_000.0)
    if rope is None:
        return older
    if (
        not isinstance(rope, dict)
        or rope.get("rope_type", rope.get("type", "default")) != "default"
        or rope.get("partial_rotary_factor") not in _FORWARD_PASS["partial_rotary_factor"]
    ):
        raise SourceError(
            f"{where}: rope_parameters = {json.dumps(rope)[:200]}: expected rope_type "
            '"default", other angles are not computed here'
        )
    base = rope.get("rope_theta", older)
    if "rope_theta" in config and base != older:
        raise SourceError(
            f"{where}: rope_theta = {json.dumps(older):.80}: expected {json.dumps(base):.80}, as "
            "rope_parameters says"
        )
    return base


def _special_ids(config: Mapping[str, Any], where: str) -> tuple[int, int]:
    """The ids of BOS and EOS. A model without one of them begins documents with what ends them."""
    bos_id, eos_id = (_token(where, config, key) for key in ("bos_token_id", "eos_token_id"))
    bos_id = eos_id if bos_id is None else bos_id
    eos_id = bos_id if eos_id is None else eos_id
    if bos_id is None or eos_id is None:
        raise SourceError(f"{where}: neither bos_token_id nor eos_token_id, expected one")
    return bos_id, eos_id


def _token(where: str, config: Mapping[str, Any], key: str) -> int | None:
    ids = _ids(config, key)
    if ids is None:
        return None
    if not ids or any(type(token) is not int for token in ids):
        raise SourceError(f"{where}: {key} = {json.dumps(config[key]):.80}: expected an id")
    return int(ids[0])


def _ids(config: Mapping[str, Any], key: str) -> list[Any] | None:
    value = config.get(key)
    return value if value is None or isinstance(value, list) else [value]
