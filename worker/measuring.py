"""Measures the devices of this machine that train, one after the other."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from protocol.capability import Capability
from protocol.specs import StepShape
from worker import capability as capabilities
from worker import measured
from worker.contradictions import refuse_gpu_memory
from worker.device import Device
from worker.folder import WorkerFolder
from worker.gpus import parse_device
from worker.limits import Machine
from worker.settings import JoinSettings
from worker.sharing import environment_of, its_disk, its_memory, parts_of
from worker.status import Board

log = logging.getLogger(__name__)


def measure_first(
    settings: JoinSettings, folder: Path, *, on_offer: tuple[StepShape, ...]
) -> capabilities.Probed:
    """What this machine's first device offers, measured now, with the steps on offer.

    Of what several devices share it is this one's part. Raises CapabilityError or BadSetting.
    """
    parts = parts_of(settings, num_cores=Machine.this().num_cores)
    part, several = parts[0], len(parts) > 1
    environment = environment_of(part.device or "", os.environ) if several else None
    probed = capabilities.probe(
        device=_named(part, environment),
        num_threads=part.num_threads,
        memory_bytes=part.memory_bytes,
        folder=folder,
        calibration=_calibration(part, environment, on_offer),
    )
    found = probed.capability
    refuse_gpu_memory(part, found)
    num_cpu = [one.device for one in parts].count("cpu")
    found = part.offered(its_memory(found, cap=part.memory_bytes, num_cpu=num_cpu))
    found = its_disk(found, free_bytes=found.free_disk_bytes, owed_bytes=0, num_idle=len(parts))
    return replace(probed, capability=found)


def _calibration(
    settings: JoinSettings, environment: Mapping[str, str] | None, on_offer: tuple[StepShape, ...]
) -> capabilities.Calibration:
    return capabilities.Calibration(
        niceness=settings.niceness,
        environment=environment or {},
        on_offer=on_offer,
        gpu_memory=settings.gpu_memory,
    )


def _named(settings: JoinSettings, environment: Mapping[str, str] | None) -> str | None:
    """The device for a measuring child: by its kind where `environment` says which one it is."""
    return settings.device if environment is None else parse_device(settings.device or "")[0]


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How the devices of a worker are measured; `given` is the first one, if that is known.

    `on_offer` are the steps that the coordinator named to measure with.

    Where a lease waits to be gone on with, what was measured before is taken.
    """

    parts: Sequence[JoinSettings]
    folder: WorkerFolder
    say: Callable[[str], None]
    given: Capability | None = None
    on_offer: tuple[StepShape, ...] = ()

    async def devices(self, boards: Sequence[Board]) -> list[Device]:
        """A device for each part. Raises WorkerError or CapabilityError."""
        found: list[Device] = []
        for number, (settings, board) in enumerate(zip(self.parts, boards, strict=True)):
            several = len(self.parts) > 1
            environment = environment_of(settings.device or "", os.environ) if several else None
            capability = await self._measure(settings, number, environment, found)
            refuse_gpu_memory(settings, capability)
            device = Device(
                settings=settings,
                folder=self.folder,
                board=board,
                capability=capability,
                number=number,
                environment=environment or {},
                num_cpu=[one.device for one in self.parts].count("cpu"),
            )
            device.capability = device.offered(capability)
            board.update(device_name=capability.device_name)
            found.append(device)
        return found

    async def _measure(
        self,
        settings: JoinSettings,
        number: int,
        environment: dict[str, str] | None,
        before: Sequence[Device],
    ) -> Capability:
        path = self.folder.path(measured.FILE, number)
        device, threads, memory = settings.device, settings.num_threads, settings.memory_bytes
        found = self.given if number == 0 else self._equal(settings, before)
        if found is None and self._hurries(settings, environment):
            last = measured.remembered(path, device=device, num_threads=threads)
            if last is not None:
                found = capabilities.refresh(
                    last, memory_bytes=memory, folder=self.folder.root, environment=environment
                )
        if found is None:
            which = "this machine" if environment is None else f"device {device}"
            self.say(f"measuring {which} (a few seconds)")
            probed = await asyncio.to_thread(
                capabilities.probe,
                device=_named(settings, environment),
                num_threads=threads,
                memory_bytes=memory,
                folder=self.folder.root,
                calibration=_calibration(settings, environment, self.on_offer),
            )
            found = probed.capability
            log.info("measured %.3g FLOP/s with %s", found.flops_per_second, probed.steps)
        measured.remember(path, found, device=device, num_threads=threads)
        return found

    def _hurries(self, settings: JoinSettings, environment: dict[str, str] | None) -> bool:
        """An only GPU that is named by its number is chosen while measuring: always anew."""
        chosen_anew = environment is None and ":" in (settings.device or "")
        return bool(self.folder.remembered_offers()) and not chosen_anew

    def _equal(self, settings: JoinSettings, before: Sequence[Device]) -> Capability | None:
        """What was measured of an equal share of the same processor."""
        for one in before:
            if settings.device == "cpu" and one.settings == settings:
                return one.capability
        return None
