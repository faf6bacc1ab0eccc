"""What a worker's folder tells of its work, whether a worker runs from it or not. Takes no lock."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from protocol.ids import AssignmentId
from protocol.receipts import SignedReceipt
from protocol.values import Amount, Count, Items, Value
from worker.notes import deliveries_in, offers_in
from worker.receipts import total_of
from worker.status import describe_work


class LocalCheckpoint(Value):
    """A complete training checkpoint on this disk, written at a Unix time."""

    assignment: str
    step: Count
    at: Amount


class HeldLease(Value):
    """A lease of one of the worker's devices, and its work in words."""

    device_number: Count
    assignment: AssignmentId
    work: str


class Owed(Value):
    """What was handed in at a Unix time, and the coordinator does not hold yet."""

    assignment: AssignmentId
    is_expert: bool
    at: Amount


class Remembered(Value):
    """What lies in a worker's folder.

    `assignment`: the lease that the next start goes on with, if it still stands then; `leases` are
    those of all devices. `accepted` and `credit` (FLOPs) are by receipts, from all coordinators.
    """

    assignment: AssignmentId | None
    work: str
    leases: Items[HeldLease] = ()
    checkpoints: Items[LocalCheckpoint]
    owed: Items[Owed]
    accepted: Count
    credit: Amount


def remembered_in(root: Path) -> Remembered:
    """What lies in a worker's folder."""
    offers = offers_in(root)
    offer = next(iter(offers.values()), None)
    deliveries = deliveries_in(root).values()
    accepted, credit = total_of(_receipts_in(root))
    return Remembered(
        assignment=offer.assignment if offer else None,
        work=describe_work(offer) if offer else "",
        leases=tuple(
            HeldLease(device_number=number, assignment=one.assignment, work=describe_work(one))
            for number, one in offers.items()
        ),
        checkpoints=tuple(checkpoints_in(root)),
        owed=tuple(
            Owed(assignment=one.assignment, is_expert=one.submission is not None, at=one.at)
            for one in deliveries
        ),
        accepted=accepted,
        credit=credit,
    )


def checkpoints_in(root: Path, assignment: str = "*") -> list[LocalCheckpoint]:
    """Complete training checkpoints of an assignment, or of all, by assignment and step."""
    found = []
    for state in (root / "work").glob(f"{assignment}/checkpoints/step-*/state.json"):
        match = re.fullmatch(r"step-([0-9]{1,15})", state.parent.name)
        # A trainer deletes the older ones meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if match:
                name = state.parents[2].name
                at = state.stat().st_mtime
                found.append(LocalCheckpoint(assignment=name, step=int(match.group(1)), at=at))
    return sorted(found, key=lambda one: (one.assignment, one.step))


def _receipts_in(root: Path) -> Iterator[SignedReceipt]:
    for path in root.glob("receipts/*/[0-9]*.json"):
        with contextlib.suppress(OSError, ValidationError):
            yield SignedReceipt.model_validate_json(path.read_bytes())
