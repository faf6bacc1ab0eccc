"""What ends a verb, and with which exit code."""


class VerbError(Exception):
    """The verb failed; the message says what to do next."""

    exit_code = 1


class WrongUsage(VerbError):
    """What was typed cannot be meant."""

    exit_code = 2


class CannotReach(VerbError):
    """No coordinator of this run answers there."""

    exit_code = 3


class CoordinatorRefused(VerbError):
    """The coordinator answered, and said no."""

    exit_code = 4
