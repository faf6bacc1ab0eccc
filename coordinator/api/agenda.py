"""The assignments as the scheduler is to see them: open, waiting, on own data, or underway."""

from collections import defaultdict
from collections.abc import Collection, Sequence

from sqlalchemy import Connection

from coordinator.api.crew import Crew
from coordinator.api.history import History
from coordinator.api.memory import MeasuredMemory
from coordinator.api.onoffer import StepsOnOffer
from coordinator.api.settings import ApiSettings
from coordinator.ledger import queries
from coordinator.ledger.queries import AssignmentRow, Attempt
from coordinator.scheduling import Candidate, Index, Work
from coordinator.scheduling.requirements import find_obstacle
from coordinator.workload import is_offerable, make_running, make_work
from protocol.assignments import FINAL, LIVE, AssignmentState


class Agenda:
    """What is to be done and what is being done. What it says of that goes into `index`."""

    def __init__(
        self, settings: ApiSettings, index: Index, memory: MeasuredMemory, crew: Crew
    ) -> None:
        self._settings = settings
        self._index = index
        self._memory = memory
        self._crew = crew
        self.accepted: set[str] = set()
        """Digests of specs that have their checkpoint."""

        self.steps = StepsOnOffer()
        self._weights: dict[str, str] = {}
        self._children: dict[str, set[str]] = defaultdict(set)
        self._backups: dict[str, str] = {}
        self._holders: dict[str, str] = {}
        self._underway: dict[str, tuple[AssignmentRow, Work]] = {}
        self._owned: dict[str, dict[str, Work]] = defaultdict(dict)

    @property
    def num_waiting(self) -> int:
        """How many open assignments wait for their parent."""
        return sum(map(len, self._children.values()))

    def accept(self, spec: str) -> set[str]:
        """Notes that a spec has its checkpoint; the assignments that waited for it."""
        self.accepted.add(spec)
        return self._children.pop(spec, set())

    def own_work(self, worker: str, candidate: Candidate, now: float) -> Work | None:
        """The first open assignment on the worker's own data that `candidate` can take now."""
        for _, work in sorted(self._owned.get(worker, {}).items()):
            if find_obstacle(work, candidate, now=now) is None:
                return work
        return None

    def observe(self, attempt: Attempt) -> None:
        """Take in how fast work that is underway goes on."""
        row, _ = self._underway[attempt.assignment]
        speed = attempt.speed(row.spec)
        if speed is not None:
            self._crew.observed[attempt.seat] = speed

    def move(self, attempt: Attempt) -> None:
        """Take in how far work that is underway has come."""
        row, work = self._underway[attempt.assignment]
        self._put_running(row, work, attempt)

    def refresh(self, connection: Connection, ids: Collection[str]) -> None:
        """Look at some assignments again."""
        if ids:
            self.put(connection, queries.these_assignments(connection, ids))

    def put(self, connection: Connection, rows: Sequence[AssignmentRow]) -> None:
        """Take in assignments as they stand."""
        for row in rows:
            self._note_backup(row)
            self.steps.put(row)
        history = History(connection, rows)
        for row in rows:
            work = make_work(
                row,
                durable_step=history.durable_step(row),
                ran_out=history.ran_out.get(row.assignment),
                not_before=history.arrives_by(row, self._settings.heartbeat_seconds),
                parent_weights=self._parent_weights(connection, row),
                footprints=self._memory.footprints,
            )
            self._put_open(row, work)
            self._put_running(row, work, history.held.get(row.assignment))
        # An original is offered, and backed up, depending on how its backup stands.
        originals = {row.backup_of for row in rows if row.backup_of is not None}
        self.refresh(connection, originals - {row.assignment for row in rows})

    def _parent_weights(self, connection: Connection, row: AssignmentRow) -> str | None:
        parent = row.spec.parent
        if parent is None or parent not in self.accepted:
            return None
        if parent not in self._weights:
            held = queries.accepted_of(connection, parent)
            assert held is not None, f"{parent} was accepted without a checkpoint"
            self._weights[parent] = held.manifest.blob("model.safetensors").digest
        return self._weights[parent]

    def _put_open(self, row: AssignmentRow, work: Work) -> None:
        if row.owner is not None:
            # Nobody else could do it: in the index it would stand in the way of others' work.
            self._put_owned(row, work)
            return
        # A backup is offered when it is made, to whom it was made for, and never again. An original
        # that came back is offered even while its backup lives: that may be a straggler, too.
        if row.backup_of is None and is_offerable(row, accepted=self.accepted):
            self._index.put_work(work)
            return
        self._index.drop_work(row.assignment)
        parent = row.spec.parent
        if parent is None or parent in self.accepted:
            return
        waits = row.state is AssignmentState.OPEN and row.backup_of is None
        (self._children[parent].add if waits else self._children[parent].discard)(row.assignment)

    def _put_owned(self, row: AssignmentRow, work: Work) -> None:
        owned = self._owned[work.owner or ""]
        owned.pop(row.assignment, None)
        if is_offerable(row, accepted=self.accepted):
            owned[row.assignment] = work

    def _put_running(self, row: AssignmentRow, work: Work, attempt: Attempt | None) -> None:
        before = self._holders.pop(row.assignment, None)
        if before is not None:
            self._crew.free(before, row.assignment)
        if attempt is None or row.state not in LIVE:
            self._underway.pop(row.assignment, None)
            self._index.drop_running(row.assignment)
            return
        self._underway[row.assignment] = (row, work)
        self._holders[row.assignment] = attempt.seat
        self._crew.occupy(attempt.seat, row.assignment)
        self._index.put_running(
            make_running(
                row,
                attempt,
                work=work,
                speed=self._crew.speed_at(attempt.seat),
                heartbeat_seconds=self._settings.heartbeat_seconds,
                backed_up=row.assignment in self._backups or row.owner is not None,
            )
        )

    def _note_backup(self, row: AssignmentRow) -> None:
        if row.backup_of is None:
            return
        if row.state in FINAL:
            self._backups.pop(row.backup_of, None)
        else:
            self._backups[row.backup_of] = row.assignment
