"""Keeps the board true: what no module says by itself is looked up here, once a second."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from worker.manners.watch import Manners
from worker.membership import Membership
from worker.remembered import checkpoints_in
from worker.status import Board

LOOK_SECONDS = 1.0
SENSES_SECONDS = 10.0
"""A sense that failed or works again is shown after so long at the latest."""


async def follow(board: Board, manners: Manners) -> None:
    """Shows whether training may run. Runs until it is cancelled."""
    verdict = manners.verdict
    while True:
        board.update(missing_senses=missing_senses(manners))
        board.obey(verdict)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SENSES_SECONDS):
                verdict = await manners.changed(verdict)


def missing_senses(manners: Manners) -> tuple[str, ...]:
    """What the owner's rules ask about and this machine does not tell: `battery (why)`."""
    return tuple(f"{one.name} ({one.missing})" for one in manners.senses if one.missing)


async def observe(board: Board, devices: Sequence[Board], member: Membership) -> None:
    """Looks at the wire, the disk and the receipts. Runs until it is cancelled."""
    while True:
        board.update(**seen_of(member))
        for one in devices:
            one.update(**saved_of(one, member))
        await asyncio.sleep(LOOK_SECONDS)


def seen_of(member: Membership) -> dict[str, Any]:
    """Fields of a worker's status as they are now."""
    client = member.client
    seen: dict[str, Any] = {
        "transfer": member.transfer,
        "round_trip_seconds": client.round_trip_seconds,
        "server_seconds": client.server_seconds,
    }
    if member.has_met:
        seen["accepted"], seen["credit"] = member.receipts.total()
    return seen


def saved_of(board: Board, member: Membership) -> dict[str, Any]:
    """Fields about what a device saved of its work."""
    assignment = board.status.assignment
    held = [] if assignment is None else checkpoints_in(member.folder.root, assignment)
    return {"local_step": held[-1].step, "local_at": held[-1].at} if held else {}
