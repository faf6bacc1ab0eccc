"""Whether a configuration's numbers can be a Llama's, before anything is made of them. Pure."""

import math
from typing import Any

MAX_WIDTH = 2**24
"""Features, tokens of a vocabulary, FFN units: at most."""

_MOST = {
    "vocab_size": MAX_WIDTH,
    "hidden_size": MAX_WIDTH,
    "num_hidden_layers": 2**16,
    "num_attention_heads": 2**16,
    "max_position_embeddings": 2**53,
}


def require(met: bool, field: str, value: object, expected: str) -> None:
    """Raises ValueError, naming `field`, its value and what was expected, unless `met`."""
    if not met:
        raise ValueError(f"{field}: {value!r:.200}, expected {expected}")


def check_sizes(config: Any) -> None:
    """Raises ValueError for numbers of tokens, features, layers, heads, positions that none has."""
    for field, most in _MOST.items():
        value = getattr(config, field)
        require(1 <= value <= most, field, value, f"from 1 to {most}")


def check_llama(config: Any) -> None:
    """Raises ValueError for what else of attention, norms, angles and token ids cannot be.

    `config` has all fields, and its sizes were checked.
    """
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    require(
        groups >= 1 and heads % groups == 0,
        "num_key_value_heads",
        groups,
        f"a divisor of num_attention_heads {heads}",
    )
    require(
        2 <= size <= 2**16 and size % 2 == 0, "head_dim", size, f"an even number from 2 to {2**16}"
    )
    # NaN fails each of these
    eps, dropout, spread = config.rms_norm_eps, config.attention_dropout, config.initializer_range
    require(0 < eps < 1, "rms_norm_eps", eps, "more than 0, less than 1")
    require(0 <= dropout < 1, "attention_dropout", dropout, "from 0, less than 1")
    require(0 <= spread <= 1, "initializer_range", spread, "from 0 to 1")
    _check_angles(config.rope_parameters)
    _check_tokens(config)


def _check_angles(rope: dict[str, Any] | None) -> None:
    for key, value in (rope or {}).items():
        if isinstance(value, float):
            require(math.isfinite(value), f"rope_parameters.{key}", value, "a finite number")
    base = (rope or {}).get("rope_theta")
    require(
        type(base) in (int, float) and 1 <= base <= 1e12,  # type: ignore[operator]
        "rope_parameters.rope_theta",
        base,
        "a number from 1 to 1e12",
    )


def _check_tokens(config: Any) -> None:
    last = config.vocab_size - 1
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, field)
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        require(
            bool(ids) and all(0 <= token <= last for token in ids),
            field,
            value,
            f"ids of the vocabulary, from 0 to {last}, or None",
        )
