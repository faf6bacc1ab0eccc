"""Parts of one transaction that are kept or undone one by one, for a few microseconds each."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

_BEGIN = "SAVEPOINT part"
_RELEASE = "RELEASE SAVEPOINT part"
_UNDO = "ROLLBACK TO SAVEPOINT part"


class Savepoints:
    """A row of parts within the transaction of `connection`. The last one ends with it.

    Speaks to the driver itself: through SQLAlchemy a savepoint costs as much as a small update.
    Its errors are the driver's; after one, the whole transaction must be given up.
    """

    def __init__(self, connection: Connection) -> None:
        """Begin the first part."""
        driver: Any = connection.connection.driver_connection
        self._execute: Callable[..., object] = driver.execute
        # One round trip to a server instead of two. SQLite's driver takes one statement a call.
        self._is_server = connection.dialect.name == "postgresql"
        self._execute(_BEGIN)

    def keep(self) -> None:
        """Keep what the part has written, and begin the next one."""
        if self._is_server:
            self._execute(f"{_RELEASE}; {_BEGIN}", prepare=False)
        else:
            self._execute(_RELEASE)
            self._execute(_BEGIN)

    def undo(self) -> None:
        """Forget what the part has written, and begin the next one."""
        self._execute(_UNDO)
