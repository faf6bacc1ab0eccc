"""What a worker must have for some work, and in which words we tell it what is missing."""

import math

from coordinator.scheduling.values import Candidate, Obstacle, Work
from shared.words import amount, duration


def find_obstacle(
    work: Work, candidate: Candidate, *, now: float, speed: float | None = None
) -> Obstacle | None:
    """The first requirement that the worker does not meet, and by how much.

    `speed` in FLOP/s replaces the candidate's own where its claim does not count in full.
    """
    return (
        _personal(work, candidate)
        or _material(work, candidate)
        or _time(work, candidate, now=now, speed=candidate.speed if speed is None else speed)
    )


def _personal(work: Work, candidate: Candidate) -> Obstacle | None:
    if work.owner not in (None, candidate.worker):
        return Obstacle("own data", "it is on the own data of another worker", math.inf)
    if work.owner is not None and work.shard not in candidate.cached:
        return Obstacle("own data", "its text is not here: join with --offer-domain", math.inf)
    if candidate.worker in work.excluded:
        return Obstacle("history", "your earlier work on it was not accepted", math.inf)
    if work.needs_trust and not candidate.trusted:
        return Obstacle("trust", "it is for workers that the operator marked trusted", math.inf)
    return None


def _material(work: Work, candidate: Candidate) -> Obstacle | None:
    offered = candidate.capability
    memory = work.memory_bytes[offered.device]
    if offered.free_memory_bytes < memory:
        factor = work.memory_factors.get(offered.device, 1.0)
        measured = "" if factor == 1.0 else f" ({factor:.2f} of the estimate, as measured)"
        return _lack("memory", memory, offered.free_memory_bytes, measured)
    if offered.free_disk_bytes < work.disk_bytes:
        return _lack("disk", work.disk_bytes, offered.free_disk_bytes)
    ran_out = (work.ran_out or {}).get(candidate.seat)
    if ran_out is not None and offered.free_memory_bytes <= ran_out:
        return Obstacle(
            "memory",
            f"it ran out of memory here with {amount(ran_out)}, "
            f"you have {amount(offered.free_memory_bytes)}",
            0.0,
            needed=float(ran_out + 1),
            held=float(offered.free_memory_bytes),
            unit="bytes",
        )
    failed = [needed for needed, free in candidate.ran_out if offered.free_memory_bytes <= free]
    if failed and min(failed) <= memory:
        return Obstacle(
            "memory",
            f"needs {amount(memory)} memory, you ran out of it on work of {amount(min(failed))} "
            "with no less free than now",
            0.0,
            needed=float(memory),
            held=float(min(failed)),
            unit="bytes",
        )
    return None


def _time(work: Work, candidate: Candidate, *, now: float, speed: float) -> Obstacle | None:
    if work.not_before > now:
        wait = work.not_before - now
        return Obstacle("pause", f"it is offered again in {wait:.1f} s", math.inf, wait, 0.0, "s")
    if candidate.available_until is None:
        return None
    needed, held = work.flops / speed, max(0.0, candidate.available_until - now)
    if needed <= held:
        return None
    return Obstacle(
        "time",
        f"needs {duration(needed)}, you expect to stay {duration(held)}",
        (needed - held) / max(held, 1.0),
        needed,
        held,
        "s",
    )


def short(worker: str) -> str:
    """The end of a worker's id, by which people know it."""
    return worker[-6:]


def _lack(what: str, needed: int, held: int, why: str = "") -> Obstacle:
    return Obstacle(
        what,
        f"needs {amount(needed)} free {what}{why}, you have {amount(held)}",
        (needed - held) / max(held, 1),
        float(needed),
        float(held),
        "bytes",
    )
