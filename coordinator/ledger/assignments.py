"""Assignments: adding work, reading it, and the rows that a decision writes back."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, and_, bindparam, case, exists, func, select, text

from coordinator.ledger.entries import Row, added, changed, record
from coordinator.ledger.errors import LedgerError
from coordinator.ledger.prepared import Prepared, update_by_key
from coordinator.ledger.tables import assignments, progress, specs
from coordinator.lifecycle import Assignment
from protocol.assignments import AssignmentState
from protocol.blobs import BlobRef
from protocol.digests import digest_bytes
from protocol.specs import ExpertSpec, Kind


@dataclass(frozen=True)
class AssignmentRow:
    """A piece of work: where it stands, its spec, its train shard, the schemes that need it.

    `backup_of` names the assignment that this one is to overtake; None for an original.
    """

    standing: Assignment
    spec: ExpertSpec
    shard: BlobRef
    schemes: tuple[str, ...]
    reason: str
    created_at: float
    changed_at: float
    backup_of: str | None = None

    @property
    def assignment(self) -> str:
        """Its id."""
        return self.standing.assignment

    @property
    def owner(self) -> str | None:
        """The only worker that may hold it, as it alone has the text; None: anybody."""
        return self.standing.owner

    @property
    def state(self) -> AssignmentState:
        """Where it stands."""
        return self.standing.state


@lru_cache(maxsize=65_536)
def parse_spec(body: str) -> ExpertSpec:
    """A spec from its JSON text, parsed once."""
    return ExpertSpec.model_validate_json(body)


@lru_cache(maxsize=4096)
def _parse_ref(body: str) -> BlobRef:
    return BlobRef.model_validate_json(body)


@lru_cache(maxsize=4096)
def _parse_words(body: str) -> tuple[str, ...]:
    return tuple(json.loads(body))


def add_assignment(
    connection: Connection,
    spec: ExpertSpec,
    *,
    shard: BlobRef,
    schemes: tuple[str, ...],
    now: float,
    owner: str | None = None,
) -> str:
    """Add a spec to be trained and return the assignment's id.

    Equal specs are trained once: a repetition adds its schemes to the assignment that is there.
    Only `owner` may hold it, None: anybody.
    Raises LedgerError when `shard` is not the spec's train shard.
    """
    if shard.digest != spec.train_shard:
        raise LedgerError(f"shard {shard.digest}: expected the spec's own, {spec.train_shard}")
    assignment = original_of(spec)
    found = find_assignment(connection, assignment)
    if found is not None:
        merged = tuple(dict.fromkeys((*found.schemes, *schemes)))
        if merged != found.schemes:
            values = {"assignment": assignment, "schemes": json.dumps(list(merged))}
            record(connection, "plan", changed(assignments, **values), now=now)
        return assignment
    rows = [added(specs, digest=spec.digest, body=spec.model_dump_json())]
    standing = Assignment(assignment=assignment, owner=owner)
    rows.append(new_assignment(standing, spec, shard=shard, schemes=schemes, now=now))
    record(connection, "plan", *rows, now=now)
    return assignment


def add_backup(connection: Connection, original: AssignmentRow, *, now: float) -> str:
    """A second assignment of the same spec, to overtake a straggler; returns its id.

    The first of the two that is accepted is canonical. Raises IntegrityError while there is one.
    """
    query = select(func.count()).where(assignments.c.backup_of == original.assignment)
    number = connection.execute(query).scalar_one() + 1
    name = f"{original.assignment}:backup:{number}"
    assignment = f"a{digest_bytes(name.encode())[:16]}"
    row = new_assignment(
        Assignment(assignment=assignment, excluded=original.standing.excluded),
        original.spec,
        shard=original.shard,
        schemes=original.schemes,
        now=now,
        backup_of=original.assignment,
    )
    record(connection, "plan", row, facts={"backup_of": original.assignment}, now=now)
    return assignment


def find_assignment(connection: Connection, assignment: str) -> AssignmentRow | None:
    """The assignment with this id."""
    row = _BY_ID.one(connection, assignment=assignment)
    return None if row is None else _assignment(row)


def get_assignment(connection: Connection, assignment: str) -> AssignmentRow:
    """The assignment with this id. Raises LedgerError if there is none."""
    found = find_assignment(connection, assignment)
    if found is None:
        raise LedgerError(f"assignment {assignment}: unknown")
    return found


def all_assignments(
    connection: Connection, *, state: AssignmentState | None = None
) -> tuple[AssignmentRow, ...]:
    """Every assignment, or those in one state, oldest first."""
    query = _SELECT.order_by(assignments.c.created_at, assignments.c.assignment)
    if state is not None:
        query = query.where(assignments.c.state == state.value)
    return tuple(map(_assignment, connection.execute(query)))


def some_assignments(
    connection: Connection, *, after: str = "", limit: int = 1000, state: str | None = None
) -> tuple[AssignmentRow, ...]:
    """Up to `limit` assignments whose id comes after `after`, by id."""
    query = _SELECT.where(assignments.c.assignment > after)
    if state is not None:
        query = query.where(assignments.c.state == state)
    query = query.order_by(assignments.c.assignment).limit(limit)
    return tuple(map(_assignment, connection.execute(query)))


def these_assignments(connection: Connection, ids: Iterable[str]) -> tuple[AssignmentRow, ...]:
    """The assignments with these ids, in no order; unknown ones are left out."""
    found = (find_assignment(connection, assignment) for assignment in ids)
    return tuple(row for row in found if row is not None)


def live_twins(connection: Connection, row: AssignmentRow) -> tuple[AssignmentRow, ...]:
    """Other assignments of the same spec that are not at an end."""
    ended = [AssignmentState.ACCEPTED, AssignmentState.FAILED, AssignmentState.CANCELLED]
    query = _SELECT.where(
        assignments.c.spec == row.spec.digest,
        assignments.c.assignment != row.assignment,
        assignments.c.state.not_in([state.value for state in ended]),
    )
    return tuple(map(_assignment, connection.execute(query)))


def idle_backups(connection: Connection) -> tuple[AssignmentRow, ...]:
    """Backups that nobody does."""
    return tuple(map(_assignment, _IDLE_BACKUPS.all(connection)))


def count_by_state(connection: Connection, *, kind: Kind | None = None) -> dict[str, int]:
    """State to how many originals are in it, of one kind or of both.

    An original that its accepted backup overtook counts as accepted. Own data is left out: the
    run does not wait for it.
    """
    twin = assignments.alias()
    overtaken = exists().where(
        twin.c.backup_of == assignments.c.assignment, twin.c.state == "accepted"
    )
    state = case((overtaken, "accepted"), else_=assignments.c.state)
    query = select(state, func.count()).where(
        assignments.c.backup_of.is_(None), assignments.c.owner.is_(None)
    )
    if kind is not None:
        query = query.where(assignments.c.kind == kind)
    return {row[0]: row[1] for row in connection.execute(query.group_by(state))}


def standing_row(standing: Assignment, *, reason: str | None = None, now: float) -> Row:
    """What an entry writes of a decision of the lifecycle; `reason` is what public views show."""
    values: dict[str, object] = {**_columns(standing), "changed_at": now}
    if reason is not None:
        values["reason"] = reason
    return changed(assignments, **values)


def store_expiry(connection: Connection, standing: Assignment) -> None:
    """Until when the newest attempt has time; None: nothing runs out any more."""
    _STORE_EXPIRY.run(
        connection,
        key_assignment=standing.assignment,
        key_fencing=standing.fencing,
        new_expires_at=standing.expires_at,
        new_collect_by=standing.collect_by,
    )


def original_of(spec: ExpertSpec) -> str:
    """The id of the assignment of a spec that is no backup."""
    return f"a{spec.digest[:16]}"


def new_assignment(  # noqa: PLR0913 - one column each
    standing: Assignment,
    spec: ExpertSpec,
    *,
    shard: BlobRef,
    schemes: tuple[str, ...],
    now: float,
    backup_of: str | None = None,
    reason: str = "",
) -> Row:
    """What an entry writes of an assignment that was not there before."""
    return added(
        assignments,
        spec=spec.digest,
        kind=spec.kind,
        backup_of=backup_of,
        shard=shard.model_dump_json(),
        schemes=json.dumps(list(schemes)),
        reason=reason,
        created_at=now,
        changed_at=now,
        owner=standing.owner,
        **_columns(standing),
    )


_SELECT = (
    select(assignments, specs.c.body, progress.c.expires_at, progress.c.collect_by)
    .join(specs, specs.c.digest == assignments.c.spec)
    .outerjoin(
        progress,
        and_(
            progress.c.assignment == assignments.c.assignment,
            progress.c.fencing == assignments.c.fencing,
        ),
    )
)


_BY_ID = Prepared(_SELECT.where(assignments.c.assignment == bindparam("assignment")))
# An expression keeps SQLite from the index of states: thousands are open, and hardly a backup.
_IDLE_BACKUPS = Prepared(
    _SELECT.where(assignments.c.backup_of > "", text("assignments.state || '' = 'open'"))
)
_STORE_EXPIRY = update_by_key(progress, ("expires_at", "collect_by"))


def _columns(standing: Assignment) -> dict[str, object]:
    return {
        "assignment": standing.assignment,
        "state": standing.state.value,
        "fencing": standing.fencing,
        "worker": standing.worker,
        "not_before": standing.not_before,
        "num_returns": standing.num_returns,
        "excluded": json.dumps(sorted(standing.excluded)),
    }


def _assignment(row: Any) -> AssignmentRow:
    return AssignmentRow(
        standing=Assignment(
            assignment=row.assignment,
            state=AssignmentState(row.state),
            fencing=row.fencing,
            worker=row.worker,
            expires_at=row.expires_at,
            collect_by=row.collect_by,
            not_before=row.not_before,
            num_returns=row.num_returns,
            excluded=frozenset(_parse_words(row.excluded)),
            owner=row.owner,
        ),
        spec=parse_spec(row.body),
        shard=_parse_ref(row.shard),
        schemes=_parse_words(row.schemes),
        reason=row.reason,
        created_at=row.created_at,
        changed_at=row.changed_at,
        backup_of=row.backup_of,
    )
