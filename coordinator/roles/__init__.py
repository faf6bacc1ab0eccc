"""What each process of `serve` runs: prepare first, then api, network and scorer side by side.

Each module is loaded by its own process alone, so that the api carries neither torch nor hivemind.
Each has `run(context)`, which returns when the process is asked to end or its parent is gone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coordinator.database import open_ledger
from coordinator.folders import RunFolders
from coordinator.ledger import Ledger
from coordinator.runfile import RunFile

Role = Literal["prepare", "api", "network", "scorer"]


@dataclass(frozen=True, kw_only=True)
class RoleContext:
    """What a role is given. `supervised`: standard input is a pipe that ends with the parent.

    `database` is the ledger's url, None: what the run file says.
    """

    run: RunFile
    folders: RunFolders
    supervised: bool
    tls_cert: Path | None
    tls_key: Path | None
    database: str | None = None

    def open_ledger(self) -> Ledger:
        """The run's ledger. Raises LedgerError for what is no url of a ledger."""
        return open_ledger(self.run, self.folders, self.database)
