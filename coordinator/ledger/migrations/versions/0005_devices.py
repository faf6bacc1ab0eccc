"""Workers of several devices: an attempt names its device, and each device may hold a lease."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

LIVE = "state IN ('offered', 'running')"
NEWCOMER = f"{LIVE} AND newcomer = 1"


def upgrade() -> None:
    """Add the device to attempts, and a lease for each device of a worker that is no newcomer."""
    op.add_column(
        "attempts", sa.Column("device_number", sa.Integer(), nullable=False, server_default="0")
    )
    op.add_column(
        "attempts", sa.Column("newcomer", sa.Integer(), nullable=False, server_default="1")
    )
    op.drop_index("one_live_lease_a_worker", table_name="attempts")
    op.create_index(
        "one_live_lease_a_device",
        "attempts",
        ["worker", "device_number"],
        unique=True,
        sqlite_where=sa.text(LIVE),
        postgresql_where=sa.text(LIVE),
    )
    op.create_index(
        "one_live_lease_a_newcomer",
        "attempts",
        ["worker"],
        unique=True,
        sqlite_where=sa.text(NEWCOMER),
        postgresql_where=sa.text(NEWCOMER),
    )
    op.create_table(
        "devices",
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("device_number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("capability", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.Float(), nullable=True),
        sa.Column("waits_since", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["worker"], ["workers.worker"]),
        sa.PrimaryKeyConstraint("worker", "device_number"),
    )
