"""What else the ledger holds of some assignments, asked for in a few queries."""

from collections.abc import Sequence

from sqlalchemy import Connection

from coordinator.ledger import queries
from coordinator.ledger.queries import AssignmentRow
from protocol.assignments import LIVE, AssignmentState

MAX_IDS = 500
"""Of more assignments it is cheaper to ask for all there are than one by one."""


class History:
    """Checkpoints, failures for lack of memory and live attempts of some assignments."""

    def __init__(self, connection: Connection, rows: Sequence[AssignmentRow]) -> None:
        waiting = [row for row in rows if row.state is AssignmentState.OPEN]
        living = [row for row in rows if row.state in LIVE]
        originals = {row.backup_of for row in living if row.backup_of is not None}
        open_ids, live_ids = _ids(waiting), _ids(living)
        both = None if open_ids is None or live_ids is None else {*open_ids, *live_ids, *originals}
        self._durable = queries.durable_steps(connection, both)
        self._arriving = queries.arriving_checkpoints(connection, open_ids)
        self.ran_out = queries.ran_out_of_memory(connection, both)
        self.held = {one.assignment: one for one in queries.live_attempts(connection, live_ids)}

    def durable_step(self, row: AssignmentRow) -> int:
        """The step of the newest checkpoint from which it, or its original, can go on."""
        own = self._durable.get(row.assignment, 0)
        return max(own, self._durable.get(row.backup_of, 0)) if row.backup_of else own

    def arrives_by(self, row: AssignmentRow, heartbeat_seconds: float) -> float:
        """Until when to wait for a newer checkpoint that its last holder named; 0: not at all."""
        step, announced_at = self._arriving.get(row.assignment, (0, 0.0))
        is_newer = step > self._durable.get(row.assignment, 0)
        return announced_at + heartbeat_seconds if is_newer else 0.0


def _ids(rows: Sequence[AssignmentRow]) -> set[str] | None:
    """The ids to ask for one by one; None where it is cheaper to ask for all."""
    return None if len(rows) > MAX_IDS else {row.assignment for row in rows}
