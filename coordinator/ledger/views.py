"""What the public routes show, made from the same rows that decide."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, case, func, select

from coordinator.ledger.accepted import accepted
from coordinator.ledger.assignments import all_assignments, parse_spec, some_assignments
from coordinator.ledger.attempts import newest_attempts
from coordinator.ledger.checkpoints import durable_steps
from coordinator.ledger.domains import DomainRow, all_domains
from coordinator.ledger.prepared import Prepared
from coordinator.ledger.results import newest_evaluations
from coordinator.ledger.tables import (
    IS_LIVE,
    attempts,
    entries,
    presence,
    receipts,
    specs,
    workers,
)
from coordinator.ledger.workers import WorkerRow, some_workers
from coordinator.lifecycle import LEASE_INTERVALS
from coordinator.names import checkpoint_name
from protocol.views import (
    AssignmentView,
    DomainView,
    ExpertView,
    PerplexityView,
    WorkerState,
    WorkerView,
)

NEWEST_PERPLEXITIES = 24


_RECEIPTS_OF = Prepared(
    select(receipts, entries.c.digest)
    .join(entries, entries.c.number == receipts.c.entry)
    .where(receipts.c.worker == bindparam("worker"), receipts.c.entry > bindparam("after"))
    .order_by(receipts.c.entry)
    .limit(bindparam("most"))
)


@dataclass(frozen=True)
class ReceiptRow:
    """What an accepted assignment earned one worker; `credit` in training FLOPs."""

    entry: int
    entry_digest: str
    worker: str
    assignment: str
    spec: str
    manifest: str
    num_steps: int
    credit: float
    accepted_at: float


def is_online(worker: WorkerRow, *, now: float, heartbeat_seconds: float) -> bool:
    """Whether the worker gave a sign of life within the length of a lease."""
    return now - worker.seen_at <= LEASE_INTERVALS * heartbeat_seconds


def worker_views(
    connection: Connection,
    *,
    now: float,
    heartbeat_seconds: float,
    after: str = "",
    limit: int = 1000,
) -> list[WorkerView]:
    """Up to `limit` workers by peer id, with what each does now and what it earned."""
    rows = some_workers(connection, after=after, limit=limit)
    ids = [row.worker for row in rows]
    leases = leases_of(connection, ids)
    earned = earned_by(connection, ids)
    views = []
    for worker in rows:
        online = is_online(worker, now=now, heartbeat_seconds=heartbeat_seconds)
        held = leases.get(worker.worker, ())
        accepted, credit = earned.get(worker.worker, (0, 0.0))
        views.append(
            WorkerView(
                worker=worker.worker,
                name=worker.name,
                state=worker_state(worker, online=online, works=bool(held)),
                draining=worker.draining,
                device=worker.capability.device,
                free_memory_bytes=worker.capability.free_memory_bytes,
                flops_per_second=worker.capability.flops_per_second,
                assignment=held[0] if held else None,
                assignments=held,
                accepted=accepted,
                credit=credit,
                age_seconds=max(0.0, now - worker.seen_at),
            )
        )
    return views


def count_workers(
    connection: Connection, *, now: float, heartbeat_seconds: float
) -> dict[str, int]:
    """State to how many workers are in it."""
    since = now - LEASE_INTERVALS * heartbeat_seconds
    works = select(attempts.c.worker).where(IS_LIVE)
    kind = case(
        (workers.c.banned != 0, "banned"),
        (presence.c.seen_at < since, "offline"),
        (workers.c.worker.in_(works), "working"),
        else_="idle",
    )
    query = (
        select(kind, func.count())
        .join(presence, presence.c.worker == workers.c.worker)
        .group_by(kind)
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def leases_of(connection: Connection, ids: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Worker to the assignments it holds leases of, by device, for these workers."""
    query = (
        select(attempts.c.worker, attempts.c.assignment)
        .where(attempts.c.worker.in_(ids), IS_LIVE)
        .order_by(attempts.c.device_number)
    )
    found: dict[str, tuple[str, ...]] = {}
    for row in connection.execute(query):
        found[row.worker] = (*found.get(row.worker, ()), row.assignment)
    return found


def proven_workers(connection: Connection) -> set[str]:
    """Workers some of whose work was accepted; on their own data it proves nothing."""
    query = select(receipts.c.worker).where(receipts.c.credit > 0).distinct()
    return set(connection.execute(query).scalars())


def earned_by(connection: Connection, ids: Collection[str]) -> dict[str, tuple[int, float]]:
    """Worker to how many receipts it has and their credit in FLOPs, for these workers."""
    query = (
        select(receipts.c.worker, func.count(), func.sum(receipts.c.credit))
        .where(receipts.c.worker.in_(ids))
        .group_by(receipts.c.worker)
    )
    return {row[0]: (row[1], row[2]) for row in connection.execute(query)}


def assignment_views(
    connection: Connection,
    *,
    now: float,
    after: str = "",
    limit: int = 1000,
    state: str | None = None,
) -> list[AssignmentView]:
    """Up to `limit` assignments by id, each with its newest attempt and why it stands there."""
    rows = some_assignments(connection, after=after, limit=limit, state=state)
    ids = [row.assignment for row in rows]
    newest = newest_attempts(connection, ids)
    durable = durable_steps(connection, ids)
    views = []
    for row in rows:
        attempt = newest.get(row.assignment)
        views.append(
            AssignmentView(
                assignment=row.assignment,
                spec=row.spec.digest,
                backup_of=row.backup_of,
                kind=row.spec.kind,
                domain=row.spec.domain,
                ffn_width=row.spec.shape.ffn_width,
                lora_rank=row.spec.lora_rank,
                num_steps=row.spec.train.num_steps,
                state=row.state,
                worker=row.standing.worker,
                fencing=row.standing.fencing,
                step=attempt.step if attempt else 0,
                durable_step=durable.get(row.assignment),
                loss=attempt.loss if attempt else None,
                reason=row.reason,
                age_seconds=max(0.0, now - row.changed_at),
            )
        )
    return views


def receipts_of(
    connection: Connection, worker: str, *, after: int = 0, limit: int = 16
) -> list[ReceiptRow]:
    """Up to `limit` receipts of a worker from entries with a number above `after`, in order."""
    rows = _RECEIPTS_OF.all(connection, worker=worker, after=after, most=limit)
    return [
        ReceiptRow(
            entry=row.entry,
            entry_digest=row.digest,
            worker=row.worker,
            assignment=row.assignment,
            spec=row.spec,
            manifest=row.manifest,
            num_steps=row.num_steps,
            credit=row.credit,
            accepted_at=row.accepted_at,
        )
        for row in rows
    ]


def perplexity_views(connection: Connection, *, now: float) -> tuple[PerplexityView, ...]:
    """The newest evaluations on dev text, newest first."""
    domains = {
        row.shards["dev"].blob.digest: row.domain
        for row in all_domains(connection)
        if "dev" in row.shards
    }
    newest = newest_evaluations(connection, list(domains), limit=NEWEST_PERPLEXITIES)
    names = spec_names(connection, {row.spec_digest for row in newest})
    return tuple(
        PerplexityView(
            checkpoint=names[row.spec_digest],
            domain=domains[row.shard_digest],
            perplexity=row.perplexity,
            bits_per_byte=row.bits_per_byte,
            age_seconds=max(0.0, now - row.recorded_at),
        )
        for row in newest
    )


def spec_names(connection: Connection, digests: Collection[str]) -> dict[str, str]:
    """Spec digest to what its checkpoint is called, for these specs."""
    query = select(specs).where(specs.c.digest.in_(digests))
    return {row.digest: checkpoint_name(parse_spec(row.body)) for row in connection.execute(query)}


def domain_views(connection: Connection) -> list[DomainView]:
    """Every domain that has its train and dev shard."""
    return [
        _domain_view(domain)
        for domain in all_domains(connection)
        if {"train", "dev"} <= domain.shards.keys()
    ]


def expert_views(connection: Connection) -> list[ExpertView]:
    """Every accepted checkpoint, oldest assignment first."""
    held = accepted(connection)
    views = []
    for row in all_assignments(connection):
        digest = row.spec.digest
        expert = held.get(digest)
        if expert is not None and row.backup_of is None:
            views.append(
                ExpertView(
                    spec=digest,
                    kind=row.spec.kind,
                    domain=row.spec.domain,
                    ffn_width=row.spec.shape.ffn_width,
                    lora_rank=row.spec.lora_rank,
                    num_steps=row.spec.train.num_steps,
                    worker=expert.worker,
                    manifest=expert.manifest_digest,
                    schemes=row.schemes,
                    folder=expert.folder,
                    self_reported=expert.owner is not None,
                )
            )
    return views


def _domain_view(domain: DomainRow) -> DomainView:
    train, dev = domain.shards["train"], domain.shards["dev"]
    return DomainView(
        domain=domain.domain,
        difficulty=domain.difficulty,
        seed_perplexity=domain.seed_perplexity,
        num_documents=train.num_documents,
        num_train_tokens=train.num_tokens,
        train_shard=train.blob.digest,
        dev_shard=dev.blob.digest,
    )


def worker_state(worker: WorkerRow, *, online: bool, works: bool) -> WorkerState:
    """What a worker is called that gives signs of life, or not, and holds a lease, or not."""
    if worker.banned:
        return "banned"
    if not online:
        return "offline"
    return "working" if works else "idle"
