"""What can go wrong between a worker and its coordinator.

WorkerError
├── CoordinatorUnreachable   no answer, or none that we understand; worth trying again
├── Refused                  a typed refusal, with its code
└── NotTheSameCoordinator    the address answers with another key than the one pinned here
"""

from protocol.errors import ErrorBody, ErrorCode


class WorkerError(Exception):
    """Something a volunteer has to know about. `exit_code` is documented in the README."""

    exit_code = 1


class CoordinatorUnreachable(WorkerError):
    """The coordinator did not answer in a way that we understand."""

    exit_code = 3


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


class NotTheSameCoordinator(WorkerError):
    """Another coordinator answers at the address that this worker has joined before."""

    exit_code = 4
