"""The lines that a trainer writes to stdout: one JSON object a line, nothing else."""

import json
import sys
from pathlib import Path
from typing import Literal

from protocol.manifests import TrainerState
from worker.trainer.curve import ended

FailureCode = Literal["out_of_memory", "bad_input", "disk_full", "diverged", "trainer_failed"]

_MAX_MESSAGE = 2000


def started(*, step: int, num_steps: int) -> None:
    """Everything is loaded; the next update is the one after `step`."""
    _write({"event": "started", "step": step, "num_steps": num_steps})


def progress(
    *,
    step: int,
    num_steps: int,
    loss: float,
    tokens_per_second: float,
    eta_seconds: float,
    peak_memory_bytes: int,
) -> None:
    """About once a second. `loss` is smoothed, in nats per token; the peak is the process's."""
    _write(
        {
            "event": "progress",
            "step": step,
            "num_steps": num_steps,
            "loss": loss,
            "tokens_per_second": tokens_per_second,
            "eta_seconds": eta_seconds,
            "peak_memory_bytes": peak_memory_bytes,
        }
    )


def fits(*, micro_batch: int, peak_memory_bytes: int, tokens_per_second: float) -> None:
    """Trial steps were made, with `micro_batch` sequences at a time."""
    _write(
        {
            "event": "fits",
            "micro_batch": micro_batch,
            "peak_memory_bytes": peak_memory_bytes,
            "tokens_per_second": tokens_per_second,
        }
    )


def reduced(*, step: int, micro_batch: int) -> None:
    """Memory ran out in the update after `step`, which was made with `micro_batch` sequences at a
    time, as all later ones will be: the same batch, but from here on not bit by bit the spec's."""
    _write({"event": "reduced", "step": step, "micro_batch": micro_batch})


def checkpoint(state: TrainerState, *, folder: Path) -> None:
    """A training checkpoint lies complete in `folder`."""
    _write(
        {
            "event": "checkpoint",
            "step": state.step,
            "loss": state.loss,
            "folder": str(folder),
            "inexact_from": state.inexact_from,
        }
    )


def finished(
    state: TrainerState,
    *,
    file: Path,
    end: Path | None,
    tokens_per_second: float,
    peak_memory_bytes: int,
) -> None:
    """The expert lies complete in `file`. `train_seconds` counts earlier attempts too.

    `end` is the folder of the last step's training checkpoint, where a longer training could go on
    from there.
    """
    curve = ended(state.curve, step=state.step, loss=state.loss)
    _write(
        {
            "event": "finished",
            "step": state.step,
            "loss": state.loss,
            "file": str(file),
            "end": None if end is None else str(end),
            "train_seconds": state.train_seconds,
            "tokens_per_second": tokens_per_second,
            "peak_memory_bytes": peak_memory_bytes,
            "inexact_from": state.inexact_from,
            "curve": [point.model_dump() for point in curve],
        }
    )


def stopped(*, step: int) -> None:
    """Asked to stop: a checkpoint of `step` was written before."""
    _write({"event": "stopped", "step": step})


def failed(code: FailureCode, message: str, *, peak_memory_bytes: int | None = None) -> None:
    """The trainer gives up; checkpoints written before stay.

    `peak_memory_bytes` comes with out_of_memory: what it had when no more could be had.
    """
    event: dict[str, object] = {"event": "failed", "code": code, "message": message[:_MAX_MESSAGE]}
    if peak_memory_bytes is not None:
        event["peak_memory_bytes"] = peak_memory_bytes
    _write(event)


def _write(event: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(event, allow_nan=False) + "\n")
    sys.stdout.flush()
