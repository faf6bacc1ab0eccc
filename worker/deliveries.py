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
from worker.folder import Delivery
from worker.lease import LOST_LEASE
from worker.membership import Membership
from worker.shelf import Named

log = logging.getLogger(__name__)

REPEAT_INTERVALS = 30
"""Heartbeat intervals after which a submission that is still not fetched is repeated."""

TRAINING_SECONDS = 3600.0
"""After this a coordinator no longer waits for the training checkpoint of a lease given back."""


class Deliveries:
    """Everything that one worker has handed in, by manifest, also in its former lives."""

    def __init__(self, member: Membership) -> None:
        self._member = member
        self._open: dict[str, Delivery] = {}
        self._repeat_at: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    def take_up(self) -> None:
        """Names again what a former life of this worker handed in."""
        blobs = self._member.folder.blobs
        for manifest, delivery in self._member.folder.remembered_deliveries().items():
            if all(blobs.has(digest) for digest in delivery.blobs):
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
        self._put_off(named.ref.digest)
        self._remember()

    async def settle(self) -> None:
        """To be called after heartbeats: deletes what is held by the coordinator, or unwanted.

        Raises CoordinatorUnreachable or Refused.
        """
        durable = [manifest for manifest in self._open if manifest in self._member.durable]
        late = [
            manifest
            for manifest, delivery in self._open.items()
            if delivery.submission is None and now() - delivery.at > TRAINING_SECONDS
        ]
        self._forget({*durable, *late})
        for manifest, delivery in list(self._open.items()):
            if asyncio.get_running_loop().time() >= self._repeat_at[manifest]:
                await self._repeat(manifest, delivery)

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
                self._forget({manifest})
                return
        self._put_off(manifest)

    def _put_off(self, manifest: str) -> None:
        pause = REPEAT_INTERVALS * self._member.heartbeat_seconds
        self._repeat_at[manifest] = asyncio.get_running_loop().time() + pause

    def _forget(self, manifests: set[str]) -> None:
        for manifest in manifests:
            delivery = self._open.pop(manifest)
            kept = {digest for other in self._open.values() for digest in other.blobs}
            self._member.drop(digest for digest in delivery.blobs if digest not in kept)
            log.info("delivered %s", facts(assignment=delivery.assignment, manifest=manifest))
        if manifests:
            self._remember()

    def _remember(self) -> None:
        self._member.folder.remember_deliveries(self._open)
