"""Whether all of a training, over every life of its trainer, ran under one set of conditions.

A training that goes on from its own checkpoint with other threads, on another device or with other
software is as good as any, but its bits are nobody's: no end of a curve may be made of it. What it
ran under is written down in the folder of the assignment, before the trainer starts.
"""

from pathlib import Path

from protocol.digests import digest_value
from shared.files import write_atomic
from shared.training.ends import Conditions

NOTE = "conditions"
MIXED = "mixed"


def note_conditions(folder: Path, conditions: Conditions, *, goes_on: bool) -> None:
    """A training in `folder` is about to run under `conditions`. Raises OSError.

    `goes_on`: from a checkpoint that lies there, which may have come about under others.
    """
    said = digest_value(conditions)
    if goes_on and _read(folder) != said:
        said = MIXED
    write_atomic(folder / NOTE, said.encode("ascii"))


def ran_under(folder: Path, conditions: Conditions) -> bool:
    """Whether all that was trained in `folder` ran under `conditions`."""
    return _read(folder) == digest_value(conditions)


def _read(folder: Path) -> str:
    try:
        return (folder / NOTE).read_text("ascii")
    except (OSError, ValueError):
        return ""
