"""One worker: joins, lets each of its devices work, and leaves in good order."""

import asyncio
import logging

from protocol.admin import WhyView
from protocol.capability import Capability
from shared.clock import now
from worker.boards import WholeBoard
from worker.deliveries import Deliveries
from worker.desk import Desk, Leaving
from worker.device import Device
from worker.folder import WorkerFolder
from worker.limits import Machine
from worker.manners.watch import Manners
from worker.measuring import Measuring
from worker.membership import Membership
from worker.observing import follow, observe
from worker.owndata.offering import offer_own_texts
from worker.processes import ProcessNotes
from worker.screen import Screen, describe_stay
from worker.settings import JoinSettings
from worker.sharing import labels_of, parts_of
from worker.status import Board, WorkerStatus
from worker.tasks import all_of, background, unless_stopped

log = logging.getLogger(__name__)

DELIVERY_SECONDS = 60.0
"""How long a stopping worker waits for the coordinator to fetch what it handed in."""

RECEIPT_SECONDS = 20.0
"""How long one that leaves with nothing more to do waits until what it handed in is accepted."""

MAX_CONSIDERED = 20
"""Open assignments that an account of the coordinator names."""


class Agent:
    """One worker. `run` returns the exit code; `stop` makes it finish early, in good order.

    `board` says what it does, `manners` whether it may. `measured` is what this machine's first
    device can do, if that was measured just before. Raises BadSetting for devices that the settings
    leave nothing to.
    """

    def __init__(
        self,
        settings: JoinSettings,
        folder: WorkerFolder,
        screen: Screen,
        *,
        measured: Capability | None = None,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self._parts = parts_of(settings, num_cores=Machine.this().num_cores)
        folder.num_devices = len(self._parts)
        status = WorkerStatus(name=settings.name, url=settings.url)
        self.board, self._boards = _boards_of(settings, screen, status)
        self.manners = Manners.of(settings.rules, activity_file=settings.activity_file)
        self._measured = measured
        self._processes = ProcessNotes(folder.root)
        self._member: Membership | None = None
        self._ends = Leaving()

    def stop(self) -> None:
        """Finish the step, write a checkpoint, give the lease back, return from `run`."""
        self._ends.stopping.set()
        self._ends.leaving.set()
        self.board.update(state="leaving", reason="asked to stop")

    def finish(self) -> str:
        """Hand in what is worked on, then return from `run`; what that means now, in words."""
        status = self.board.status
        self.board.update(finishing=True)
        self._ends.leaving.set()
        work = " and ".join(one.work for one in status.devices or (status,) if one.assignment)
        if not work:
            words = "it works on nothing: it leaves now"
            self.stop()
        elif status.state == "paused":
            words = f"it leaves once {work} is handed in; training is paused now"
        else:
            words = f"it leaves once {work} is handed in"
        self.board.say(f"asked to finish: {words}")
        return words

    async def account(self) -> WhyView | None:
        """What the coordinator's scheduler thinks of this worker now; None before it has joined.

        Raises CoordinatorUnreachable or Refused.
        """
        member = self._member
        if member is None or member.client.token is None:
            return None
        return await member.call(lambda: member.client.why(limit=MAX_CONSIDERED))

    async def run(self) -> int:
        """Works until the run is finished or `stop` is called.

        Raises WorkerError for what the volunteer has to mend.
        """
        loop, stay = asyncio.get_running_loop(), self.settings.stay_seconds
        leaves_at = None if stay is None else loop.time() + stay
        member = Membership(self.settings, self.folder, self.board, leaves_at=leaves_at)
        leaving = None if leaves_at is None else loop.call_at(leaves_at, self._leave)
        self._member = member
        self.board.update(worker=self.folder.identity.peer_id)
        try:
            async with (
                background(self.manners.watch()),
                background(follow(self.board, self.manners)),
                background(observe(self.board, self._boards, member)),
                background(self._processes.keep()),
            ):
                return await self._run(member)
        finally:
            if leaving is not None:
                leaving.cancel()
            await member.stop()

    async def _run(self, member: Membership) -> int:
        leaving = self._ends.leaving
        await asyncio.to_thread(self._processes.reap)
        if self.settings.stay_seconds is not None:
            self.board.say(describe_stay(self.settings.stay_seconds, now=now()))
        if await unless_stopped(leaving, member.find_coordinator()) is None:
            return 0
        self.board.update(run=member.info.run, coordinator=member.info.coordinator)
        self._forget_leases_of_devices_that_are_gone()
        self.folder.sweep()
        devices = await self._join(member)
        if devices is None:
            return 0
        await unless_stopped(leaving, offer_own_texts(member, say=self.board.say))
        deliveries = Deliveries(member)
        deliveries.take_up()
        desks = [
            Desk(
                member,
                device,
                self.manners,
                deliveries,
                leaving=self._ends,
                num_devices=len(devices),
            )
            for device in devices
        ]
        ends = await all_of(*(desk.run() for desk in desks))
        if deliveries:
            self.board.update(state="leaving", reason="the coordinator fetches what was handed in")
            self.board.say("waiting until the coordinator holds what this worker handed in")
            await deliveries.finish(DELIVERY_SECONDS)
        if not self._ends.stopping.is_set():
            await deliveries.await_receipts(RECEIPT_SECONDS)
        return 1 if "failed" in ends else 0

    def _leave(self) -> None:
        self.board.say("the time is over: finishing the step and writing a checkpoint")
        self.stop()

    def _forget_leases_of_devices_that_are_gone(self) -> None:
        """They run out; what was trained stays here for whichever device gets the work again."""
        for number, offer in self.folder.remembered_offers().items():
            if number >= len(self._parts):
                self.board.say(f"{offer.assignment} is left: its device is not among those given")
                self.folder.forget_offer(number)

    async def _join(self, member: Membership) -> list[Device] | None:
        """The devices; None: asked to stop before the coordinator had time for us."""
        measuring = Measuring(
            parts=self._parts,
            folder=self.folder,
            say=self.board.say,
            given=self._measured,
            on_offer=member.info.on_offer,
        )
        devices = await measuring.devices(self._boards)
        first = devices[0].capability
        if await unless_stopped(self._ends.leaving, member.register(first)) is None:
            return None
        await member.join_swarm()
        self.board.say(
            f"joined run {member.info.run} as {self.folder.identity.peer_id}\n"
            + "\n".join(_offering(device.capability) for device in devices)
        )
        return devices


def _boards_of(
    settings: JoinSettings, screen: Screen, status: WorkerStatus
) -> tuple[Board, tuple[Board, ...]]:
    """The board of the whole worker, and those of its devices."""
    if not settings.devices:
        only = Board(screen, status)
        return only, (only,)
    whole = WholeBoard(screen, status, labels_of(settings.devices))
    return whole, whole.parts


def _offering(capability: Capability) -> str:
    return (
        f"  {capability.device_name}, {capability.num_threads} thread(s), "
        f"{capability.flops_per_second / 1e9:.1f} GFLOP/s measured, "
        f"{capability.free_memory_bytes / 1e9:.2f} GB for training"
    )
