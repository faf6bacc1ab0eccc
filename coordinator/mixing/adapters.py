"""LoRA adapters as PEFT writes them: adapter_config.json and one file of safetensors."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coordinator.pretrained.folder import read_json
from coordinator.pretrained.source import SourceError
from shared.lora import PREFIX, merged
from shared.mixing.ingredients import Floats, Ingredient, MixingError, Reader
from shared.tensorfiles import TensorEntry, TensorFileError, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_EMBEDDINGS = "model.embed_tokens.weight"
_ENDINGS = (".lora_A.weight", ".lora_B.weight")
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_WEIGHTS_ADDED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (False, None, {}),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "megatron_config": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    "alora_invocation_tokens": (None, []),
}
"""Keys that change what an adapter does, and the values with which it only adds B A to matrices."""

_CHECKPOINT = re.compile(r"[a-z0-9_.-]+-(ffn|rank)\d+-[0-9a-f]{8}")
"""What a run calls a checkpoint: names that differ are different checkpoints."""

_MODULE = re.compile(r"[A-Za-z0-9_.]+")


def is_adapter(path: Path) -> bool:
    """Whether the directory `path` holds an adapter, and no model."""
    return (path / CONFIG).is_file() and not (path / "config.json").exists()


def read_adapter(path: Path, base_path: Path, base: Ingredient) -> Ingredient:
    """The adapter in `path` added to `base`, which was opened at `base_path`.

    Ranks may differ between modules. Raises MixingError, naming the tensor or the key, for an
    adapter that fits another model, says that it belongs to one, or does more than add matrices.
    """
    config = _config(path / CONFIG)
    _check_base(config.get("base_model_name_or_path"), path, base_path)
    entries = _entries(path / WEIGHTS)
    scales = {
        module: _scale(config, path, module=module, rank=pair[0].shape[0])
        for module, pair in _pairs(path, entries, base).items()
    }
    files = {f"adapter/{name}": file_digest(path / name) for name in (CONFIG, WEIGHTS)}
    return replace(
        base,
        read=_merging(path / WEIGHTS, entries, scales, base.read),
        origin=f"{path.resolve().name} on {base.origin}",
        files={**files, **{f"base/{name}": digest for name, digest in base.files.items()}},
        is_adapter=True,
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except SourceError as error:
        raise MixingError(str(error)) from error
    for key, allowed in _WEIGHTS_ADDED.items():
        if config.get(key) not in allowed:
            words = " or ".join(json.dumps(one) for one in allowed)
            raise MixingError(
                f"{path}: {key} = {json.dumps(config.get(key))[:80]}: expected {words}"
            )
    return config


def _check_base(named: object, path: Path, base_path: Path) -> None:
    """Refuses what is told for certain: another directory's weights, another checkpoint's name."""
    if not isinstance(named, str) or not named:
        return
    last = named.rstrip("/").rpartition("/")[2]
    for place in (Path(named), base_path.resolve().parent / last):
        theirs, ours = place / "model.safetensors", base_path / "model.safetensors"
        if theirs.is_file() and ours.is_file():
            if file_digest(theirs) == file_digest(ours):
                return
            raise MixingError(
                f"{path / CONFIG}: base_model_name_or_path = {named!r:.200}: its model.safetensors "
                f"is not that of {base_path}: expected the adapter's own base"
            )
    found = base_path.resolve().name
    if found != last and _CHECKPOINT.fullmatch(last) and _CHECKPOINT.fullmatch(found):
        raise MixingError(
            f"{path / CONFIG}: base_model_name_or_path = {named!r:.200}: expected {found!r}, the "
            f"base that it is to be added to"
        )


def _entries(path: Path) -> dict[str, TensorEntry]:
    try:
        return read_header(path, also=_DTYPES)
    except OSError as error:
        raise MixingError(
            f"{path}: cannot be read: {error.strerror}; adapters are read from safetensors alone"
        ) from error
    except TensorFileError as error:
        raise MixingError(f"{path}: {error}") from error


def _pairs(
    path: Path, entries: Mapping[str, TensorEntry], base: Ingredient
) -> dict[str, tuple[TensorEntry, TensorEntry]]:
    """A [rank, inputs] and B [outputs, rank] of each module, which must be one of the base's."""
    modules: dict[str, None] = {}
    for name, entry in entries.items():
        module = _module(name)
        if module is None or f"{module}.weight" not in base.forms:
            raise MixingError(f"{path}: tensor {name!r:.120}: the base has no such matrix")
        if entry.dtype not in _DTYPES:
            raise MixingError(
                f"{path}: tensor {name} is {entry.dtype}, expected one of {sorted(_DTYPES)}"
            )
        modules[module] = None
    if not modules:
        raise MixingError(f"{path}: no tensor, expected A and B of at least one matrix")
    return {module: _pair(path, entries, module, base) for module in modules}


def _pair(
    path: Path, entries: Mapping[str, TensorEntry], module: str, base: Ingredient
) -> tuple[TensorEntry, TensorEntry]:
    names = _pair_names(module)
    form = base.forms[f"{module}.weight"][1]
    for name in names:
        if name not in entries:
            raise MixingError(f"{path}: tensor {name} is missing, beside its pair")
    a, b = (entries[name] for name in names)
    rank = a.shape[0] if a.shape else 0
    expected = (rank, form[-1]), (form[0], rank)
    for name, entry, shape in zip(names, (a, b), expected, strict=True):
        if len(form) != 2 or rank < 1 or entry.shape != shape:
            raise MixingError(
                f"{path}: tensor {name} is {list(entry.shape)}, expected {list(shape)} beside "
                f"{list(form)} of {module}.weight in its base"
            )
    return a, b


def _module(name: str) -> str | None:
    """The module that a tensor of an adapter belongs to; embeddings have none that can be added."""
    module = name.removeprefix(PREFIX)
    for ending in _ENDINGS:
        if name.startswith(PREFIX) and module.endswith(ending):
            module = module.removesuffix(ending)
            return None if f"{module}.weight" == _EMBEDDINGS else module
    return None


def _pair_names(module: str) -> tuple[str, str]:
    return f"{PREFIX}{module}{_ENDINGS[0]}", f"{PREFIX}{module}{_ENDINGS[1]}"


def _scale(config: Mapping[str, Any], path: Path, *, module: str, rank: int) -> float:
    """What B A of a module is multiplied with: alpha / rank, or alpha / sqrt(rank) (rsLoRA)."""
    said = _pattern(config, "rank_pattern", path, module=module, default=config.get("r"))
    alpha = _pattern(config, "alpha_pattern", path, module=module, default=config.get("lora_alpha"))
    if said != rank:
        raise MixingError(f"{path / CONFIG}: rank {said!r:.80} of {module}: its A has {rank} rows")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e9:
        raise MixingError(f"{path / CONFIG}: alpha {alpha!r:.80} of {module}: expected above 0")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


def _pattern(
    config: Mapping[str, Any], key: str, path: Path, *, module: str, default: object
) -> object:
    """What is said of a module by the end of its name. Regular expressions are refused."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise MixingError(f"{path / CONFIG}: {key} = {patterns!r:.80}: expected an object")
    for ending, value in patterns.items():
        plain = ending.removeprefix("^").removesuffix("$")
        if not _MODULE.fullmatch(plain):
            raise MixingError(f"{path / CONFIG}: {key}.{ending:.80}: expected a module's name")
        if module == plain or module.endswith(f".{plain}"):
            return value
    return default


def _merging(
    path: Path, entries: Mapping[str, TensorEntry], scales: Mapping[str, float], read: Reader
) -> Reader:
    def read_merged(name: str) -> Floats:
        weight, module = read(name), name.removesuffix(".weight")
        if module not in scales:
            return weight
        a, b = (_tensor(path, entries[one]) for one in _pair_names(module))
        return merged(weight, a, b, scale=scales[module])

    return read_merged


def _tensor(path: Path, entry: TensorEntry) -> Floats:
    dtype = _DTYPES[entry.dtype]
    raw: npt.NDArray[Any] = np.fromfile(
        path, dtype=dtype, count=math.prod(entry.shape), offset=entry.begin
    )
    if entry.dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        raw = (raw.astype("<u4") << 16).view("<f4")
    return np.asarray(raw, dtype="<f4").reshape(entry.shape)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
