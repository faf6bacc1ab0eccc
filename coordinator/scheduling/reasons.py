"""The reasons that the asking worker is told, with their numbers."""

from coordinator.scheduling.requirements import short
from coordinator.scheduling.scene import Asking, Scene
from coordinator.scheduling.values import Running, Work
from shared.words import amount, duration


def fits(scene: Scene, asking: Asking, work: Work) -> str:
    """It ends the work by the target."""
    by = scene.target.by_kind[scene.shelves.kind_of(work)]
    mine, left = duration(asking.seconds(work)), duration(by - scene.now)
    return f"{_asks_for(asking, work)}; you finish it in time ({mine} of {left})"


def sooner(scene: Scene, asking: Asking, work: Work, other: tuple[str, float] | None) -> str:
    """Another one ends the work sooner."""
    seat, end = other or ("", scene.now)
    worker = scene.roster.candidates[seat].worker if seat else ""
    who = f"worker {short(worker)}"
    if worker == asking.candidate.worker:
        who = "another of your devices"
    return (
        f"{work.words}: {who} is expected to finish it sooner "
        f"({duration(end - scene.now)}; you {duration(asking.seconds(work))})"
    )


def soonest(scene: Scene, asking: Asking, work: Work, other: tuple[str, float] | None) -> str:
    """Nobody ends the work sooner, late as it is."""
    runner_up = (
        "no other worker here can take it"
        if other is None
        else f"next best worker {duration(other[1] - scene.now)}"
    )
    mine = duration(asking.seconds(work))
    return f"{_asks_for(asking, work)}; you finish it soonest ({mine}; {runner_up})"


def out_of_patience(asking: Asking, work: Work) -> str:
    """It has waited for others for long enough."""
    waited = duration(asking.waited)
    return (
        f"{work.words}: you waited long enough for others ({waited}; you need "
        f"{duration(asking.seconds(work))})"
    )


def late(scene: Scene, asking: Asking, running: Running) -> str:
    """The holder of the work will need clearly longer."""
    left = scene.underway.end(running, scene.now) - scene.now
    return (
        f"{running.work.words}: a backup for worker {short(running.worker)}, who is expected to "
        f"need {duration(left)} more (you {duration(asking.seconds(running.work))})"
    )


def _asks_for(asking: Asking, work: Work) -> str:
    offered = asking.candidate.capability
    return (
        f"{work.words}: needs {amount(work.memory_bytes[offered.device])}, you offer "
        f"{amount(offered.free_memory_bytes)}"
    )
