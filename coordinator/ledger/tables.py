"""The tables of the ledger. Values of the protocol are kept as their JSON text, times as seconds.

`entries` says what was decided and is never changed. The *state tables* say how things stand; they
are written through `coordinator.ledger.entries.record` alone and can be rebuilt from the entries.
Columns marked VOLATILE and the *volatile tables* (heartbeats, tokens, remembered answers) are
outside of that: they change often and decide nothing that must be proved later.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

IS_LIVE = text("attempts.state IN ('offered', 'running')")
"""Of an attempt that holds a lease. Word for word as in the partial indexes, which serve it."""

VOLATILE = {"volatile": True}
"""Marks a column of a state table that no entry holds."""

metadata = MetaData()

run = Table(
    "run",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("run", String(63), nullable=False),
    Column("coordinator", String(64), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("phase_since", Float, nullable=False),
    Column("round", Integer, nullable=False),
    Column("paused", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("phase_reason", Text, nullable=False, server_default="", info=VOLATILE),
    Column("maddrs", Text, nullable=False, server_default="[]", info=VOLATILE),
    Column("blob_url", Text, info=VOLATILE),
    Column("own_data", Text),
)

domains = Table(
    "domains",
    metadata,
    Column("domain", String(63), primary_key=True),
    Column("difficulty", String(16)),
    Column("seed_perplexity", Float),
)

shards = Table(
    "shards",
    metadata,
    Column("domain", ForeignKey("domains.domain"), primary_key=True),
    Column("split", String(8), primary_key=True),
    Column("digest", String(64), nullable=False, index=True),
    Column("body", Text, nullable=False),
)

specs = Table(
    "specs",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("body", Text, nullable=False),
)

assignments = Table(
    "assignments",
    metadata,
    Column("assignment", String(17), primary_key=True),
    Column("spec", ForeignKey("specs.digest"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("backup_of", ForeignKey("assignments.assignment"), index=True),
    Column("shard", Text, nullable=False),
    Column("schemes", Text, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("fencing", Integer, nullable=False),
    Column("worker", String(64)),
    Column("not_before", Float, nullable=False),
    Column("num_returns", Integer, nullable=False),
    Column("excluded", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
    Column("owner", String(64)),
    Index("assignments_by_worker", "worker", "state"),
    Index("assignments_by_spec", "spec"),
)
"""`owner` alone has the text and may hold the assignment; NULL: anybody."""

workers = Table(
    "workers",
    metadata,
    Column("worker", String(64), primary_key=True),
    Column("name", String(40), nullable=False),
    Column("software_version", String(40), nullable=False),
    Column("banned", Integer, nullable=False),
    Column("draining", Integer, nullable=False),
    Column("registered_at", Float, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("assignment", ForeignKey("assignments.assignment"), primary_key=True),
    Column("fencing", Integer, primary_key=True, autoincrement=False),
    Column("worker", ForeignKey("workers.worker"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("free_memory_bytes", BigInteger, nullable=False),
    Column("peak_memory_bytes", BigInteger),
    Column("device_number", Integer, nullable=False, server_default="0"),
    Column("newcomer", Integer, nullable=False, server_default="1"),
    Column("offer_reason", Text, nullable=False),
    Column("offered_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("resumed_from", String(64)),
    Column("resumed_assignment", String(17)),
    Column("resumed_fencing", Integer),
    Column("resumed_step", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Index("attempts_by_worker", "worker", "offered_at"),
)
"""`newcomer`: none of the worker's work was accepted yet when it was offered."""

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("checkpoint_id", BigInteger, primary_key=True, autoincrement=False),
    Column("assignment", ForeignKey("assignments.assignment"), nullable=False),
    Column("fencing", Integer, nullable=False),
    Column("worker", ForeignKey("workers.worker"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("step", Integer, nullable=False),
    Column("manifest_digest", String(64), nullable=False),
    Column("manifest_size", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("body", Text),
    Column("reason", Text, nullable=False),
    Column("decided_at", Float),
    Column("announced_at", Float, nullable=False, info=VOLATILE),
    UniqueConstraint("assignment", "worker", "kind", "manifest_digest"),
    Index("checkpoints_by_state", "state", "kind"),
    Index("checkpoints_by_worker", "worker", "decided_at"),
)
"""`checkpoint_id` is the number of the entry that named it."""

checkpoint_blobs = Table(
    "checkpoint_blobs",
    metadata,
    Column("checkpoint_id", ForeignKey("checkpoints.checkpoint_id"), primary_key=True),
    Column("digest", String(64), primary_key=True, index=True),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("spec", ForeignKey("specs.digest"), primary_key=True),
    Column("shard", String(64), primary_key=True),
    Column("mean_log_likelihood", Float, nullable=False),
    Column("perplexity", Float, nullable=False),
    Column("bits_per_byte", Float, nullable=False),
    Column("recorded_at", Float, nullable=False),
)

results = Table(
    "results",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
    Column("recorded_at", Float, nullable=False),
)

receipts = Table(
    "receipts",
    metadata,
    Column("entry", BigInteger, primary_key=True, autoincrement=False),
    Column("worker", ForeignKey("workers.worker"), primary_key=True, index=True),
    Column("assignment", ForeignKey("assignments.assignment"), nullable=False),
    Column("spec", ForeignKey("specs.digest"), nullable=False),
    Column("manifest", String(64), nullable=False),
    Column("num_steps", Integer, nullable=False),
    Column("credit", Float, nullable=False),
    Column("accepted_at", Float, nullable=False),
)
"""What accepted work earned: `credit` in training FLOPs, for the `num_steps` that a worker did."""

own_domains = Table(
    "own_domains",
    metadata,
    Column("domain", String(63), primary_key=True),
    Column("worker", ForeignKey("workers.worker"), nullable=False),
    Column("body", Text, nullable=False),
    Column("assignment", ForeignKey("assignments.assignment")),
    Column("perplexity_before", Float),
    Column("perplexity_after", Float),
    Column("offered_at", Float, nullable=False),
)
"""Domains whose text stays with their worker. The perplexities are what it reported."""

entries = Table(
    "entries",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("body", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
)

progress = Table(
    "progress",
    metadata,
    Column("assignment", String(17), primary_key=True),
    Column("fencing", Integer, primary_key=True, autoincrement=False),
    Column("expires_at", Float, index=True),
    Column("collect_by", Float),
    Column("step", Integer, nullable=False),
    Column("loss", Float),
    Column("tokens_per_second", Float, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("progressed_at", Float, nullable=False, index=True),
    ForeignKeyConstraint(["assignment", "fencing"], ["attempts.assignment", "attempts.fencing"]),
)
"""What heartbeats renew, a row an attempt. `started_at`: when it was acknowledged."""

presence = Table(
    "presence",
    metadata,
    Column("worker", ForeignKey("workers.worker"), primary_key=True),
    Column("capability", Text, nullable=False),
    Column("maddrs", Text, nullable=False),
    Column("token_digest", String(64), nullable=False, unique=True),
    Column("token_expires_at", Float, nullable=False),
    Column("certificate_expires_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False, index=True),
    Column("allowed_at", Float, nullable=False),
    Column("cached", Text, nullable=False),
    Column("asked_at", Float),
    Column("waits_since", Float),
)
"""A worker's newest sign of life, and what it said of itself. `allowed_at`: its rate limit."""

devices = Table(
    "devices",
    metadata,
    Column("worker", ForeignKey("workers.worker"), primary_key=True),
    Column("device_number", Integer, primary_key=True, autoincrement=False),
    Column("capability", Text, nullable=False),
    Column("asked_at", Float),
    Column("waits_since", Float),
)
"""What `presence` holds of a worker's device 0, of its others."""

wanted = Table(
    "wanted",
    metadata,
    Column("checkpoint_id", ForeignKey("checkpoints.checkpoint_id"), primary_key=True),
    Column("digest", String(64), primary_key=True, index=True),
    Column("size", BigInteger, nullable=False),
    Column("since", Float, nullable=False),
)

roles = Table(
    "roles",
    metadata,
    Column("role", String(16), primary_key=True),
    Column("beat_at", Float, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("worker", ForeignKey("workers.worker"), primary_key=True),
    Column("request_id", String(32), primary_key=True),
    Column("body_digest", String(64), nullable=False),
    Column("answer", Text, nullable=False),
    Column("at", Float, nullable=False, index=True),
)

nonces = Table(
    "nonces",
    metadata,
    Column("nonce", String(64), primary_key=True),
    Column("expires_at", Float, nullable=False, index=True),
)
"""Nonces that were used; a second use is refused until they would have expired anyway."""

STATE_TABLES = (
    run,
    domains,
    shards,
    specs,
    assignments,
    workers,
    attempts,
    checkpoints,
    checkpoint_blobs,
    evaluations,
    results,
    receipts,
    own_domains,
)


def _unique_where(name: str, *columns: Column[Any], condition: str) -> None:
    where = text(condition)
    Index(name, *columns, unique=True, sqlite_where=where, postgresql_where=where)


_LIVE = "state IN ('offered', 'running')"

_NEWCOMER = f"{_LIVE} AND newcomer = 1"

_unique_where("one_live_lease_an_assignment", attempts.c.assignment, condition=_LIVE)
_unique_where(
    "one_live_lease_a_device", attempts.c.worker, attempts.c.device_number, condition=_LIVE
)
_unique_where("one_live_lease_a_newcomer", attempts.c.worker, condition=_NEWCOMER)
_unique_where("one_original_a_spec", assignments.c.spec, condition="backup_of IS NULL")
_unique_where("one_accepted_a_spec", assignments.c.spec, condition="state = 'accepted'")
_unique_where(
    "one_backup_an_assignment",
    assignments.c.backup_of,
    condition="state IN ('open', 'offered', 'running', 'submitted')",
)
