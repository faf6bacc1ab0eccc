"""The account of a decision: every open assignment, and what stands between it and a worker."""

import heapq
from dataclasses import replace

from coordinator.scheduling.choice import find_fitting
from coordinator.scheduling.requirements import find_obstacle
from coordinator.scheduling.scene import Asking, Scene, soonest_other
from coordinator.scheduling.values import Verdict, Work


def give_account(
    scene: Scene, asking: Asking, limit: int | None, *, after: str = ""
) -> list[Verdict]:
    """A verdict on every open assignment, by name; at most `limit`, of those after `after`."""
    fitting = find_fitting(scene, asking)
    given = None if fitting is None else fitting.assignment
    known: dict[tuple[int, float], tuple[str, float] | None] = {}
    names = (name for name in scene.shelves.work if name > after)
    # A page of many does not need them all in order.
    page = sorted(names) if limit is None else heapq.nsmallest(limit, names)
    return [_judge(scene, asking, scene.shelves.work[name], given, known) for name in page]


def _judge(
    scene: Scene,
    asking: Asking,
    work: Work,
    given: str | None,
    known: dict[tuple[int, float], tuple[str, float] | None],
) -> Verdict:
    obstacle = find_obstacle(work, asking.candidate, now=scene.now, speed=asking.speed)
    if obstacle is not None:
        return Verdict(work.assignment, work.words, obstacle)
    finish = scene.now + asking.seconds(work)
    by = scene.target.by_kind[scene.shelves.kind_of(work)]
    verdict = Verdict(
        work.assignment,
        work.words,
        None,
        finish=finish,
        target=by,
        given=work.assignment == given,
    )
    if finish <= by:
        return verdict
    # Pieces of one kind and size have the same answer, unless they have a history.
    key = scene.shelves.kind_of(work), work.flops
    if work.assignment in scene.shelves.special:
        other = soonest_other(scene, asking, work)
    else:
        if key not in known:
            known[key] = soonest_other(scene, asking, work)
        other = known[key]
    if other is None or other[1] >= finish:
        return verdict
    return replace(verdict, sooner=scene.roster.candidates[other[0]].worker, sooner_finish=other[1])
