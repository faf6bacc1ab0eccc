"""Whether a spec fits this machine: tried in a trainer child, where that is worth it.

An offer lapses after two heartbeats unless it is acknowledged, and a process with torch takes some
seconds to start. So a spec is tried only where memory may be short or is not known well, only where
the trial ends well before the offer does, and once for each shape on a machine.
"""

import asyncio
import json
import logging
import signal
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from protocol.capability import Capability, Device
from protocol.digests import digest_value
from protocol.specs import ExpertSpec
from protocol.values import Amount, Count, Positive, Value
from shared.files import write_atomic
from shared.sizing import step_flops, training_memory_bytes
from shared.training.assignment import PILOT, PilotAssignment
from shared.training.runner import Event, Process, died, events_of, give_way, kill, spawn
from shared.version import SOFTWARE_VERSION

log = logging.getLogger(__name__)

TRIED_SHARE = 0.5
"""Of the free memory of a CPU. Estimates below that are off by much less than what is left."""

START_SECONDS: dict[Device, float] = {"cpu": 10.0, "cuda": 25.0, "mps": 15.0}
"""A process with torch begins its first step within this, also on a busy machine."""

OFFER_SHARE = 0.5
"""Of an offer's time: a trial that would take longer is left out, one that does is ended."""

TRIAL_STEPS = 4
"""Times of a step that two trial steps and what goes with them take at most."""

MAX_KNOWN = 64
_MAX_BYTES = 65_536


class Fits(Value):
    """What a trial showed: the micro-batch that fitted, the peak, and the speed."""

    micro_batch: Positive
    peak_memory_bytes: Count
    tokens_per_second: Amount


def is_worth_a_trial(spec: ExpertSpec, capability: Capability, *, expires_in: float) -> bool:
    """Whether to try `spec` before an offer that lapses in `expires_in` seconds is taken. Pure."""
    device = capability.device
    estimate = training_memory_bytes(spec, device=device)
    may_be_short = device != "cpu" or estimate > TRIED_SHARE * capability.free_memory_bytes
    share = min(1.0, 2 / spec.train.accumulation)
    one_step = share * step_flops(spec) / capability.flops_per_second
    return may_be_short and START_SECONDS[device] + TRIAL_STEPS * one_step <= (
        OFFER_SHARE * expires_in
    )


class Pilots:
    """Trials on this machine, and what came of them, in the file `path`.

    With `niceness` a trial gives way to other programs as the training would.
    """

    def __init__(
        self,
        path: Path,
        *,
        log: Path,
        niceness: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._path = path
        self._log = log
        self._niceness = niceness
        self._environment = environment

    def known(self, pilot: PilotAssignment) -> Fits | None:
        """What was found of the same shape in the same way of training, if it fitted."""
        found = self._read().get(_key(pilot))
        return found if found is None or found.micro_batch == pilot.spec.train.micro_batch else None

    async def find(self, pilot: PilotAssignment, *, seconds: float) -> Fits | Event | None:
        """How a spec fits, or the `failed` event that says why not; None: not in `seconds`."""
        fits = self.known(pilot)
        if fits is not None:
            return fits
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.with_suffix(".assignment.json")
        file.write_text(pilot.model_dump_json())
        process = await spawn(
            PILOT,
            str(file),
            num_threads=pilot.num_threads,
            log=self._log,
            environment=self._environment,
        )
        if self._niceness:
            give_way(process.pid, self._niceness)
        try:
            async with asyncio.timeout(seconds):
                event = await _only_event(process, self._log)
        except TimeoutError:
            log.warning("a trial step took more than %.0f s", seconds)
            return None
        finally:
            await kill(process)
        if event["event"] != "fits":
            return event
        fits = Fits.model_validate({name: event[name] for name in Fits.model_fields})
        self._remember(pilot, fits)
        return fits

    def _remember(self, pilot: PilotAssignment, fits: Fits) -> None:
        known = {**self._read(), _key(pilot): fits}
        newest = list(known.items())[-MAX_KNOWN:]
        text = json.dumps({key: one.model_dump() for key, one in newest})
        write_atomic(self._path, text.encode())

    def _read(self) -> dict[str, Fits]:
        try:
            with self._path.open("rb") as file:
                raw = json.loads(file.read(_MAX_BYTES))
            return {str(key): Fits.model_validate(value) for key, value in raw.items()}
        except (OSError, ValueError, AttributeError, ValidationError):
            return {}


async def _only_event(process: Process, log: Path) -> Event:
    async for event in events_of(process):
        return event
    event = await died(process, log)
    if event["exit_code"] == -signal.SIGKILL:
        # Nobody here did: the system kills who takes the last of the memory.
        event |= {"code": "out_of_memory", "message": "the system killed the trial step"}
    return event


def _key(pilot: PilotAssignment) -> str:
    spec = pilot.spec
    return digest_value(
        {
            "shape": spec.shape.model_dump(mode="json"),
            "lora": None if spec.lora is None else spec.lora.model_dump(mode="json"),
            "trains": spec.trains,
            "micro_batch": spec.train.micro_batch,
            "accumulates": spec.train.accumulation > 1,
            "sequence_length": spec.train.sequence_length,
            "compile": spec.train.compile,
            "device": pilot.device,
            "num_threads": pilot.num_threads,
            "memory_bytes": pilot.memory_bytes,
            "software": SOFTWARE_VERSION,
        }
    )
