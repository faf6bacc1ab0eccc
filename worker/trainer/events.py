"""The lines that a trainer writes to stdout: one JSON object a line, nothing else."""

import json
import sys
from pathlib import Path
from typing import Literal

FailureCode = Literal["out_of_memory", "bad_input", "disk_full", "trainer_failed"]

_MAX_MESSAGE = 2000


def started(*, step: int, num_steps: int) -> None:
    """Everything is loaded; the next update is the one after `step`."""
    _write({"event": "started", "step": step, "num_steps": num_steps})


def progress(
    *, step: int, num_steps: int, loss: float, tokens_per_second: float, eta_seconds: float
) -> None:
    """About once a second. `loss` is smoothed, in nats per token."""
    _write(
        {
            "event": "progress",
            "step": step,
            "num_steps": num_steps,
            "loss": loss,
            "tokens_per_second": tokens_per_second,
            "eta_seconds": eta_seconds,
        }
    )


def checkpoint(*, step: int, loss: float | None, folder: Path) -> None:
    """A training checkpoint lies complete in `folder`."""
    _write({"event": "checkpoint", "step": step, "loss": loss, "folder": str(folder)})


def finished(
    *, step: int, loss: float | None, file: Path, train_seconds: float, tokens_per_second: float
) -> None:
    """The expert lies complete in `file`. `train_seconds` counts earlier attempts too."""
    _write(
        {
            "event": "finished",
            "step": step,
            "loss": loss,
            "file": str(file),
            "train_seconds": train_seconds,
            "tokens_per_second": tokens_per_second,
        }
    )


def stopped(*, step: int) -> None:
    """Asked to stop: a checkpoint of `step` was written before."""
    _write({"event": "stopped", "step": step})


def failed(code: FailureCode, message: str) -> None:
    """The trainer gives up; checkpoints written before stay."""
    _write({"event": "failed", "code": code, "message": message[:_MAX_MESSAGE]})


def _write(event: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(event, allow_nan=False) + "\n")
    sys.stdout.flush()
