"""The files of a checkpoint and what they answer to. A manifest is itself a blob, written last."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from protocol.blobs import BlobRef
from protocol.ids import Digest, WorkerId
from protocol.values import Amount, Count, Number, Value

CheckpointKind = Literal["training", "expert"]
FileName = Literal["model.safetensors", "optimizer.safetensors", "state.json"]
"""The only names there are, so that no manifest can point outside its folder."""

FILES: dict[str, tuple[FileName, ...]] = {
    "training": ("model.safetensors", "optimizer.safetensors", "state.json"),
    "expert": ("model.safetensors",),
}
MAX_MANIFEST_BYTES = 16_384
MAX_STATE_BYTES = 4096


class TrainerState(Value):
    """The contents of state.json: what a training checkpoint knows besides its tensors.

    `loss` is smoothed, in nats per token; `train_seconds` counts earlier attempts too.
    """

    format: Literal[1] = 1
    spec: Digest
    step: Count
    loss: Number | None
    train_seconds: Amount


class ManifestFile(Value):
    """One file of a checkpoint."""

    name: FileName
    blob: BlobRef


class CheckpointManifest(Value):
    """What a worker names in a heartbeat (training) or a submission (expert).

    `spec` is the digest of the spec that was trained, `step` the optimizer updates done so far,
    `loss` the trainer's smoothed loss in nats per token, None before the first step.
    """

    kind: CheckpointKind
    spec: Digest
    worker: WorkerId
    step: Count
    loss: Number | None
    files: Annotated[tuple[ManifestFile, ...], Field(strict=False, max_length=8)]

    @model_validator(mode="after")
    def _holds_the_files_of_its_kind(self) -> Self:
        names = tuple(file.name for file in self.files)
        if names != FILES[self.kind]:
            raise ValueError(f"files {names}: expected {FILES[self.kind]} for kind {self.kind!r}")
        return self

    def blob(self, name: FileName) -> BlobRef:
        """The reference of the file called `name`; KeyError if this kind has none."""
        for file in self.files:
            if file.name == name:
                return file.blob
        raise KeyError(name)
