"""What was handed in and has yet to be fetched: kept until the coordinator holds it.

Or until nobody wants it: a backup was accepted first, or the wait for it ran out. So that this is
noticed, a submission that takes long is repeated, which changes nothing while it stands.
"""

import asyncio
import contextlib
import logging

from protocol.errors import ErrorCode
from protocol.messages import Submission
from shared.clock import now
from shared.logs import facts
from worker.client import new_request_id
from worker.errors import CoordinatorUnreachable, Refused
from worker.lease import LOST_LEASE
from worker.membership import Membership
from worker.notes import Delivery
from worker.shelf import Named

log = logging.getLogger(__name__)

REPEAT_INTERVALS = 30
"""Heartbeat intervals after which a submission that is still not fetched is repeated."""

TRAINING_SECONDS = 3600.0
"""After so long in touch a coordinator has no use for the checkpoint of a lease given back."""


class Deliveries:
    """Everything that one worker has handed in, by manifest, also in its former lives."""

    def __init__(self, member: Membership) -> None:
        self._member = member
        self._open: dict[str, Delivery] = {}
        self._repeat_at: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        """For how many seconds the coordinator has answered since each was handed in."""
        self._unrewarded: set[str] = set()
        """Assignments that this life handed in experts of, and that may still earn a receipt."""
        self._settled_at = asyncio.get_running_loop().time()
        self._settling = asyncio.Lock()

    def __bool__(self) -> bool:
        return bool(self._open)

    def take_up(self) -> None:
        """Names again what a former life of this worker handed in."""
        blobs = self._member.folder.blobs
        for manifest, delivery in self._member.folder.remembered_deliveries().items():
            missing = [digest for digest in delivery.blobs if not blobs.has(digest)]
            if missing:
                self._member.screen.say(
                    f"what was handed in for {delivery.assignment} cannot be fetched any more: "
                    f"blob {missing[0][:12]} is gone from {blobs.root}"
                )
                continue
            self._open[manifest] = delivery
            self._repeat_at[manifest] = 0.0
            self._member.publish([blobs.pieces(digest).ref() for digest in delivery.blobs])

    def add(self, assignment: str, named: Named, submission: Submission | None) -> None:
        """Keeps the blobs of what was just handed in."""
        self._open[named.ref.digest] = Delivery(
            assignment=assignment,
            submission=submission,
            blobs=tuple(blob.digest for blob in named.blobs),
            at=now(),
        )
        if submission is not None:
            self._unrewarded.add(assignment)
        self._put_off(named.ref.digest)
        self._remember()

    async def settle(self) -> None:
        """To be called after heartbeats: deletes what is held by the coordinator, or unwanted.

        Raises CoordinatorUnreachable or Refused.
        """
        async with self._settling:
            await self._settle()

    async def _settle(self) -> None:
        durable = {manifest for manifest in self._open if manifest in self._member.durable}
        for manifest in durable:
            self._member.folder.drop_work(self._open[manifest].assignment)
        self._forget(durable | self._late())
        for manifest, delivery in list(self._open.items()):
            if asyncio.get_running_loop().time() >= self._repeat_at[manifest]:
                await self._repeat(manifest, delivery)

    def _late(self) -> set[str]:
        """Training checkpoints that the coordinator had its time for: it answered all the while.

        Time asleep or cut off does not count, so that nothing is lost by closing a laptop.
        """
        at = asyncio.get_running_loop().time()
        passed = min(at - self._settled_at, 2 * self._member.heartbeat_seconds)
        self._settled_at = at
        late = set()
        for manifest, delivery in self._open.items():
            if delivery.submission is None:
                heard = self._heard.get(manifest, 0.0) + passed
                self._heard[manifest] = heard
                if heard > TRAINING_SECONDS:
                    late.add(manifest)
        return late

    async def finish(self, seconds: float) -> None:
        """Stays until the coordinator holds everything, or for so long. Raises Refused."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._open and loop.time() < deadline:
            with contextlib.suppress(CoordinatorUnreachable):
                await self._member.beat()
                await self.settle()
            if self._open:
                await asyncio.sleep(min(1.0, self._member.heartbeat_seconds))

    async def await_receipts(self, seconds: float) -> None:
        """Stays until there is a receipt for everything handed in, or for so long.

        To be called after `finish`. Ends early where the coordinator does not answer. Raises
        Refused.
        """
        loop, member = asyncio.get_running_loop(), self._member
        deadline = loop.time() + seconds
        with contextlib.suppress(CoordinatorUnreachable):
            while self._awaits_receipts() and loop.time() < deadline:
                await member.beat()
                if self._awaits_receipts():
                    await asyncio.sleep(min(1.0, member.heartbeat_seconds))
        if self._awaits_receipts():
            member.screen.say("the receipt for the work handed in last comes with the next join")

    def _awaits_receipts(self) -> bool:
        holds = self._member.receipts.holds
        self._unrewarded = {one for one in self._unrewarded if not holds(one)}
        return bool(self._unrewarded)

    async def _repeat(self, manifest: str, delivery: Delivery) -> None:
        if delivery.submission is not None:
            again = delivery.submission.model_copy(update={"request_id": new_request_id()})
            try:
                await self._member.call(
                    lambda: self._member.client.submit(delivery.assignment, again)
                )
            except Refused as refusal:
                if refusal.code not in LOST_LEASE and refusal.code is not ErrorCode.WRONG_STATE:
                    raise
                self._member.screen.say(
                    f"what this worker handed in for {delivery.assignment} is not wanted any "
                    f"more: {refusal.body.message}"
                )
                self._unrewarded.discard(delivery.assignment)
                self._forget({manifest})
                return
        self._put_off(manifest)

    def _put_off(self, manifest: str) -> None:
        pause = REPEAT_INTERVALS * self._member.heartbeat_seconds
        self._repeat_at[manifest] = asyncio.get_running_loop().time() + pause

    def _forget(self, manifests: set[str]) -> None:
        for manifest in manifests:
            delivery = self._open.pop(manifest)
            self._heard.pop(manifest, None)
            kept = {digest for other in self._open.values() for digest in other.blobs}
            self._member.holdings.drop(digest for digest in delivery.blobs if digest not in kept)
            log.info("delivered %s", facts(assignment=delivery.assignment, manifest=manifest))
        if manifests:
            self._remember()

    def _remember(self) -> None:
        self._member.folder.remember_deliveries(self._open)
