"""Assignments and their attempts: adding work, reading it, writing back what was decided."""

import json
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import Connection, Row, select, update

from coordinator.ledger.entries import append
from coordinator.ledger.errors import LedgerError
from coordinator.ledger.tables import LIVE_ATTEMPTS, assignments, attempts, specs
from coordinator.lifecycle import Assignment
from protocol.assignments import AssignmentState
from protocol.blobs import BlobRef
from protocol.specs import ExpertSpec


@dataclass(frozen=True)
class AssignmentRow:
    """A piece of work: where it stands, its spec, its train shard, the schemes that need it."""

    standing: Assignment
    spec: ExpertSpec
    shard: BlobRef
    schemes: tuple[str, ...]
    reason: str
    created_at: float
    changed_at: float

    @property
    def assignment(self) -> str:
        """Its id."""
        return self.standing.assignment

    @property
    def state(self) -> AssignmentState:
        """Where it stands."""
        return self.standing.state


@dataclass(frozen=True)
class Attempt:
    """One worker's try under one fencing number, with the progress that its heartbeats told.

    `resumed_from` is the worker whose training checkpoint, of `resumed_step`, came with the offer.
    """

    assignment: str
    fencing: int
    worker: str
    state: str
    free_memory_bytes: int
    offer_reason: str
    offered_at: float
    step: int
    loss: float | None
    tokens_per_second: float
    progressed_at: float
    reason: str
    resumed_from: str | None = None
    resumed_step: int = 0

    @property
    def foreign_author(self) -> str | None:
        """Another worker, on whose checkpoint this attempt was built."""
        return self.resumed_from if self.resumed_from != self.worker else None


@lru_cache(maxsize=4096)
def parse_spec(body: str) -> ExpertSpec:
    """A spec from its JSON text, parsed once."""
    return ExpertSpec.model_validate_json(body)


def add_assignment(
    connection: Connection,
    spec: ExpertSpec,
    *,
    shard: BlobRef,
    schemes: tuple[str, ...],
    now: float,
) -> str:
    """Add a spec to be trained and return the assignment's id.

    Equal specs are trained once: a repetition adds its schemes to the assignment that is there.
    Raises LedgerError when `shard` is not the spec's train shard.
    """
    if shard.digest != spec.train_shard:
        raise LedgerError(f"shard {shard.digest}: expected the spec's own, {spec.train_shard}")
    digest = spec.digest
    assignment = f"a{digest[:16]}"
    found = find_assignment(connection, assignment)
    if found is not None:
        merged = tuple(dict.fromkeys((*found.schemes, *schemes)))
        if merged != found.schemes:
            connection.execute(
                update(assignments)
                .where(assignments.c.assignment == assignment)
                .values(schemes=json.dumps(list(merged)))
            )
        return assignment
    connection.execute(specs.insert().values(digest=digest, body=spec.model_dump_json()))
    standing = Assignment(assignment=assignment)
    connection.execute(
        assignments.insert().values(
            spec=digest,
            shard=shard.model_dump_json(),
            schemes=json.dumps(list(schemes)),
            reason="",
            created_at=now,
            changed_at=now,
            **_columns(standing),
        )
    )
    facts = {"assignment": assignment, "spec": digest, "schemes": list(schemes)}
    append(connection, "plan", facts=facts, now=now)
    return assignment


def find_assignment(connection: Connection, assignment: str) -> AssignmentRow | None:
    """The assignment with this id."""
    row = connection.execute(_SELECT.where(assignments.c.assignment == assignment)).one_or_none()
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


def store_standing(
    connection: Connection, standing: Assignment, *, reason: str | None = None, now: float
) -> None:
    """Write back what the lifecycle decided; `reason` is what the public views show."""
    values: dict[str, object] = {**_columns(standing), "changed_at": now}
    if reason is not None:
        values["reason"] = reason
    connection.execute(
        update(assignments).where(assignments.c.assignment == standing.assignment).values(**values)
    )


def find_attempt(connection: Connection, assignment: str, fencing: int) -> Attempt | None:
    """The attempt under this fencing number."""
    key = (attempts.c.assignment == assignment) & (attempts.c.fencing == fencing)
    row = connection.execute(select(attempts).where(key)).one_or_none()
    return None if row is None else _attempt(row)


def live_attempts(connection: Connection) -> tuple[Attempt, ...]:
    """The attempts that hold a lease, at most one for each assignment and each worker."""
    query = select(attempts).where(attempts.c.state.in_(LIVE_ATTEMPTS))
    return tuple(map(_attempt, connection.execute(query.order_by(attempts.c.assignment))))


def newest_attempts(connection: Connection) -> dict[str, Attempt]:
    """Assignment to the attempt under its newest fencing number."""
    query = select(attempts).join(
        assignments,
        (assignments.c.assignment == attempts.c.assignment)
        & (assignments.c.fencing == attempts.c.fencing),
    )
    return {row.assignment: _attempt(row) for row in connection.execute(query)}


def ran_out_of_memory(connection: Connection) -> dict[str, dict[str, int]]:
    """Assignment to worker to the most free memory with which it ran out there, in bytes."""
    found: dict[str, dict[str, int]] = {}
    query = select(attempts).where(attempts.c.reason == "out_of_memory")
    for row in connection.execute(query):
        of_one = found.setdefault(row.assignment, {})
        of_one[row.worker] = max(of_one.get(row.worker, 0), row.free_memory_bytes)
    return found


def end_attempt(
    connection: Connection, assignment: str, fencing: int, *, state: str, reason: str, now: float
) -> None:
    """The attempt moves on to `state`; a state that is not live frees its worker."""
    connection.execute(
        update(attempts)
        .where((attempts.c.assignment == assignment) & (attempts.c.fencing == fencing))
        .values(state=state, reason=reason, ended_at=now)
    )


_SELECT = select(assignments, specs.c.body).join(specs, specs.c.digest == assignments.c.spec)


def _columns(standing: Assignment) -> dict[str, object]:
    return {
        "assignment": standing.assignment,
        "state": standing.state.value,
        "fencing": standing.fencing,
        "worker": standing.worker,
        "expires_at": standing.expires_at,
        "collect_by": standing.collect_by,
        "not_before": standing.not_before,
        "num_returns": standing.num_returns,
        "excluded": json.dumps(sorted(standing.excluded)),
    }


def _assignment(row: Row[tuple[object, ...]]) -> AssignmentRow:
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
            excluded=frozenset(json.loads(row.excluded)),
        ),
        spec=parse_spec(row.body),
        shard=BlobRef.model_validate_json(row.shard),
        schemes=tuple(json.loads(row.schemes)),
        reason=row.reason,
        created_at=row.created_at,
        changed_at=row.changed_at,
    )


def _attempt(row: Row[tuple[object, ...]]) -> Attempt:
    return Attempt(
        assignment=row.assignment,
        fencing=row.fencing,
        worker=row.worker,
        state=row.state,
        free_memory_bytes=row.free_memory_bytes,
        offer_reason=row.offer_reason,
        offered_at=row.offered_at,
        step=row.step,
        loss=row.loss,
        tokens_per_second=row.tokens_per_second,
        progressed_at=row.progressed_at,
        reason=row.reason,
        resumed_from=row.resumed_from,
        resumed_step=row.resumed_step,
    )
