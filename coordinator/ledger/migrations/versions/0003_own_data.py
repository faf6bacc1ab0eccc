"""Domains whose text stays with their worker, and assignments that one worker alone may hold."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the table of own domains, the owner of an assignment, and the run's terms."""
    op.add_column("run", sa.Column("own_data", sa.Text(), nullable=True))
    op.add_column("assignments", sa.Column("owner", sa.String(length=64), nullable=True))
    op.create_table(
        "own_domains",
        sa.Column("domain", sa.String(length=63), nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("assignment", sa.String(length=17), nullable=True),
        sa.Column("perplexity_before", sa.Float(), nullable=True),
        sa.Column("perplexity_after", sa.Float(), nullable=True),
        sa.Column("offered_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["worker"], ["workers.worker"]),
        sa.ForeignKeyConstraint(["assignment"], ["assignments.assignment"]),
        sa.PrimaryKeyConstraint("domain"),
    )
