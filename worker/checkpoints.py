"""The checkpoints that a trainer left in its folder, as the agent sees them: without torch."""

import logging
import shutil
from pathlib import Path

from pydantic import ValidationError

from protocol.manifests import MAX_STATE_BYTES, TrainerState
from protocol.specs import ExpertSpec
from shared.logs import facts
from shared.tensorfiles import TensorFileError, read_header

log = logging.getLogger(__name__)

STATE = "state.json"
NUM_TENSOR_FILES = 2
"""What is trained, and its optimizer's moments."""


class TornCheckpoint(Exception):
    """A checkpoint's file is not as long as it says, is no JSON, or belongs to something else."""


def local_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that have all their names below a trainer's `folder`, oldest first."""
    return sorted(state.parent for state in (folder / "checkpoints").glob(f"step-*/{STATE}"))


def step_of(checkpoint: Path) -> int:
    """The step after which it was written."""
    return int(checkpoint.name.removeprefix("step-"))


def newest_whole(folder: Path, spec: ExpertSpec) -> Path | None:
    """The newest checkpoint of `spec` that is whole; torn ones that are newer are deleted.

    A power cut, a full disk or a damaged one may tear a file after it was written. Looks at states
    and headers and at the length of every file, not at every number: the trainer does that.
    """
    for checkpoint in reversed(local_checkpoints(folder)):
        try:
            _check(checkpoint, spec)
        except (OSError, TornCheckpoint, TensorFileError) as error:
            log.error("a torn checkpoint is passed over %s: %s", facts(path=checkpoint), error)
            shutil.rmtree(checkpoint, ignore_errors=True)
        else:
            return checkpoint
    return None


def drop_damaged(folder: Path, resume: str | None) -> bool:
    """Deletes the checkpoint from which a trainer could not go on, if it lies below its `folder`.

    False: it began elsewhere, or with none, and then no older checkpoint here helps.
    """
    if resume is None or Path(resume) not in local_checkpoints(folder):
        return False
    log.error("a damaged checkpoint is passed over %s", facts(path=resume))
    shutil.rmtree(resume, ignore_errors=True)
    return True


def _check(checkpoint: Path, spec: ExpertSpec) -> None:
    with (checkpoint / STATE).open("rb") as state_file:
        text = state_file.read(MAX_STATE_BYTES + 1)
    try:
        state = TrainerState.model_validate_json(text)
    except ValidationError as error:
        raise TornCheckpoint(f"{STATE}: {error}") from error
    expected = (spec.digest, step_of(checkpoint))
    if (state.spec, state.step) != expected:
        raise TornCheckpoint(f"{STATE}: step {state.step} of {state.spec}, expected {expected}")
    files = sorted(checkpoint.glob("*.safetensors"))
    if len(files) < NUM_TENSOR_FILES:
        raise TornCheckpoint(f"{len(files)} files of tensors, expected {NUM_TENSOR_FILES}")
    for file in files:
        read_header(file)
