"""The files of a checkpoint and what they answer to. A manifest is itself a blob, written last."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from protocol.blobs import BlobRef
from protocol.ids import Digest, WorkerId
from protocol.specs import ExpertSpec
from protocol.values import Amount, Count, Number, Value

CheckpointKind = Literal["training", "expert"]
FileName = Literal[
    "model.safetensors", "adapter.safetensors", "optimizer.safetensors", "state.json"
]
"""The only names there are, so that no manifest can point outside its folder."""

FILES: dict[CheckpointKind, tuple[FileName, ...]] = {
    "training": ("model.safetensors", "optimizer.safetensors", "state.json"),
    "expert": ("model.safetensors",),
}
FILES_WITH_LORA: dict[CheckpointKind, tuple[FileName, ...]] = {
    "training": ("adapter.safetensors", "optimizer.safetensors", "state.json"),
    "expert": ("model.safetensors", "adapter.safetensors"),
}
MAX_MANIFEST_BYTES = 16_384
MAX_STATE_BYTES = 4096
MAX_CURVE_POINTS = 64


def files_of(kind: CheckpointKind, spec: ExpertSpec) -> tuple[FileName, ...]:
    """The files of a checkpoint of `spec`, in a manifest's order.

    With LoRA a training checkpoint is the adapter alone, beside a parent that does not change; an
    expert is the parent with the adapter added to its weights, and the adapter.
    """
    return (FILES if spec.lora is None else FILES_WITH_LORA)[kind]


class CurvePoint(Value):
    """The trainer's smoothed loss after a step, in nats per token: as its worker reported it."""

    step: Count
    loss: Number


Curve = Annotated[tuple[CurvePoint, ...], Field(strict=False, max_length=MAX_CURVE_POINTS)]
"""Points of a learning curve, steps ascending."""


def _check_curve(curve: Curve, step: int) -> None:
    steps = [point.step for point in curve]
    if steps != sorted(set(steps)) or max(steps, default=0) > step:
        raise ValueError(f"curve: steps {steps}, expected ascending ones up to {step}")


InexactFrom = Annotated[Count | None, Field(exclude_if=lambda step: step is None)]
"""Left out where there is nothing to say, as before there was such a field."""


class TrainerState(Value):
    """The contents of state.json: what a training checkpoint knows besides its tensors.

    `loss` is smoothed, in nats per token; `train_seconds` counts earlier attempts too. `curve` has
    the loss after some of the steps so far. From the update after `inexact_from` on, memory was
    short and micro-batches smaller than the spec's, so that these are not the bits which the spec
    gives; None: they are.
    """

    format: Literal[1] = 1
    spec: Digest
    step: Count
    loss: Number | None
    train_seconds: Amount
    curve: Curve = ()
    inexact_from: InexactFrom = None

    @model_validator(mode="after")
    def _curve_goes_on_to_the_step(self) -> Self:
        _check_curve(self.curve, self.step)
        return self


class ManifestFile(Value):
    """One file of a checkpoint."""

    name: FileName
    blob: BlobRef


class CheckpointManifest(Value):
    """What a worker names in a heartbeat (training) or a submission (expert).

    `spec` is the digest of the spec that was trained, `step` the optimizer updates done so far,
    `loss` the trainer's smoothed loss in nats per token, None before the first step; an expert's
    `curve` is that loss over its training, as the worker tells it. `inexact_from` is as in the
    state of its training.
    """

    kind: CheckpointKind
    spec: Digest
    worker: WorkerId
    step: Count
    loss: Number | None
    files: Annotated[tuple[ManifestFile, ...], Field(strict=False, max_length=8)]
    curve: Curve = ()
    inexact_from: InexactFrom = None

    @model_validator(mode="after")
    def _curve_goes_on_to_the_step(self) -> Self:
        _check_curve(self.curve, self.step)
        return self

    @model_validator(mode="after")
    def _holds_the_files_of_its_kind(self) -> Self:
        names = tuple(file.name for file in self.files)
        known = (FILES[self.kind], FILES_WITH_LORA[self.kind])
        if names not in known:
            raise ValueError(
                f"files {names}: expected {known[0]}, or with LoRA {known[1]}, for kind "
                f"{self.kind!r}"
            )
        return self

    def blob(self, name: FileName) -> BlobRef:
        """The reference of the file called `name`; KeyError if this kind has none."""
        for file in self.files:
            if file.name == name:
                return file.blob
        raise KeyError(name)
