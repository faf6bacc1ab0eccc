"""The file that tells a trainer what to do."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from protocol.capability import Device
from protocol.specs import ExpertSpec, ModelShape
from protocol.values import Positive, Value

_MAX_BYTES = 65_536
Text = Annotated[str, Field(min_length=1, max_length=4096)]


class BadInput(ValueError):
    """Something that the trainer was given is missing, damaged or does not fit."""


class TrainerAssignment(Value):
    """What to train, from what, where to write, on which device.

    `shard` and `parent` are files, `resume` a folder with a training checkpoint's three files, all
    verified against their digests by whoever wrote this. `folder` is the trainer's own work folder:
    it keeps `checkpoints/` and writes `expert/model.safetensors` there.
    """

    spec: ExpertSpec
    shard: Text
    parent: Text | None
    parent_shape: ModelShape | None
    resume: Text | None
    folder: Text
    device: Device
    num_threads: Positive
    checkpoint_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _parent_fits_the_spec(self) -> Self:
        if (self.parent is None) != (self.parent_shape is None):
            raise ValueError("parent and parent_shape: expected both or neither")
        if (self.parent is None) != (self.spec.parent is None):
            raise ValueError(
                f"parent {self.parent!r}: expected one exactly when the spec names one"
            )
        if self.parent_shape is not None:
            _check_parent_shape(self.parent_shape, self.spec.shape)
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises BadInput naming the file and the fields that are wrong."""
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise BadInput(f"assignment file {path}: {error.strerror}") from error
        if len(text) > _MAX_BYTES:
            raise BadInput(f"assignment file {path}: more than {_MAX_BYTES} bytes")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise BadInput(f"assignment file {path}: {error}") from error


def _check_parent_shape(parent: ModelShape, shape: ModelShape) -> None:
    for name in ("vocab_size", "hidden_size", "num_layers", "num_heads"):
        if getattr(parent, name) != getattr(shape, name):
            raise ValueError(
                f"parent_shape.{name} {getattr(parent, name)}: expected {getattr(shape, name)}"
            )
    if parent.ffn_width < shape.ffn_width:
        raise ValueError(
            f"parent_shape.ffn_width {parent.ffn_width}: expected at least {shape.ffn_width}"
        )
