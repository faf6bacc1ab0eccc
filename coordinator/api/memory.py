"""What was measured of memory: how much trainings took, and on which devices it was too little."""

from collections.abc import Sequence

from sqlalchemy import Connection

from coordinator.footprint import Footprints, Peak
from coordinator.ledger import queries
from coordinator.ledger.queries import MeasuredAttempt, WorkerRow


class MeasuredMemory:
    """Peaks of accepted work, and the attempts that ran out of memory, by seat."""

    def __init__(self) -> None:
        self.footprints = Footprints()
        self.is_outdated = False
        """Whether an estimate changed since this was last set to False."""

        self._out_of_memory: dict[str, list[MeasuredAttempt]] = {}

    def note_failures(self, failed: Sequence[MeasuredAttempt]) -> None:
        """Take in all attempts of some workers that ran out of memory."""
        for seat in {attempt.seat for attempt in failed}:
            self._out_of_memory[seat] = [one for one in failed if one.seat == seat]

    def note_peaks(self, connection: Connection, measured: Sequence[MeasuredAttempt]) -> None:
        """Take in what accepted work took, the oldest first."""
        devices = {
            worker.seat: worker.capability.device
            for worker in queries.these_workers(connection, {one.worker for one in measured})
        }
        for one in measured:
            device = devices.get(one.seat)
            if device is not None and one.peak_memory_bytes is not None:
                peak = Peak(one.worker, device, one.spec, one.peak_memory_bytes)
                self.is_outdated |= self.footprints.note(peak)

    def ran_out(self, worker: WorkerRow) -> frozenset[tuple[int, int]]:
        """What did not fit a device: bytes that were expected to be needed, and bytes it had."""
        device = worker.capability.device
        return frozenset(
            (self.footprints.memory_bytes(one.spec, device), one.free_memory_bytes)
            for one in self._out_of_memory.get(worker.seat, ())
        )
