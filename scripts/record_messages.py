"""Writes one message of every kind, with every field set, to tests/data/messages/VERSION/.

    python scripts/record_messages.py

What is recorded under a version that was released is never written again: tests read it to prove
that such messages are still understood. A message that changes after a release needs a new
PROTOCOL_VERSION (see docs/protocol.md) and a new recording.
"""

import json
import typing
from collections.abc import Iterable
from enum import Enum
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, TypeAdapter, ValidationError

import protocol
from protocol.values import Value

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "messages"

TEXTS = (
    "some words",
    "some-name",
    "ab" * 32,
    "cd" * 64,
    "12" * 16,
    "a0123456789abcdef",
    "12D3KooWGRUZtZpHdhCmpPHYmHmQ1EhQTpiRQHTJGPNEZxhBhZTM",
    "/ip4/203.0.113.7/tcp/4001",
    "203.0.113.7",
    "0.2.0",
)
"""Strings of every form that a field may ask for; the first that fits is taken."""

NUMBERS = (3, 1, 64, 10_000_000)

FIXED: dict[str, dict[str, Any]] = {
    "ModelShape": {
        "vocab_size": 32_000,
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_width": 128,
        "context_length": 64,
    },
    "Lora": {"rank": 4, "alpha": 8.0, "projections": ["q_proj", "v_proj"]},
    "TrainSpec": {
        "num_steps": 20,
        "schedule_steps": 30,
        "warmup_steps": 2,
        "peak_learning_rate": 0.001,
        "final_learning_rate": 0.0001,
        "sequence_length": 32,
    },
    "ExpertSpec": {
        "kind": "expert",
        "nested_widths": [],
        "trains": "lora",
        "ingredients": [],
        "origin": None,
    },
    "CheckpointManifest": {"kind": "expert", "step": 20},
    "ManifestFile": {"name": "model.safetensors"},
}
"""Where fields depend on each other."""


def messages() -> Iterable[type[Value]]:
    """Every value of the protocol, by name."""
    found = {
        name: kind
        for module in iter_modules(protocol.__path__)
        for name, kind in vars(import_module(f"protocol.{module.name}")).items()
        if isinstance(kind, type) and issubclass(kind, Value) and kind is not Value
    }
    return [found[name] for name in sorted(found)]


def sample(kind: type[BaseModel]) -> dict[str, Any]:
    """A message of this kind as JSON, with every field set."""
    fixed = FIXED.get(kind.__name__, {})
    made: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name in fixed:
            made[name] = fixed[name]
            continue
        annotation = field.annotation
        if field.metadata:
            annotation = Annotated[annotation, *field.metadata]  # type: ignore[assignment]
        made[name] = _value(annotation)
    parsed = kind.model_validate_json(json.dumps(made))
    return typing.cast("dict[str, Any]", json.loads(parsed.model_dump_json()))


def _value(annotation: Any) -> Any:
    bare = annotation
    while typing.get_origin(bare) is Annotated:
        bare = typing.get_args(bare)[0]
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin in (Union, UnionType):
        return _value(next(one for one in arguments if one is not NoneType))
    if origin is Literal:
        return arguments[0]
    if origin is tuple:
        return [_value(arguments[0])]
    if origin is dict:
        return {_value(arguments[0]): _value(arguments[1])}
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        return sample(bare)
    if isinstance(bare, type) and issubclass(bare, Enum):
        return next(iter(bare)).value
    choices: dict[Any, tuple[Any, ...]] = {
        bool: (True,),
        int: NUMBERS,
        float: (2.5, 0.5, *NUMBERS, 10.0**9),
        str: TEXTS,
        Any: ("anything",),
    }
    return next(one for one in choices[bare] if _fits(annotation, one))


def _fits(annotation: Any, candidate: Any) -> bool:
    try:
        TypeAdapter(annotation).validate_json(json.dumps(candidate))
    except ValidationError:
        return False
    return True


def main() -> None:
    """Writes the recordings of the present version."""
    folder = FOLDER / str(protocol.PROTOCOL_VERSION)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    for kind in messages():
        text = json.dumps(sample(kind), indent=1, sort_keys=True)
        (folder / f"{kind.__name__}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
