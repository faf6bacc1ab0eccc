"""Where a run's ledger is: the command line says it, else the run file, else it is a file."""

from coordinator.folders import RunFolders
from coordinator.ledger import Ledger
from coordinator.ledger.errors import LedgerError
from coordinator.runfile import RunFile

DATABASE_VARIABLE = "HDEE_DATABASE"
"""Says it as --database does, and keeps a password out of the list of processes."""


def open_ledger(run: RunFile, folders: RunFolders, database: str | None) -> Ledger:
    """The run's ledger; `database` is what the command line said. Touches nothing.

    Raises LedgerError for what is no url of a ledger.
    """
    ledger = Ledger(database or run.ledger.database or folders.ledger_url)
    if ledger.path is not None and not ledger.path.is_absolute():
        raise LedgerError(
            f"database {ledger.url}: expected an absolute path, as in sqlite:////srv/ledger.sqlite"
        )
    return ledger


def open_existing_ledger(run: RunFile, folders: RunFolders, database: str | None) -> Ledger:
    """As `open_ledger`, for those who only look. Raises LedgerError where there is no file."""
    ledger = open_ledger(run, folders, database)
    if ledger.path is not None and not ledger.path.is_file():
        raise LedgerError(
            f"ledger {ledger.path}: there is no such file; `hdee-coordinator serve` makes it"
        )
    return ledger
