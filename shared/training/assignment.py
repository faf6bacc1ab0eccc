"""The file that tells a trainer what to do."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from protocol.capability import Device
from protocol.specs import ExpertSpec, ModelShape, TrainSpec
from protocol.values import Amount, Positive, Value

STAY = "-"
"""In place of an assignment file: their paths come in lines on the trainer's standard input."""

PILOT = "--pilot"
"""Before the file of a `PilotAssignment`: the trainer tries its spec, and trains nothing."""

MIXTURE = "--mixture"
"""Before the file of a `MixtureAssignment`."""

MixtureTrains = Literal["router", "router_embeddings", "router_attention", "all"]
"""What of a mixture is trained: the router, and with it embeddings and head, or the projections of
attention, or everything. Everything else stays bit-equal."""

_MAX_BYTES = 65_536
Text = Annotated[str, Field(min_length=1, max_length=4096)]


class BadInput(ValueError):
    """Something that the trainer was given is missing, damaged or does not fit."""


class _Task(Value):
    """What a trainer reads from a file."""

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


class TrainerAssignment(_Task):
    """What to train, from what, where to write, on which device.

    `shard` and `parent` are files, `resume` a folder with a training checkpoint's three files, all
    verified against their digests by whoever wrote this. `folder` is the trainer's own work folder:
    it keeps `checkpoints/` and writes the expert's files into `expert/` there.
    `memory_bytes` is the most memory that it may have, None: what there is.
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
    memory_bytes: Positive | None = None

    @model_validator(mode="after")
    def _parent_fits_the_spec(self) -> Self:
        if (self.parent is None) != (self.parent_shape is None):
            raise ValueError("parent and parent_shape: expected both or neither")
        if (self.parent is None) != (self.spec.parent is None):
            raise ValueError(
                f"parent {self.parent!r}: expected one exactly when the spec names one"
            )
        if self.parent_shape is not None:
            _check_parent_shape(self.parent_shape, self.spec)
        return self


class PilotAssignment(_Task):
    """A spec of which trial steps are to be made: where, and within how much memory."""

    spec: ExpertSpec
    device: Device
    num_threads: Positive
    memory_bytes: Positive | None


class RouterLosses(Value):
    """What a router's losses weigh, beside the language model's.

    `penalty` is P-Penalty (HMoE, arXiv 2408.10681), which makes wide experts dear; `balance` makes
    all experts equally used; `entropy` makes decisions clear.
    """

    penalty: Amount = 0.0
    balance: Amount = 0.0
    entropy: Amount = 0.0


class MixtureAssignment(_Task):
    """Which part of a mixture to train, on what, where to write.

    `mixture` is the mixture's folder, `shard` a file of text of all its domains. With `losses` None
    a router's losses weigh what the mixture's configuration says. `gradient_checkpointing` computes
    a layer twice instead of keeping what it computed. The rest is as in a TrainerAssignment; what
    was trained goes into `trained/` in `folder`.
    """

    mixture: Text
    shard: Text
    trains: MixtureTrains
    train: TrainSpec
    losses: RouterLosses | None = None
    gradient_checkpointing: bool = False
    resume: Text | None
    folder: Text
    device: Device
    num_threads: Positive
    checkpoint_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    memory_bytes: Positive | None = None

    @field_validator("train")
    @classmethod
    def _recipe_is_one_for_mixtures(cls, train: TrainSpec) -> TrainSpec:
        if not train.num_steps:
            raise ValueError(f"num_steps {train.num_steps}: expected at least 1")
        if train.compile:
            raise ValueError(
                "compile True: expected False, since how many rows an expert gets is never the same"
            )
        return train


def _check_parent_shape(parent: ModelShape, spec: ExpertSpec) -> None:
    shape = spec.shape
    for name in sorted(ModelShape.model_fields.keys() - {"ffn_width", "context_length"}):
        if getattr(parent, name) != getattr(shape, name):
            raise ValueError(
                f"parent_shape.{name} {getattr(parent, name)}: expected {getattr(shape, name)}"
            )
    if parent.ffn_width < shape.ffn_width:
        raise ValueError(
            f"parent_shape.ffn_width {parent.ffn_width}: expected at least {shape.ffn_width}"
        )
    if spec.lora is not None and parent.ffn_width != shape.ffn_width:
        raise ValueError(
            f"parent_shape.ffn_width {parent.ffn_width}: expected {shape.ffn_width}, as an adapter "
            "belongs to the whole parent"
        )
