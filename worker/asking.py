"""How an agent asks for work, and takes what it is offered or gives it back."""

import asyncio
import contextlib
import itertools
import logging

from protocol.errors import ErrorCode
from protocol.messages import LeaseAnswer, LeaseRequest, Offer, Release, ReleaseReason
from shared.words import plain
from worker.contact import pause_seconds
from worker.errors import CoordinatorUnreachable, Refused
from worker.lease import LOST_LEASE
from worker.membership import Membership

log = logging.getLogger(__name__)

MAX_DETAIL = 500


async def ask_for_work(member: Membership, request: LeaseRequest) -> LeaseAnswer:
    """An offer, or why there is none now. Raises CoordinatorUnreachable or Refused."""
    try:
        return await member.call(lambda: member.client.lease(request))
    except Refused as refusal:
        if refusal.code is not ErrorCode.WRONG_STATE:
            raise
        wait = refusal.body.retry_after_seconds or member.heartbeat_seconds
        return LeaseAnswer(offer=None, reason=str(refusal)[:500], retry_after_seconds=wait)


async def acknowledge(member: Membership, offer: Offer, *, leaving: asyncio.Event) -> bool:
    """Takes an offer. False: it has lapsed, or will, as `leaving` was set. Raises Refused."""
    lapses_at = asyncio.get_running_loop().time() + offer.expires_in
    for attempt in itertools.count():
        try:
            await member.call(lambda: member.client.acknowledge(offer.assignment, offer.fencing))
        except CoordinatorUnreachable as error:
            wait = pause_seconds(error, attempt)
            log.warning("the offer is not acknowledged yet: %s", error)
            if asyncio.get_running_loop().time() + wait > lapses_at:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(leaving.wait(), wait)
                break
        except Refused as refusal:
            if refusal.code not in LOST_LEASE:
                raise
            log.warning("the offer lapsed: %s", refusal)
            break
        else:
            return True
    return False


async def give_back(
    member: Membership,
    offer: Offer,
    reason: ReleaseReason,
    detail: str,
    *,
    peak_memory_bytes: int | None = None,
) -> None:
    """Gives back what was offered, once; what is not given back runs out.

    Raises Refused if we are expelled.
    """
    release = Release(
        fencing=offer.fencing,
        reason=reason,
        detail=plain(detail[:MAX_DETAIL]),
        checkpoint=None,
        peak_memory_bytes=peak_memory_bytes,
    )
    try:
        await member.call(lambda: member.client.release(offer.assignment, release))
    except CoordinatorUnreachable as error:
        log.warning("the offer was not given back, it lapses: %s", error)
    except Refused as refusal:
        if refusal.code not in LOST_LEASE:
            raise
