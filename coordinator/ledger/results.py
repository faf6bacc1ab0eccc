"""Verification, accepted checkpoints, evaluations and result tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy import Row as Found

from coordinator import lifecycle
from coordinator.credit import steps_by_worker
from coordinator.ledger.assignments import (
    AssignmentRow,
    all_assignments,
    get_assignment,
    live_twins,
    parse_spec,
    standing_row,
    store_expiry,
)
from coordinator.ledger.attempts import ended, find_attempt, tries
from coordinator.ledger.checkpoints import (
    superseded_training,
    training_checkpoints,
    unneeded_blobs,
)
from coordinator.ledger.collection import drop
from coordinator.ledger.domains import DomainRow, all_domains
from coordinator.ledger.ending import cancel_assignment
from coordinator.ledger.entries import Row, added, changed, next_number, record
from coordinator.ledger.errors import LedgerError
from coordinator.ledger.failing import Failing, failing
from coordinator.ledger.run import get_run
from coordinator.ledger.tables import (
    assignments,
    attempts,
    checkpoints,
    evaluations,
    receipts,
    results,
    specs,
)
from coordinator.names import checkpoint_name
from coordinator.scoring.verification import Accepted, Decision, Rejected
from protocol.assignments import AssignmentState
from protocol.ids import Digest
from protocol.manifests import CheckpointManifest
from protocol.messages import Phase, ResultTable
from protocol.specs import ExpertSpec
from shared.sizing import step_flops


@dataclass(frozen=True)
class SubmissionRow:
    """An expert whose files the coordinator holds, to be verified."""

    assignment: str
    fencing: int
    worker: str
    spec: ExpertSpec
    manifest: CheckpointManifest
    owner: str | None = None


@dataclass(frozen=True)
class AcceptedRow:
    """The canonical checkpoint of a spec. `folder` is relative to the run's own.

    `owner` alone has the text that it was trained on; None: the text is the run's.
    """

    spec: ExpertSpec
    manifest: CheckpointManifest
    manifest_digest: str
    worker: str
    folder: str
    owner: str | None = None


@dataclass(frozen=True)
class EvaluationRow:
    """How well a spec's checkpoint predicts a shard. Log-likelihood in nats per token."""

    spec_digest: str
    shard_digest: str
    mean_log_likelihood: float
    perplexity: float
    bits_per_byte: float
    recorded_at: float


@dataclass(frozen=True)
class RunSnapshot:
    """All that decides what the run does next.

    `diverged` are the specs of failed assignments whose last attempt found no finite loss.
    `failing` are those that are still tried, though they failed before.
    """

    phase: Phase
    domains: tuple[DomainRow, ...]
    assignments: tuple[AssignmentRow, ...]
    evaluations: tuple[EvaluationRow, ...]
    results: ResultTable | None
    diverged: frozenset[Digest] = frozenset()
    failing: tuple[Failing, ...] = ()


def expert_folder(spec: ExpertSpec) -> str:
    """Where the accepted checkpoint of a spec is exported to, relative to the run's folder."""
    return f"state/experts/{checkpoint_name(spec)}"


def durable_submissions(connection: Connection) -> list[SubmissionRow]:
    """Submissions that were collected and wait for their verification, oldest first."""
    query = (
        select(checkpoints, specs.c.body.label("spec_body"), assignments.c.owner)
        .join(
            assignments,
            (assignments.c.assignment == checkpoints.c.assignment)
            & (assignments.c.fencing == checkpoints.c.fencing),
        )
        .join(specs, specs.c.digest == assignments.c.spec)
        .where(
            assignments.c.state == "submitted",
            checkpoints.c.kind == "expert",
            checkpoints.c.state == "durable",
        )
        .order_by(checkpoints.c.decided_at, checkpoints.c.checkpoint_id)
    )
    return [
        SubmissionRow(
            assignment=row.assignment,
            fencing=row.fencing,
            worker=row.worker,
            spec=parse_spec(row.spec_body),
            manifest=CheckpointManifest.model_validate_json(row.body),
            owner=row.owner,
        )
        for row in connection.execute(query)
    ]


def record_verification(
    connection: Connection,
    assignment: str,
    fencing: int,
    decision: Decision,
    reason: str,
    now: float,
) -> tuple[str, ...]:
    """Write down the decision on a durable submission; `reason` is what its worker may read.

    Accepted, it earns receipts, and a backup or the original that it overtook is cancelled. Not
    accepted, the assignment is open again for other workers and starts afresh: the training
    checkpoints that led there are dropped. On own data nobody else can start afresh: then it is
    cancelled, and what is accepted earns no credit, as nothing proves that it was trained. Returns
    the digests of blobs that may now be deleted. Raises LedgerError when there is no such
    submission.
    """
    found = get_assignment(connection, assignment)
    submission = _submission(connection, assignment, fencing)
    attempt = find_attempt(connection, assignment, fencing)
    author = None if attempt is None else attempt.foreign_author
    is_accepted = isinstance(decision, Accepted)
    after = (
        lifecycle.accept(found.standing, fencing=fencing)
        if is_accepted
        else lifecycle.reject(found.standing, fencing=fencing, now=now, author=author)
    )
    if isinstance(after, lifecycle.Refused):
        raise LedgerError(after.message)
    outcome = type(decision).__name__.lower()
    dropped = training_checkpoints(connection, assignment)
    rows = [
        changed(
            checkpoints,
            checkpoint_id=submission.checkpoint_id,
            state=outcome,
            reason=reason,
            decided_at=now,
        ),
        ended(assignment, fencing, state=outcome, reason=reason, now=now),
        standing_row(after, reason=f"{outcome}: {reason}", now=now),
        *drop(connection, dropped, now),
    ]
    if is_accepted:
        rows += _earned(connection, found, submission.manifest_digest, now)
    facts = {
        "assignment": assignment,
        "fencing": fencing,
        "worker": submission.worker,
        "outcome": outcome,
        "reason": reason,
        "resumed_from": author,
    }
    record(connection, "accept" if is_accepted else "reject", *rows, facts=facts, now=now)
    store_expiry(connection, after)
    unneeded: set[str] = set()
    if is_accepted:
        for twin in live_twins(connection, found):
            words = f"{assignment} of the same spec was accepted first"
            unneeded |= set(cancel_assignment(connection, twin, reason=words, now=now))
    unneeded |= set(unneeded_blobs(connection, superseded_training(connection, assignment)))
    if isinstance(decision, Rejected):
        unneeded |= set(unneeded_blobs(connection, [submission.checkpoint_id]))
    if found.owner is not None and not is_accepted:
        row = get_assignment(connection, assignment)
        words = f"{outcome}: {reason}"
        unneeded |= set(cancel_assignment(connection, row, reason=words, now=now))
    return tuple(sorted(unneeded))


def _canonical(rows: tuple[AssignmentRow, ...]) -> tuple[AssignmentRow, ...]:
    """One row for each spec: the original, or the backup that was accepted in its place."""
    overtook = {
        row.backup_of: row
        for row in rows
        if row.backup_of is not None and row.state is AssignmentState.ACCEPTED
    }
    return tuple(overtook.get(row.assignment, row) for row in rows if row.backup_of is None)


def _submission(connection: Connection, assignment: str, fencing: int) -> Found[Any]:
    query = select(checkpoints).where(
        checkpoints.c.assignment == assignment,
        checkpoints.c.fencing == fencing,
        checkpoints.c.kind == "expert",
        checkpoints.c.state == "durable",
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise LedgerError(f"assignment {assignment}: its submission is not durable")
    return row


def _earned(connection: Connection, found: AssignmentRow, manifest: str, now: float) -> list[Row]:
    number, spec = next_number(connection), found.spec
    done = steps_by_worker(
        tries(connection, spec.digest),
        last=(found.assignment, found.standing.fencing),
        num_steps=spec.train.num_steps,
    )
    return [
        added(
            receipts,
            entry=number,
            worker=worker,
            assignment=found.assignment,
            spec=spec.digest,
            manifest=manifest,
            num_steps=steps,
            credit=0.0 if found.owner is not None else step_flops(spec) * steps,
            accepted_at=now,
        )
        for worker, steps in done.items()
    ]


def accepted(connection: Connection) -> dict[str, AcceptedRow]:
    """Spec digest to its canonical checkpoint."""
    return {row.digest: _accepted(row) for row in connection.execute(_ACCEPTED)}


def accepted_of(connection: Connection, spec_digest: str) -> AcceptedRow | None:
    """The canonical checkpoint of one spec."""
    row = connection.execute(_ACCEPTED.where(specs.c.digest == spec_digest)).one_or_none()
    return None if row is None else _accepted(row)


def accepted_specs(connection: Connection) -> set[str]:
    """Digests of the specs that have a canonical checkpoint."""
    query = select(assignments.c.spec).where(assignments.c.state == "accepted")
    return set(connection.execute(query).scalars())


def record_evaluation(  # noqa: PLR0913 - one column each
    connection: Connection,
    *,
    spec_digest: str,
    shard_digest: str,
    mean_log_likelihood: float,
    perplexity: float,
    bits_per_byte: float,
    now: float,
) -> None:
    """How well the accepted checkpoint of a spec predicts a shard; the newest value counts."""
    values = {
        "spec": spec_digest,
        "shard": shard_digest,
        "mean_log_likelihood": mean_log_likelihood,
        "perplexity": perplexity,
        "bits_per_byte": bits_per_byte,
        "recorded_at": now,
    }
    key = (evaluations.c.spec == spec_digest) & (evaluations.c.shard == shard_digest)
    known = connection.execute(select(evaluations.c.spec).where(key)).first() is not None
    row = changed(evaluations, **values) if known else added(evaluations, **values)
    record(connection, "evaluate", row, now=now)


def all_evaluations(connection: Connection) -> tuple[EvaluationRow, ...]:
    """Every evaluation, by spec and shard."""
    query = select(evaluations).order_by(evaluations.c.spec, evaluations.c.shard)
    return tuple(map(_evaluation, connection.execute(query)))


def newest_evaluations(
    connection: Connection, shards: Sequence[str], *, limit: int
) -> tuple[EvaluationRow, ...]:
    """The newest evaluations on these shards, newest first."""
    query = select(evaluations).where(evaluations.c.shard.in_(shards))
    ordered = query.order_by(evaluations.c.recorded_at.desc(), evaluations.c.spec)
    return tuple(map(_evaluation, connection.execute(ordered.limit(limit))))


def record_results(connection: Connection, table: ResultTable, now: float) -> None:
    """Keep a result table; harmless when the newest one is equal."""
    if newest_results(connection) == table:
        return
    number = next_number(connection)
    row = added(results, number=number, body=table.model_dump_json(), recorded_at=now)
    record(connection, "results", row, now=now)


def newest_results(connection: Connection) -> ResultTable | None:
    """The result table that was recorded last."""
    body = connection.execute(
        select(results.c.body).order_by(results.c.number.desc()).limit(1)
    ).scalar()
    return None if body is None else ResultTable.model_validate_json(body)


def results_recorded_at(connection: Connection) -> float | None:
    """When the newest result table was recorded; None before the first."""
    moment: float | None = connection.execute(select(func.max(results.c.recorded_at))).scalar()
    return moment


def snapshot(connection: Connection) -> RunSnapshot:
    """The run as one consistent value."""
    return RunSnapshot(
        phase=get_run(connection).phase,
        domains=all_domains(connection),
        assignments=_canonical(all_assignments(connection)),
        evaluations=all_evaluations(connection),
        results=newest_results(connection),
        diverged=_diverged(connection),
        failing=failing(connection),
    )


def _diverged(connection: Connection) -> frozenset[Digest]:
    newest = (attempts.c.assignment == assignments.c.assignment) & (
        attempts.c.fencing == assignments.c.fencing
    )
    query = (
        select(assignments.c.spec)
        .join(attempts, newest)
        .where(assignments.c.state == "failed", attempts.c.reason == "diverged")
    )
    return frozenset(connection.execute(query).scalars())


_ACCEPTED = (
    select(checkpoints, specs.c.digest, specs.c.body.label("spec_body"), assignments.c.owner)
    .join(assignments, assignments.c.assignment == checkpoints.c.assignment)
    .join(specs, specs.c.digest == assignments.c.spec)
    .where(checkpoints.c.state == "accepted")
)


def _accepted(row: Found[Any]) -> AcceptedRow:
    spec = parse_spec(row.spec_body)
    return AcceptedRow(
        spec=spec,
        manifest=CheckpointManifest.model_validate_json(row.body),
        manifest_digest=row.manifest_digest,
        worker=row.worker,
        folder=expert_folder(spec),
        owner=row.owner,
    )


def _evaluation(row: Found[Any]) -> EvaluationRow:
    return EvaluationRow(
        spec_digest=row.spec,
        shard_digest=row.shard,
        mean_log_likelihood=row.mean_log_likelihood,
        perplexity=row.perplexity,
        bits_per_byte=row.bits_per_byte,
        recorded_at=row.recorded_at,
    )
