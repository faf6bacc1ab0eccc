"""One device of a worker: what it offers, what it shows, and where its files are."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from protocol.capability import Capability
from protocol.messages import Offer
from shared.sizing import disk_bytes
from worker import capability as capabilities
from worker.folder import WorkerFolder
from worker.settings import JoinSettings
from worker.sharing import its_disk, its_memory
from worker.status import Board

TRAINER_LOG = "trainer.log"


@dataclass(kw_only=True)
class Device:
    """One device. `settings` say what it may use; `capability` is what it offers now.

    `environment` is what a child that computes on it finds in its environment besides ours;
    `num_cpu` devices of the worker compute in the host's memory.
    """

    settings: JoinSettings
    folder: WorkerFolder
    board: Board
    capability: Capability
    number: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    num_cpu: int = 1

    def path(self, name: str) -> Path:
        """Where the device keeps a file, such as trainer.log: of others than the first, apart."""
        return self.folder.path(name, self.number)

    def memory_cap(self) -> int | None:
        """The cap on the memory in which training computes, in bytes; None: what is free."""
        return self.settings.training_memory(self.capability)

    def refresh(self) -> None:
        """Looks at what is free now. Raises CapabilityError."""
        found = capabilities.refresh(
            self.capability,
            memory_bytes=self.settings.memory_bytes,
            folder=self.folder.root,
            environment=self.environment,
        )
        self.capability = self.offered(found)

    def offered(self, measured: Capability) -> Capability:
        """What is offered of what was measured."""
        found = its_memory(measured, cap=self.settings.memory_bytes, num_cpu=self.num_cpu)
        return self.settings.offered(found if self.folder.num_devices < 2 else self._disk(found))

    def _disk(self, measured: Capability) -> Capability:
        others = self.folder.remembered_offers()
        others.pop(self.number, None)
        return its_disk(
            measured,
            free_bytes=shutil.disk_usage(self.folder.root).free,
            owed_bytes=sum(self._owed(offer) for offer in others.values()),
            num_idle=max(1, self.folder.num_devices - len(others)),
        )

    def _owed(self, offer: Offer) -> int:
        """What the work of another device has yet to write at most, in bytes."""
        written = 0
        for folder, _, names in os.walk(self.folder.work(offer.assignment)):
            for name in names:
                # Its trainer deletes old checkpoints meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    written += (Path(folder) / name).stat().st_size
        return max(0, disk_bytes(offer.spec) - written)
