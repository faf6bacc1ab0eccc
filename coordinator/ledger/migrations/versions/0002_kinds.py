"""Room for longer kinds of assignments."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Widen `assignments.kind` to 16 characters."""
    if op.get_context().dialect.name == "postgresql":
        op.alter_column("assignments", "kind", type_=sa.String(length=16))
        return
    # SQLite cannot change a column's type, and a table that others refer to cannot be replaced.
    op.add_column(
        "assignments",
        sa.Column("wider", sa.String(length=16), nullable=False, server_default=""),
    )
    op.execute("UPDATE assignments SET wider = kind")
    op.drop_column("assignments", "kind")
    op.alter_column("assignments", "wider", new_column_name="kind")
