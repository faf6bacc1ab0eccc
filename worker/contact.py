"""The first words with a coordinator: who it is, whether it has time, and whether clocks agree.

Leases and receipts know the coordinator's clock alone. The DHT compares times of all its members:
one whose clock is off by more than three seconds is refused there, and takes part over HTTP.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from protocol.errors import ErrorCode
from protocol.messages import RunInfo
from shared.clock import now
from shared.retry import backoff_seconds, told_seconds
from worker.client import CoordinatorClient
from worker.errors import CoordinatorBusy, CoordinatorUnreachable, NotACoordinator, Refused

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Say = Callable[[str], None]

FIRST_CONTACT_TRIES = 5
"""Calls in a row without an answer after which nobody is held to be there."""

BUSY_SECONDS = 600.0
"""For how long a newcomer asks again when it hears that the coordinator is busy."""

MAX_AHEAD_SECONDS = 1.0
"""A clock that is off by more is worth a warning."""


async def first_contact(client: CoordinatorClient, *, say: Say) -> RunInfo:
    """What the coordinator says of its run; warns of a clock that is off.

    Raises CoordinatorUnreachable or Refused.
    """

    async def ask() -> tuple[RunInfo, float]:
        sent = now()
        info = await client.run_info()
        return info, seconds_ahead(info.server_time, sent=sent, received=now())

    info, ahead = await persist(ask, say=say)
    log.info("the coordinator's clock: ours is %.3f s ahead", ahead)
    if abs(ahead) > MAX_AHEAD_SECONDS:
        say(
            f"warning: this machine's clock is {abs(ahead):.1f} s "
            f"{'ahead of' if ahead > 0 else 'behind'} the coordinator's; set it, best by NTP: "
            "from 3 s on other peers refuse this one, and blobs take the way over HTTP"
        )
    return info


async def persist(call: Callable[[], Awaitable[Result]], *, say: Say) -> Result:
    """Makes a first call until it is answered; `say` hears that the coordinator is busy.

    A busy coordinator is asked again, when it said, for BUSY_SECONDS. Raises what the call raises:
    Refused and NotACoordinator at once, CoordinatorUnreachable after FIRST_CONTACT_TRIES.
    """
    give_up_at = asyncio.get_running_loop().time() + BUSY_SECONDS
    tries = 0
    while True:
        try:
            return await call()
        except CoordinatorBusy as busy:
            wait = pause_seconds(busy, 0)
            if asyncio.get_running_loop().time() + wait > give_up_at:
                raise
            say(f"the coordinator is busy, next try in {wait:.0f} s")
        except (CoordinatorUnreachable, Refused) as error:
            # A challenge may expire while its answer waits in the coordinator's queue.
            is_final = isinstance(error, NotACoordinator) or (
                isinstance(error, Refused) and error.code is not ErrorCode.UNKNOWN_NONCE
            )
            tries += 1
            if is_final or tries == FIRST_CONTACT_TRIES:
                raise
            wait = backoff_seconds(tries - 1, base=0.5, cap=8.0, random=random.random())
            log.warning("no coordinator yet, next try in %.1f s: %s", wait, error)
        await asyncio.sleep(wait)


def pause_seconds(error: CoordinatorUnreachable, attempt: int) -> float:
    """Wait before a call is repeated: as the coordinator told, else longer with each attempt."""
    if error.retry_after_seconds is not None:
        return told_seconds(error.retry_after_seconds, random=random.random())
    return backoff_seconds(attempt, base=1.0, cap=60.0, random=random.random())


def seconds_ahead(server_time: float, *, sent: float, received: float) -> float:
    """How far our clock is ahead of the coordinator's, below zero: behind it.

    The coordinator read its clock at some moment between `sent` and `received` on ours; of all
    differences that this allows, the smallest.
    """
    if sent > server_time:
        return sent - server_time
    return min(0.0, received - server_time)
