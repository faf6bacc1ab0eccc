"""The ledger's first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

APPEND_ONLY = {
    "sqlite": (
        "CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries "
        "BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END",
        "CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries "
        "BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'entries are append-only'; END $$",
        "CREATE TRIGGER entries_no_change BEFORE UPDATE OR DELETE ON entries "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change()",
        "CREATE TRIGGER entries_no_truncate BEFORE TRUNCATE ON entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()",
    ),
}


def upgrade() -> None:
    """Make the tables, and the triggers that keep `entries` append-only."""
    op.create_table(
        "domains",
        sa.Column("domain", sa.String(length=63), nullable=False),
        sa.Column("difficulty", sa.String(length=16), nullable=True),
        sa.Column("seed_perplexity", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("domain"),
    )
    op.create_table(
        "entries",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("digest"),
    )
    op.create_table(
        "nonces",
        sa.Column("nonce", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("nonce"),
    )
    op.create_index(op.f("ix_nonces_expires_at"), "nonces", ["expires_at"], unique=False)
    op.create_table(
        "results",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_table(
        "roles",
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("beat_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("role"),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run", sa.String(length=63), nullable=False),
        sa.Column("coordinator", sa.String(length=64), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=False),
        sa.Column("phase_since", sa.Float(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("paused", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("phase_reason", sa.Text(), server_default="", nullable=False),
        sa.Column("maddrs", sa.Text(), server_default="[]", nullable=False),
        sa.Column("blob_url", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "specs",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_table(
        "workers",
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("software_version", sa.String(length=40), nullable=False),
        sa.Column("banned", sa.Integer(), nullable=False),
        sa.Column("draining", sa.Integer(), nullable=False),
        sa.Column("registered_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("worker"),
    )
    op.create_table(
        "assignments",
        sa.Column("assignment", sa.String(length=17), nullable=False),
        sa.Column("spec", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("backup_of", sa.String(length=17), nullable=True),
        sa.Column("shard", sa.Text(), nullable=False),
        sa.Column("schemes", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("fencing", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=True),
        sa.Column("not_before", sa.Float(), nullable=False),
        sa.Column("num_returns", sa.Integer(), nullable=False),
        sa.Column("excluded", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["backup_of"],
            ["assignments.assignment"],
        ),
        sa.ForeignKeyConstraint(
            ["spec"],
            ["specs.digest"],
        ),
        sa.PrimaryKeyConstraint("assignment"),
    )
    op.create_index("assignments_by_spec", "assignments", ["spec"], unique=False)
    op.create_index("assignments_by_worker", "assignments", ["worker", "state"], unique=False)
    op.create_index(op.f("ix_assignments_backup_of"), "assignments", ["backup_of"], unique=False)
    op.create_index(op.f("ix_assignments_state"), "assignments", ["state"], unique=False)
    op.create_index(
        "one_accepted_a_spec",
        "assignments",
        ["spec"],
        unique=True,
        sqlite_where=sa.text("state = 'accepted'"),
        postgresql_where=sa.text("state = 'accepted'"),
    )
    op.create_index(
        "one_backup_an_assignment",
        "assignments",
        ["backup_of"],
        unique=True,
        sqlite_where=sa.text("state IN ('open', 'offered', 'running', 'submitted')"),
        postgresql_where=sa.text("state IN ('open', 'offered', 'running', 'submitted')"),
    )
    op.create_index(
        "one_original_a_spec",
        "assignments",
        ["spec"],
        unique=True,
        sqlite_where=sa.text("backup_of IS NULL"),
        postgresql_where=sa.text("backup_of IS NULL"),
    )
    op.create_table(
        "evaluations",
        sa.Column("spec", sa.String(length=64), nullable=False),
        sa.Column("shard", sa.String(length=64), nullable=False),
        sa.Column("mean_log_likelihood", sa.Float(), nullable=False),
        sa.Column("perplexity", sa.Float(), nullable=False),
        sa.Column("bits_per_byte", sa.Float(), nullable=False),
        sa.Column("recorded_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["spec"],
            ["specs.digest"],
        ),
        sa.PrimaryKeyConstraint("spec", "shard"),
    )
    op.create_table(
        "presence",
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("capability", sa.Text(), nullable=False),
        sa.Column("maddrs", sa.Text(), nullable=False),
        sa.Column("token_digest", sa.String(length=64), nullable=False),
        sa.Column("token_expires_at", sa.Float(), nullable=False),
        sa.Column("certificate_expires_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.Column("allowed_at", sa.Float(), nullable=False),
        sa.Column("cached", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.Float(), nullable=True),
        sa.Column("waits_since", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["worker"],
            ["workers.worker"],
        ),
        sa.PrimaryKeyConstraint("worker"),
        sa.UniqueConstraint("token_digest"),
    )
    op.create_index(op.f("ix_presence_seen_at"), "presence", ["seen_at"], unique=False)
    op.create_table(
        "requests",
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=32), nullable=False),
        sa.Column("body_digest", sa.String(length=64), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["worker"],
            ["workers.worker"],
        ),
        sa.PrimaryKeyConstraint("worker", "request_id"),
    )
    op.create_index(op.f("ix_requests_at"), "requests", ["at"], unique=False)
    op.create_table(
        "shards",
        sa.Column("domain", sa.String(length=63), nullable=False),
        sa.Column("split", sa.String(length=8), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["domain"],
            ["domains.domain"],
        ),
        sa.PrimaryKeyConstraint("domain", "split"),
    )
    op.create_index(op.f("ix_shards_digest"), "shards", ["digest"], unique=False)
    op.create_table(
        "attempts",
        sa.Column("assignment", sa.String(length=17), nullable=False),
        sa.Column("fencing", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("free_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("offer_reason", sa.Text(), nullable=False),
        sa.Column("offered_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("resumed_from", sa.String(length=64), nullable=True),
        sa.Column("resumed_assignment", sa.String(length=17), nullable=True),
        sa.Column("resumed_fencing", sa.Integer(), nullable=True),
        sa.Column("resumed_step", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["assignment"],
            ["assignments.assignment"],
        ),
        sa.ForeignKeyConstraint(
            ["worker"],
            ["workers.worker"],
        ),
        sa.PrimaryKeyConstraint("assignment", "fencing"),
    )
    op.create_index("attempts_by_worker", "attempts", ["worker", "offered_at"], unique=False)
    op.create_index(
        "one_live_lease_a_worker",
        "attempts",
        ["worker"],
        unique=True,
        sqlite_where=sa.text("state IN ('offered', 'running')"),
        postgresql_where=sa.text("state IN ('offered', 'running')"),
    )
    op.create_index(
        "one_live_lease_an_assignment",
        "attempts",
        ["assignment"],
        unique=True,
        sqlite_where=sa.text("state IN ('offered', 'running')"),
        postgresql_where=sa.text("state IN ('offered', 'running')"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("checkpoint_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("assignment", sa.String(length=17), nullable=False),
        sa.Column("fencing", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("manifest_digest", sa.String(length=64), nullable=False),
        sa.Column("manifest_size", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("decided_at", sa.Float(), nullable=True),
        sa.Column("announced_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["assignment"],
            ["assignments.assignment"],
        ),
        sa.ForeignKeyConstraint(
            ["worker"],
            ["workers.worker"],
        ),
        sa.PrimaryKeyConstraint("checkpoint_id"),
        sa.UniqueConstraint("assignment", "worker", "kind", "manifest_digest"),
    )
    op.create_index("checkpoints_by_state", "checkpoints", ["state", "kind"], unique=False)
    op.create_index("checkpoints_by_worker", "checkpoints", ["worker", "decided_at"], unique=False)
    op.create_table(
        "receipts",
        sa.Column("entry", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("assignment", sa.String(length=17), nullable=False),
        sa.Column("spec", sa.String(length=64), nullable=False),
        sa.Column("manifest", sa.String(length=64), nullable=False),
        sa.Column("num_steps", sa.Integer(), nullable=False),
        sa.Column("credit", sa.Float(), nullable=False),
        sa.Column("accepted_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["assignment"],
            ["assignments.assignment"],
        ),
        sa.ForeignKeyConstraint(
            ["spec"],
            ["specs.digest"],
        ),
        sa.ForeignKeyConstraint(
            ["worker"],
            ["workers.worker"],
        ),
        sa.PrimaryKeyConstraint("entry", "worker"),
    )
    op.create_index(op.f("ix_receipts_worker"), "receipts", ["worker"], unique=False)
    op.create_table(
        "checkpoint_blobs",
        sa.Column("checkpoint_id", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"],
            ["checkpoints.checkpoint_id"],
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", "digest"),
    )
    op.create_index(
        op.f("ix_checkpoint_blobs_digest"), "checkpoint_blobs", ["digest"], unique=False
    )
    op.create_table(
        "progress",
        sa.Column("assignment", sa.String(length=17), nullable=False),
        sa.Column("fencing", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("collect_by", sa.Float(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("loss", sa.Float(), nullable=True),
        sa.Column("tokens_per_second", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("progressed_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["assignment", "fencing"],
            ["attempts.assignment", "attempts.fencing"],
        ),
        sa.PrimaryKeyConstraint("assignment", "fencing"),
    )
    op.create_index(op.f("ix_progress_progressed_at"), "progress", ["progressed_at"], unique=False)
    op.create_index(op.f("ix_progress_expires_at"), "progress", ["expires_at"], unique=False)
    op.create_table(
        "wanted",
        sa.Column("checkpoint_id", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"],
            ["checkpoints.checkpoint_id"],
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", "digest"),
    )
    op.create_index(op.f("ix_wanted_digest"), "wanted", ["digest"], unique=False)
    for statement in APPEND_ONLY[op.get_context().dialect.name]:
        op.execute(statement)
