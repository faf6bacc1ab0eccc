"""Training checkpoints: three files in a folder that appears complete or not at all.

A folder `step-00000123` holds model.safetensors, optimizer.safetensors and state.json. It is
written under another name, synced and renamed; state.json is its last file. Nothing random is
stored: data order and nested widths are functions of rng_seed and step.
"""

import shutil
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from protocol.manifests import MAX_STATE_BYTES
from protocol.manifests import TrainerState as TrainerState
from protocol.specs import ExpertSpec
from shared import model as models
from shared.files import sync_folder, write_atomic
from shared.tensorfiles import (
    check_file,
    check_finite,
    model_tensors,
    optimizer_tensors,
    read_tensors,
    write_tensors,
)
from worker.trainer.assignment import BadInput
from worker.trainer.optim import Optimizer

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
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

    def write(self, model: LlamaForCausalLM, optimizer: Optimizer, state: TrainerState) -> Path:
        """Writes the checkpoint of `state.step`, unless it is there already.

        Raises OSError and leaves the older ones intact.
        """
        target = self.path(state.step)
        if target.exists():
            return target
        partial = self._folder / f".{target.name}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            models.save(model, partial / MODEL)
            write_tensors(partial / OPTIMIZER, optimizer.moments())
            write_atomic(partial / STATE, state.model_dump_json().encode())
            partial.rename(target)
            sync_folder(self._folder)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for old in sorted(self._folder.glob("step-*"))[:-_KEEP]:
            shutil.rmtree(old)
        return target


def read_state(folder: Path, spec: ExpertSpec) -> TrainerState:
    """The state of a checkpoint, once all of its files fit `spec`.

    Raises BadInput when the state is damaged or of another spec, TensorFileError when tensors do
    not fit or are not finite, OSError when a file is missing.
    """
    with (folder / STATE).open("rb") as file:
        text = file.read(MAX_STATE_BYTES + 1)
    if len(text) > MAX_STATE_BYTES:
        raise BadInput(f"{STATE}: more than {MAX_STATE_BYTES} bytes")
    try:
        state = TrainerState.model_validate_json(text)
    except ValidationError as error:
        raise BadInput(f"{STATE}: {error}") from error
    if state.spec != spec.digest:
        raise BadInput(f"{STATE}: checkpoint of spec {state.spec}, expected {spec.digest}")
    if state.step > spec.train.num_steps:
        raise BadInput(f"{STATE}: step {state.step}, expected at most {spec.train.num_steps}")
    for name, forms in (
        (MODEL, model_tensors(spec.shape)),
        (OPTIMIZER, optimizer_tensors(spec.shape)),
    ):
        check_file(folder / name, forms)
        check_finite(folder / name)
    return state


def restore(folder: Path, optimizer: Optimizer, *, step: int) -> None:
    """Puts a checkpoint's moments into `optimizer`.

    Raises BadInput for a negative second moment.
    """
    moments = read_tensors(folder / OPTIMIZER)
    for name, tensor in moments.items():
        if name.startswith("exp_avg_sq.") and np.any(tensor < 0):
            raise BadInput(f"{OPTIMIZER}: tensor {name} has negative values")
    optimizer.restore(moments, step=step)
