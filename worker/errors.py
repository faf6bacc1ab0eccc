"""What can go wrong between a worker and its coordinator.

WorkerError
├── CoordinatorUnreachable   no answer, or none that we understand; worth trying again
│   ├── CoordinatorBusy      it is there, and asked us to come again later
│   └── NotACoordinator      something else answers there, or TLS fails
├── Refused                  a typed refusal, with its code
│   └── KeyInUse             another process registers with the same key, again and again
└── NotTheSameCoordinator    the address answers with another key than the one pinned here
"""

from protocol.errors import ErrorBody, ErrorCode


class WorkerError(Exception):
    """Something a volunteer has to know about. `exit_code` is documented in the README."""

    exit_code = 1


class CoordinatorUnreachable(WorkerError):
    """The coordinator did not answer in a way that we understand.

    `retry_after_seconds` is when it wants to be asked again, if it said so.
    """

    exit_code = 3

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class CoordinatorBusy(CoordinatorUnreachable):
    """The coordinator answers, but not this call now: too many ask, or this worker too often."""


class NotACoordinator(CoordinatorUnreachable):
    """What is at the address is no coordinator that we can speak to, and will not become one."""


class Refused(WorkerError):
    """The coordinator refused the request, and said why."""

    exit_code = 4

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(f"{body.message} [{body.code.value}]")
        self.body = body

    @property
    def code(self) -> ErrorCode:
        """The machine-readable reason."""
        return self.body.code


class KeyInUse(Refused):
    """Somebody else takes our place as often as we take it: two folders hold the same key."""


class NotTheSameCoordinator(WorkerError):
    """Another coordinator answers at the address that this worker has joined before."""

    exit_code = 4
