"""Evaluations of checkpoints, and the tables of results that are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy import Row as Found

from coordinator.ledger.entries import added, changed, next_number, record
from coordinator.ledger.tables import evaluations, results
from protocol.views import ResultTable


@dataclass(frozen=True)
class EvaluationRow:
    """How well a spec's checkpoint predicts a shard. Log-likelihood in nats per token."""

    spec_digest: str
    shard_digest: str
    mean_log_likelihood: float
    perplexity: float
    bits_per_byte: float
    recorded_at: float


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


def _evaluation(row: Found[Any]) -> EvaluationRow:
    return EvaluationRow(
        spec_digest=row.spec,
        shard_digest=row.shard,
        mean_log_likelihood=row.mean_log_likelihood,
        perplexity=row.perplexity,
        bits_per_byte=row.bits_per_byte,
        recorded_at=row.recorded_at,
    )
