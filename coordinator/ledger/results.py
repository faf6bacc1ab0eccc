"""Verification, accepted checkpoints, evaluations and result tables."""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select

from coordinator import lifecycle
from coordinator.ledger.assignments import (
    AssignmentRow,
    all_assignments,
    end_attempt,
    find_attempt,
    get_assignment,
    parse_spec,
    store_standing,
)
from coordinator.ledger.checkpoints import discard_training, unneeded_blobs
from coordinator.ledger.domains import DomainRow, all_domains
from coordinator.ledger.entries import append
from coordinator.ledger.errors import LedgerError
from coordinator.ledger.run import get_run
from coordinator.ledger.tables import assignments, checkpoints, evaluations, results, specs
from coordinator.names import checkpoint_name
from coordinator.scoring.verification import Accepted, Decision, Rejected
from protocol.digests import digest_value
from protocol.manifests import CheckpointManifest
from protocol.messages import Phase, ResultTable
from protocol.specs import ExpertSpec


@dataclass(frozen=True)
class SubmissionRow:
    """An expert whose files the coordinator holds, to be verified."""

    assignment: str
    fencing: int
    worker: str
    spec: ExpertSpec
    manifest: CheckpointManifest


@dataclass(frozen=True)
class AcceptedRow:
    """The canonical checkpoint of a spec. `folder` is relative to the run's own."""

    spec: ExpertSpec
    manifest: CheckpointManifest
    manifest_digest: str
    worker: str
    folder: str


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
    """All that decides what the run does next."""

    phase: Phase
    domains: tuple[DomainRow, ...]
    assignments: tuple[AssignmentRow, ...]
    evaluations: tuple[EvaluationRow, ...]
    results: ResultTable | None


def expert_folder(spec: ExpertSpec) -> str:
    """Where the accepted checkpoint of a spec is exported to, relative to the run's folder."""
    return f"state/experts/{checkpoint_name(spec)}"


def durable_submissions(connection: Connection) -> list[SubmissionRow]:
    """Submissions that were collected and wait for their verification, oldest first."""
    query = (
        select(checkpoints, specs.c.body.label("spec_body"))
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

    Not accepted, the assignment is open again for other workers and starts afresh: the training
    checkpoints that led there are dropped. Returns the digests of blobs that may now be deleted.
    Raises LedgerError when there is no such submission.
    """
    standing = get_assignment(connection, assignment).standing
    attempt = find_attempt(connection, assignment, fencing)
    author = None if attempt is None else attempt.foreign_author
    accepted = isinstance(decision, Accepted)
    after = (
        lifecycle.accept(standing, fencing=fencing)
        if accepted
        else lifecycle.reject(standing, fencing=fencing, now=now, author=author)
    )
    if isinstance(after, lifecycle.Refused):
        raise LedgerError(after.message)
    outcome = type(decision).__name__.lower()
    mine = (
        (checkpoints.c.assignment == assignment)
        & (checkpoints.c.fencing == fencing)
        & (checkpoints.c.kind == "expert")
        & (checkpoints.c.state == "durable")
    )
    row = connection.execute(select(checkpoints).where(mine)).one_or_none()
    if row is None:
        raise LedgerError(f"assignment {assignment}: its submission is not durable")
    connection.execute(
        checkpoints.update()
        .where(checkpoints.c.checkpoint_id == row.checkpoint_id)
        .values(state=outcome, reason=reason, decided_at=now)
    )
    end_attempt(connection, assignment, fencing, state=outcome, reason=reason, now=now)
    store_standing(connection, after, reason=f"{outcome}: {reason}", now=now)
    facts = {
        "assignment": assignment,
        "fencing": fencing,
        "worker": row.worker,
        "manifest": row.manifest_digest,
        "outcome": outcome,
        "reason": reason,
    }
    if author is not None:
        facts["resumed_from"] = author
    append(connection, "accept" if accepted else "reject", facts=facts, now=now)
    unneeded = set(discard_training(connection, assignment, now))
    if isinstance(decision, Rejected):
        unneeded |= set(unneeded_blobs(connection, [row.checkpoint_id]))
    return tuple(sorted(unneeded))


def accepted(connection: Connection) -> dict[str, AcceptedRow]:
    """Spec digest to its canonical checkpoint."""
    query = (
        select(checkpoints, specs.c.digest, specs.c.body.label("spec_body"))
        .join(assignments, assignments.c.assignment == checkpoints.c.assignment)
        .join(specs, specs.c.digest == assignments.c.spec)
        .where(checkpoints.c.state == "accepted")
    )
    return {
        row.digest: AcceptedRow(
            spec=parse_spec(row.spec_body),
            manifest=CheckpointManifest.model_validate_json(row.body),
            manifest_digest=row.manifest_digest,
            worker=row.worker,
            folder=expert_folder(parse_spec(row.spec_body)),
        )
        for row in connection.execute(query)
    }


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
    key = (evaluations.c.spec == spec_digest) & (evaluations.c.shard == shard_digest)
    connection.execute(delete(evaluations).where(key))
    connection.execute(
        evaluations.insert().values(
            spec=spec_digest,
            shard=shard_digest,
            mean_log_likelihood=mean_log_likelihood,
            perplexity=perplexity,
            bits_per_byte=bits_per_byte,
            recorded_at=now,
        )
    )


def all_evaluations(connection: Connection) -> tuple[EvaluationRow, ...]:
    """Every evaluation, by spec and shard."""
    query = select(evaluations).order_by(evaluations.c.spec, evaluations.c.shard)
    return tuple(
        EvaluationRow(
            spec_digest=row.spec,
            shard_digest=row.shard,
            mean_log_likelihood=row.mean_log_likelihood,
            perplexity=row.perplexity,
            bits_per_byte=row.bits_per_byte,
            recorded_at=row.recorded_at,
        )
        for row in connection.execute(query)
    )


def record_results(connection: Connection, table: ResultTable, now: float) -> None:
    """Keep a result table; harmless when the newest one is equal."""
    if newest_results(connection) == table:
        return
    connection.execute(results.insert().values(body=table.model_dump_json(), recorded_at=now))
    append(connection, "results", facts={"table": digest_value(table)}, now=now)


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
        assignments=all_assignments(connection),
        evaluations=all_evaluations(connection),
        results=newest_results(connection),
    )
