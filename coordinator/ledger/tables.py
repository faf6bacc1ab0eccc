"""The tables of the ledger. Values of the protocol are kept as their JSON text, times as seconds.

`assignments`, `attempts`, `checkpoints` and `workers` say how things stand; `entries` says what was
decided and is never changed.
"""

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

SCHEMA_VERSION = 2
"""Raised with every change of the tables; a ledger of another version is refused."""

LIVE_ATTEMPTS = ("offered", "running")

metadata = MetaData()

schema = Table("schema", metadata, Column("version", Integer, primary_key=True))

run = Table(
    "run",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run", String(63), nullable=False),
    Column("coordinator", String(64), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("phase_reason", Text, nullable=False),
    Column("round", Integer, nullable=False),
    Column("maddrs", Text, nullable=False),
    Column("blob_url", Text),
    Column("created_at", Float, nullable=False),
)

roles = Table(
    "roles",
    metadata,
    Column("role", String(16), primary_key=True),
    Column("beat_at", Float, nullable=False),
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
    Column("spec", ForeignKey("specs.digest"), nullable=False, unique=True),
    Column("shard", Text, nullable=False),
    Column("schemes", Text, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("fencing", Integer, nullable=False),
    Column("worker", String(64)),
    Column("expires_at", Float, index=True),
    Column("collect_by", Float),
    Column("not_before", Float, nullable=False),
    Column("num_returns", Integer, nullable=False),
    Column("excluded", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("worker", String(64), primary_key=True),
    Column("name", String(40), nullable=False),
    Column("software_version", String(40), nullable=False),
    Column("capability", Text, nullable=False),
    Column("maddrs", Text, nullable=False),
    Column("token_digest", String(64), nullable=False, unique=True),
    Column("token_expires_at", Float, nullable=False),
    Column("certificate_expires_at", Float, nullable=False),
    Column("banned", Integer, nullable=False),
    Column("registered_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("asked_at", Float),
    Column("waits_since", Float),
)

attempts = Table(
    "attempts",
    metadata,
    Column("assignment", ForeignKey("assignments.assignment"), primary_key=True),
    Column("fencing", Integer, primary_key=True),
    Column("worker", ForeignKey("workers.worker"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("free_memory_bytes", Integer, nullable=False),
    Column("offer_reason", Text, nullable=False),
    Column("offered_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("step", Integer, nullable=False),
    Column("resumed_from", String(64)),
    Column("resumed_step", Integer, nullable=False, server_default="0"),
    Column("loss", Float),
    Column("tokens_per_second", Float, nullable=False),
    Column("progressed_at", Float, nullable=False),
    Column("reason", Text, nullable=False),
)

_LIVE = text("state IN ('offered', 'running')")

Index(
    "one_live_lease_an_assignment",
    attempts.c.assignment,
    unique=True,
    sqlite_where=_LIVE,
    postgresql_where=_LIVE,
)
Index(
    "one_live_lease_a_worker",
    attempts.c.worker,
    unique=True,
    sqlite_where=_LIVE,
    postgresql_where=_LIVE,
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("checkpoint_id", Integer, primary_key=True),
    Column("assignment", ForeignKey("assignments.assignment"), nullable=False),
    Column("fencing", Integer, nullable=False),
    Column("worker", ForeignKey("workers.worker"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("step", Integer, nullable=False),
    Column("manifest_digest", String(64), nullable=False),
    Column("manifest_size", Integer, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("body", Text),
    Column("reason", Text, nullable=False),
    Column("announced_at", Float, nullable=False),
    Column("decided_at", Float),
    UniqueConstraint("assignment", "worker", "kind", "manifest_digest"),
)

checkpoint_blobs = Table(
    "checkpoint_blobs",
    metadata,
    Column("checkpoint_id", ForeignKey("checkpoints.checkpoint_id"), primary_key=True),
    Column("digest", String(64), primary_key=True, index=True),
)

wanted = Table(
    "wanted",
    metadata,
    Column("checkpoint_id", ForeignKey("checkpoints.checkpoint_id"), primary_key=True),
    Column("digest", String(64), primary_key=True, index=True),
    Column("size", Integer, nullable=False),
    Column("since", Float, nullable=False),
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
    Column("number", Integer, primary_key=True),
    Column("body", Text, nullable=False),
    Column("recorded_at", Float, nullable=False),
)

entries = Table(
    "entries",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("facts", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
)

requests = Table(
    "requests",
    metadata,
    Column("worker", ForeignKey("workers.worker"), primary_key=True),
    Column("request_id", String(32), primary_key=True),
    Column("body_digest", String(64), nullable=False),
    Column("answer", Text, nullable=False),
    Column("at", Float, nullable=False),
)

nonces = Table(
    "nonces",
    metadata,
    Column("nonce", String(64), primary_key=True),
    Column("expires_at", Float, nullable=False, index=True),
)
