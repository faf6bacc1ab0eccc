"""Where trainings of a curve stopped: a longer one of the same curve starts from there.

Specs of one curve differ only in their last step, so that the longer training passes through the
shorter one's last checkpoint, bit for bit. It does so on one machine, from one parent's bits, on
equally many threads: all of that names the folder in which the ends of a curve are kept. An end
that is damaged, or of another curve, is deleted, and training starts without it.
"""

import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from protocol.capability import Device
from protocol.digests import digest_value
from protocol.ids import Digest
from protocol.manifests import (
    MAX_MANIFEST_BYTES,
    FileName,
    ManifestFile,
    TrainerState,
    files_of,
)
from protocol.specs import ExpertSpec
from protocol.values import Count, Positive, Value
from shared.blobs import BadBlob, piece_list_of
from shared.files import sync_folder, write_atomic
from shared.logs import facts
from shared.training.assignment import TrainerAssignment
from shared.version import SOFTWARE_VERSION

log = logging.getLogger(__name__)

END = "end.json"
STATE = "state.json"
MAX_ENDS = 256
_LIBRARIES = ("torch", "transformers", "numpy")
"""Whose versions may decide bits."""


class Conditions(Value):
    """What decides the bits of a checkpoint, besides its step, on one machine.

    `parent` is the digest of the parent's weights, None for fresh ones.
    """

    curve: Digest
    parent: Digest | None
    device: Device
    num_threads: Positive
    software: str

    @classmethod
    def of(cls, assignment: TrainerAssignment, *, parent: str | None) -> "Conditions":
        """Those of an assignment on this machine, with the software that is installed here."""
        return cls(
            curve=assignment.spec.curve,
            parent=parent,
            device=assignment.device,
            num_threads=assignment.num_threads,
            software=", ".join(
                [f"hdee {SOFTWARE_VERSION}", *(f"{name} {version(name)}" for name in _LIBRARIES)]
            ),
        )


class _End(Value):
    """The contents of end.json, written last: the files of a checkpoint and their digests."""

    step: Count
    files: Annotated[tuple[ManifestFile, ...], Field(strict=False, max_length=8)]


class CurveEnds:
    """Last checkpoints of trainings, in `folder`, `cap_bytes` at most; used longest ago go first.

    Several threads may use it, but one process only.
    """

    def __init__(self, folder: Path, *, cap_bytes: int) -> None:
        self._folder = folder
        self._cap_bytes = cap_bytes
        self._lock = threading.Lock()
        for draft in folder.glob("*/.step-*"):
            shutil.rmtree(draft, ignore_errors=True)

    def keep(self, spec: ExpertSpec, conditions: Conditions, checkpoint: Path) -> bool:
        """Keeps the checkpoint of the last step of `spec`; whether it is there now.

        Not one whose bits are not the spec's. Its files are linked, not copied, where that is
        possible. Raises OSError, and ValidationError for a state that is none.
        """
        state = TrainerState.model_validate_json(_read(checkpoint / STATE))
        if state.inexact_from is not None:
            return False
        names = files_of("training", spec)
        size = sum((checkpoint / name).stat().st_size for name in names)
        if size > self._cap_bytes:
            return False
        target = self._place(conditions, spec.train.num_steps)
        draft = target.with_name(f".{target.name}")
        with self._lock:
            if target.exists():
                return True
            shutil.rmtree(draft, ignore_errors=True)
            try:
                draft.mkdir(parents=True)
                _write_end(checkpoint, draft, names=names, step=spec.train.num_steps)
                draft.rename(target)
                sync_folder(target.parent)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            self._evict()
        return True

    def lay_out(self, spec: ExpertSpec, conditions: Conditions, into: Path) -> int | None:
        """Writes a training checkpoint of `spec` into `into`; its step, None: there is no end.

        It is the end of its curve that lies nearest before its own last step.
        """
        shutil.rmtree(into, ignore_errors=True)
        curve = self._place(conditions, 0).parent
        with self._lock:
            for place in sorted(curve.glob("step-*"), reverse=True):
                step = int(place.name.removeprefix("step-"))
                if step > spec.train.num_steps:
                    continue
                try:
                    _lay_out(place, spec, step=step, into=into)
                except (OSError, ValidationError, ValueError) as error:
                    log.warning("an end is of no use %s: %s", facts(path=place), error)
                    shutil.rmtree(place, ignore_errors=True)
                    shutil.rmtree(into, ignore_errors=True)
                else:
                    os.utime(place)
                    return step
        return None

    def size_on_disk(self) -> int:
        """Bytes that all ends take up."""
        return sum(size for _, size, _ in self._all())

    def make_room(self, num_bytes: int) -> int:
        """Deletes ends, used longest ago first, until `num_bytes` are free of them; bytes freed."""
        with self._lock:
            return self._free(num_bytes)

    def _place(self, conditions: Conditions, step: int) -> Path:
        return self._folder / digest_value(conditions) / f"step-{step:08d}"

    def _all(self) -> list[tuple[float, int, Path]]:
        """When each was used last, its size, and where it lies; used longest ago first."""
        return sorted(_sized(self._folder.glob("*/step-*")))

    def _evict(self) -> None:
        every = self._all()
        excess = sum(size for _, size, _ in every) - self._cap_bytes
        beyond = sum(size for _, size, _ in every[: max(0, len(every) - MAX_ENDS)])
        self._free(max(excess, beyond))

    def _free(self, num_bytes: int) -> int:
        freed = 0
        for _, size, place in self._all():
            if freed >= num_bytes:
                break
            shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):
                place.parent.rmdir()
            freed += size
        return freed


def spec_ending_at(spec: ExpertSpec, step: int) -> ExpertSpec:
    """The spec of the same curve that stops after `step`."""
    train = spec.train.model_copy(update={"num_steps": step})
    return spec.model_copy(update={"train": train})


def _write_end(checkpoint: Path, draft: Path, *, names: Sequence[FileName], step: int) -> None:
    files = []
    for name in names:
        _link(checkpoint / name, draft / name)
        files.append(ManifestFile(name=name, blob=piece_list_of(draft / name).ref()))
    end = _End(step=step, files=tuple(files))
    write_atomic(draft / END, end.model_dump_json().encode())


def _lay_out(place: Path, spec: ExpertSpec, *, step: int, into: Path) -> None:
    """Raises OSError, ValidationError, or ValueError for what is damaged or of another curve."""
    end = _End.model_validate_json(_read(place / END))
    into.mkdir(parents=True)
    for file in end.files:
        if piece_list_of(place / file.name).ref() != file.blob:
            raise BadBlob(f"{file.name}: is not what it was when it was kept")
        if file.name != STATE:
            _link(place / file.name, into / file.name)
    state = TrainerState.model_validate_json(_read(place / STATE))
    expected = spec_ending_at(spec, step).digest
    if (end.step, state.step, state.spec) != (step, step, expected):
        raise ValueError(f"step {state.step} of spec {state.spec}, expected {step} of {expected}")
    renamed = state.model_copy(update={"spec": spec.digest})
    write_atomic(into / STATE, renamed.model_dump_json().encode())


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_MANIFEST_BYTES)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _sized(places: Iterator[Path]) -> Iterator[tuple[float, int, Path]]:
    for place in places:
        with suppress(FileNotFoundError):
            size = sum(512 * file.stat().st_blocks for file in place.iterdir())
            yield place.stat().st_mtime, size, place
