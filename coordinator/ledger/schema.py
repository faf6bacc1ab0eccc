"""Bringing a database to the newest schema. There is no way back but a backup."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from coordinator.ledger.errors import LedgerError

MIGRATIONS = Path(__file__).with_name("migrations")
VERSION_TABLE = "alembic_version"


def upgrade(connection: Connection, *, name: str) -> None:
    """Apply the missing migrations within the caller's transaction. `name` is for messages.

    Raises LedgerError for a database that holds something else, or a ledger of a newer version.
    """
    config = Config(attributes={"connection": connection})
    # Alembic keeps options as ConfigParser does, to which a percent sign is special.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    found = set(inspect(connection).get_table_names())
    if found and VERSION_TABLE not in found:
        raise LedgerError(
            f"ledger {name}: holds other tables {sorted(found)[:3]}, "
            "expected an empty database or a ledger"
        )
    current = MigrationContext.configure(connection).get_current_heads()
    head = scripts.get_current_head()
    known = {script.revision for script in scripts.walk_revisions()}
    if unknown := sorted(set(current) - known):
        raise LedgerError(
            f"ledger {name}: schema revision {unknown[0]!r} is not known here, expected at most "
            f"{head!r}; a newer version of this software wrote it: install that one"
        )
    if current != (head,):
        command.upgrade(config, "head")
