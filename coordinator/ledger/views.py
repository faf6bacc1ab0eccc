"""What the public routes show, made from the same rows that decide."""

from collections import Counter

from sqlalchemy import Connection

from coordinator.ledger.assignments import all_assignments, live_attempts, newest_attempts
from coordinator.ledger.checkpoints import durable_steps
from coordinator.ledger.domains import DomainRow, all_domains
from coordinator.ledger.results import accepted, all_evaluations
from coordinator.ledger.workers import WorkerRow, all_workers
from coordinator.lifecycle import LEASE_INTERVALS
from coordinator.names import checkpoint_name
from protocol.messages import (
    AssignmentView,
    DomainView,
    ExpertView,
    PerplexityView,
    WorkerView,
)

NEWEST_PERPLEXITIES = 24


def is_online(worker: WorkerRow, *, now: float, heartbeat_seconds: float) -> bool:
    """Whether the worker gave a sign of life within the length of a lease."""
    return now - worker.seen_at <= LEASE_INTERVALS * heartbeat_seconds


def worker_views(
    connection: Connection, *, now: float, heartbeat_seconds: float
) -> list[WorkerView]:
    """Every worker with what it does now and how many of its experts were accepted."""
    leases = {attempt.worker: attempt.assignment for attempt in live_attempts(connection)}
    credit = Counter(row.worker for row in accepted(connection).values())
    views = []
    for worker in all_workers(connection):
        online = is_online(worker, now=now, heartbeat_seconds=heartbeat_seconds)
        assignment = leases.get(worker.worker)
        views.append(
            WorkerView(
                worker=worker.worker,
                name=worker.name,
                state=(
                    "banned"
                    if worker.banned
                    else "offline"
                    if not online
                    else "working"
                    if assignment
                    else "idle"
                ),
                device=worker.capability.device,
                free_memory_bytes=worker.capability.free_memory_bytes,
                flops_per_second=worker.capability.flops_per_second,
                assignment=assignment,
                accepted=credit[worker.worker],
                age_seconds=max(0.0, now - worker.seen_at),
            )
        )
    return views


def assignment_views(connection: Connection, *, now: float) -> list[AssignmentView]:
    """Every assignment with its newest attempt; `reason` says why it stands where it stands."""
    attempts = newest_attempts(connection)
    durable = durable_steps(connection)
    views = []
    for row in all_assignments(connection):
        attempt = attempts.get(row.assignment)
        views.append(
            AssignmentView(
                assignment=row.assignment,
                spec=row.spec.digest,
                kind=row.spec.kind,
                domain=row.spec.domain,
                ffn_width=row.spec.shape.ffn_width,
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


def perplexity_views(connection: Connection, *, now: float) -> tuple[PerplexityView, ...]:
    """The newest evaluations on dev text, newest first."""
    names = {row.spec.digest: checkpoint_name(row.spec) for row in all_assignments(connection)}
    domains = {
        row.shards["dev"].blob.digest: row.domain
        for row in all_domains(connection)
        if "dev" in row.shards
    }
    rows = [row for row in all_evaluations(connection) if row.shard_digest in domains]
    newest = sorted(rows, key=lambda row: row.recorded_at, reverse=True)[:NEWEST_PERPLEXITIES]
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
        if expert is not None:
            views.append(
                ExpertView(
                    spec=digest,
                    kind=row.spec.kind,
                    domain=row.spec.domain,
                    ffn_width=row.spec.shape.ffn_width,
                    num_steps=row.spec.train.num_steps,
                    worker=expert.worker,
                    manifest=expert.manifest_digest,
                    schemes=row.schemes,
                    folder=expert.folder,
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
