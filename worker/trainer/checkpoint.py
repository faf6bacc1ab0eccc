"""Training checkpoints: three files in a folder that appears complete or not at all.

A folder `step-00000123` holds model.safetensors, optimizer.safetensors and state.json; with LoRA
adapter.safetensors takes the model's place. It is written under another name, synced and renamed;
state.json is its last file. Nothing random is stored: data order and nested widths are functions of
rng_seed and step.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from protocol.manifests import MAX_STATE_BYTES, FileName, files_of
from protocol.manifests import TrainerState as TrainerState
from protocol.specs import ExpertSpec
from shared import model as models
from shared.checkpointfiles import tensors_of
from shared.files import sync_folder, write_atomic
from shared.tensorfiles import check_file, check_finite, read_tensors, write_tensors
from shared.training.assignment import BadInput
from worker.trainer.lora import adapter_of, write_adapter, write_merged
from worker.trainer.optim import Optimizer

MODEL: FileName = "model.safetensors"
ADAPTER: FileName = "adapter.safetensors"
OPTIMIZER: FileName = "optimizer.safetensors"
STATE: FileName = "state.json"
_KEEP = 2


class Checkpoints:
    """The checkpoints of one trainer, in `folder`; the newest two are kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` lies."""
        return self._folder / f"step-{step:08d}"

    def begin_at(self, step: int, resume: Path | None) -> None:
        """Deletes what other attempts left from `step` on, except `resume`, and half-written ones.

        The folders of one training then always follow one another.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = None if resume is None else resume.resolve()
        for entry in sorted(self._folder.glob("*step-*")):
            later = entry.name.startswith(".") or entry.name >= self.path(step).name
            if later and entry.resolve() != kept:
                shutil.rmtree(entry)

    def write(self, state: TrainerState, write_tensors: Callable[[Path], None]) -> Path:
        """Writes the checkpoint of `state.step`, unless it is there already.

        `write_tensors` writes all but the state into a folder. Raises OSError and leaves the older
        ones intact.
        """
        target = self.path(state.step)
        if target.exists():
            return target
        partial = self._folder / f".{target.name}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            write_tensors(partial)
            write_atomic(partial / STATE, state.model_dump_json().encode())
            partial.rename(target)
            sync_folder(self._folder)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for old in sorted(self._folder.glob("step-*"))[:-_KEEP]:
            shutil.rmtree(old)
        return target


def write_weights(model: LlamaForCausalLM, folder: Path) -> None:
    """Writes the weights of a training checkpoint: with LoRA the adapter's alone."""
    if adapter_of(model):
        write_adapter(model, folder / ADAPTER)
    else:
        models.save(model, folder / MODEL)


def write_moments(moments: Mapping[str, npt.NDArray[Any]], folder: Path) -> None:
    """Writes the optimizer's state of a training checkpoint."""
    write_tensors(folder / OPTIMIZER, moments)


def write_expert(model: LlamaForCausalLM, folder: Path) -> Path:
    """Writes the expert's files into `folder` and returns that of its weights. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    if adapter_of(model):
        write_adapter(model, folder / ADAPTER)
        write_merged(model, folder / MODEL)
    else:
        models.save(model, folder / MODEL)
    return folder / MODEL


def read_state(folder: Path, spec: ExpertSpec) -> TrainerState:
    """The state of a checkpoint, once all of its files fit `spec`.

    Raises BadInput when the state is damaged or of another spec, TensorFileError when tensors do
    not fit or are not finite, OSError when a file is missing.
    """
    state = state_of(folder, spec=spec.digest, num_steps=spec.train.num_steps)
    for name in files_of("training", spec):
        if name != STATE:
            check_file(folder / name, tensors_of(name, spec))
            check_finite(folder / name)
    return state


def state_of(folder: Path, *, spec: str, num_steps: int) -> TrainerState:
    """What state.json says, where it is of the spec with this digest. Raises BadInput, OSError."""
    with (folder / STATE).open("rb") as file:
        text = file.read(MAX_STATE_BYTES + 1)
    if len(text) > MAX_STATE_BYTES:
        raise BadInput(f"{STATE}: more than {MAX_STATE_BYTES} bytes")
    try:
        state = TrainerState.model_validate_json(text)
    except ValidationError as error:
        raise BadInput(f"{STATE}: {error}") from error
    if state.spec != spec:
        raise BadInput(f"{STATE}: checkpoint of spec {state.spec}, expected {spec}")
    if state.step > num_steps:
        raise BadInput(f"{STATE}: step {state.step}, expected at most {num_steps}")
    return state


def restore(folder: Path, optimizer: Optimizer, *, step: int) -> None:
    """Puts a checkpoint's moments into `optimizer`.

    Raises BadInput for a negative second moment.
    """
    optimizer.restore(read_moments(folder), step=step)


def read_moments(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of the optimizer's state. Raises BadInput for a negative second moment."""
    moments = read_tensors(folder / OPTIMIZER)
    for name, tensor in moments.items():
        if name.startswith("exp_avg_sq.") and np.any(tensor < 0):
            raise BadInput(f"{OPTIMIZER}: tensor {name} has negative values")
    return moments
