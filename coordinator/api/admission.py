"""Who may wait for the ledger: calls that can come later are put off while too many wait.

Heartbeats, acknowledgements, submissions and releases never wait behind these (see
`coordinator.ledger.writer`); requests for work and registrations do, up to a bound.
"""

import random

from coordinator.api.errors import ApiError
from coordinator.api.routes.context import ApiContext
from protocol.errors import ErrorCode
from protocol.messages import LeaseAnswer

BUSY_WORDS = "too many are asking at once"
MIN_RETRY_SECONDS = 1.0


def is_full(context: ApiContext) -> bool:
    """Whether as many requests for work and registrations wait as may."""
    return context.writer.pending(urgent=False) >= context.settings.max_pending


def retry_seconds(heartbeat_seconds: float, *, random: float) -> float:
    """When to come again: half to one heartbeat from now, so that not all come at once.

    `random` is uniform in [0, 1).
    """
    return max(MIN_RETRY_SECONDS, heartbeat_seconds * (0.5 + 0.5 * random))


def busy_answer(context: ApiContext) -> LeaseAnswer:
    """No offer, and nothing was looked at: an ordinary answer, not an error."""
    return LeaseAnswer(
        offer=None, reason=BUSY_WORDS, retry_after_seconds=_retry(context), busy=True
    )


def check_room(context: ApiContext) -> None:
    """Raises ApiError BUSY, with the time to wait, when a registration cannot be queued now."""
    if is_full(context):
        raise ApiError(ErrorCode.BUSY, BUSY_WORDS, retry_after_seconds=_retry(context))


def _retry(context: ApiContext) -> float:
    # A newcomer waits at most some seconds even where heartbeats are minutes apart.
    return retry_seconds(min(context.settings.heartbeat_seconds, 20.0), random=random.random())
