"""How much memory attempts took."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the peak to attempts."""
    op.add_column("attempts", sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True))
