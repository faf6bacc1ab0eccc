"""One decision: which open assignment the asking worker gets, or why it gets none. Pure.

Of the pieces that it would finish by the target it gets the least flexible one: that which the
least capacity could finish by then (least flexible job first, Pinedo, "Scheduling", ch. 5). As room
shrinks with size this is also the largest first (LPT, Graham 1969) within a kind, and the most
demanding kind first among equal sizes. Among pieces of nearly that size it gets one whose blobs it
has; and first a shorter piece of the same curve, as the longer one can go on where it ended.

A worker for which nothing fits by the target waits: others end the whole sooner without it.
"""

import heapq
import math
from collections.abc import Iterator
from itertools import islice

from coordinator.scheduling import reasons
from coordinator.scheduling.requirements import find_obstacle
from coordinator.scheduling.scene import Asking, Rank, Scene, rank, room, soonest_other
from coordinator.scheduling.shelves import Shelf
from coordinator.scheduling.values import Backup, Choice, NoWork, Running, Work

AFFINITY = 0.05
"""Pieces that are smaller by at most this share count as equally large."""

BACKUP_GAIN = 1.5
"""A backup must be this many times as fast as what the holder still needs. With less, the time to
fetch the checkpoint and the error of the prediction eat up the gain."""

_MAX_TRIES = 16
_MAX_BACKUP_TRIES = 4


def decide(scene: Scene, asking: Asking) -> Choice | Backup | NoWork:
    """What the asking worker gets. It is free now, whatever the roster expected of it."""
    fitting, behind = _least_flexible(scene, asking), _find_behind(scene, asking)
    if behind is not None and (fitting is None or rank(scene, behind.work) < rank(scene, fitting)):
        return _back_up(scene, asking, behind)
    if fitting is not None:
        first = _first_of_curve(scene, asking, fitting)
        return Choice(first.assignment, reasons.fits(scene, asking, first))
    late = [(work, soonest_other(scene, asking, work)) for work in _nearest(scene, asking)]
    for work, other in late:
        if other is None or other[1] >= scene.now + asking.seconds(work):
            return Choice(work.assignment, reasons.soonest(scene, asking, work, other))
    if late and asking.waited >= asking.most_waited(late[0][0]):
        return Choice(late[0][0].assignment, reasons.out_of_patience(asking, late[0][0]))
    backup = _find_backup(scene, asking)
    if backup is not None:
        return backup
    if late:
        return NoWork(reasons.sooner(scene, asking, *late[0]), waits=True)
    return _nothing(scene, asking)


def find_fitting(scene: Scene, asking: Asking) -> Work | None:
    """The least flexible piece that the worker would finish by the target, or the beginning of it
    that is a piece of its own."""
    fitting = _least_flexible(scene, asking)
    return None if fitting is None else _first_of_curve(scene, asking, fitting)


def _first_of_curve(scene: Scene, asking: Asking, work: Work) -> Work:
    """The shortest piece of the work's curve that the worker may take."""
    for shorter in scene.shelves.shorter(work):
        obstacle = find_obstacle(shorter, asking.candidate, now=scene.now, speed=asking.speed)
        if shorter.flops <= work.flops and obstacle is None:
            return shorter
    return work


def _least_flexible(scene: Scene, asking: Asking) -> Work | None:
    best: tuple[Rank, Shelf, Work] | None = None
    for shelf in _open_shelves(scene, asking):
        piece = _first(scene, asking, shelf.descending(room(scene, asking, shelf.kind)))
        if piece is not None and (best is None or rank(scene, piece) < best[0]):
            best = rank(scene, piece), shelf, piece
    return None if best is None else _prefer_cached(scene, asking, *best[1:])


def _find_behind(scene: Scene, asking: Asking) -> Running | None:
    """The least flexible piece in progress that ends too late unless this worker does it as well.

    It counts as open work: left until nothing else is open, a large one would be late again.
    """
    able = scene.roster.kinds_for(asking.candidate.seat)
    found: list[Running] = []
    for kind, behind in scene.behind.items():
        most = room(scene, asking, kind) if able[kind] else -1.0
        first = next((late for late in behind if _may_back_up(scene, asking, late, most)), None)
        if first is not None:
            found.append(first)
    return min(found, key=lambda late: rank(scene, late.work), default=None)


def _may_back_up(scene: Scene, asking: Asking, late: Running, most: float) -> bool:
    if late.work.flops > most or not scene.underway.is_current(late):
        return False
    left, mine = scene.underway.end(late, scene.now) - scene.now, asking.seconds(late.work)
    return (
        asking.candidate.worker not in scene.underway.workers_of(late)
        and mine * BACKUP_GAIN <= left
        and mine + asking.patience <= left
        and find_obstacle(late.work, asking.candidate, now=scene.now, speed=asking.speed) is None
    )


def _open_shelves(scene: Scene, asking: Asking) -> Iterator[Shelf]:
    able = scene.roster.kinds_for(asking.candidate.seat)
    return (shelf for shelf in scene.shelves.shelves if shelf and able[shelf.kind])


def _first(scene: Scene, asking: Asking, pieces: Iterator[tuple[float, str]]) -> Work | None:
    for _, assignment in pieces:
        work = scene.shelves.work[assignment]
        obstacle = find_obstacle(work, asking.candidate, now=scene.now, speed=asking.speed)
        if obstacle is None:
            return work
    return None


def _prefer_cached(scene: Scene, asking: Asking, shelf: Shelf, work: Work) -> Work:
    """Another piece of the shelf, nearly as large, of whose blobs the worker has more."""
    cached, floor = asking.candidate.cached, work.flops * (1.0 - AFFINITY)
    found = [work]
    for digest in cached:
        similar = _first(scene, asking, shelf.with_input(digest, work.flops))
        if similar is not None and similar.flops >= floor:
            found.append(similar)
    return max(found, key=lambda one: (len(one.inputs & cached), one.flops, one.assignment))


def _nearest(scene: Scene, asking: Asking) -> list[Work]:
    """What the worker may take though it ends late: the smallest piece, then those with a history.

    A target knows kinds, not the history of single assignments: a worker may be the last that is
    left for one of them.
    """
    reach = asking.reach(scene.now)
    smallest = [
        piece
        for shelf in _open_shelves(scene, asking)
        if (piece := _first(scene, asking, shelf.ascending(reach))) is not None
    ]
    special = (
        work
        for work in scene.shelves.special.values()
        if find_obstacle(work, asking.candidate, now=scene.now, speed=asking.speed) is None
    )
    first = heapq.nsmallest(1, smallest, key=_size)
    return first + [
        work for work in heapq.nsmallest(_MAX_TRIES, special, key=_size) if work not in first
    ]


def _size(work: Work) -> tuple[float, str]:
    return work.flops, work.assignment


def _find_backup(scene: Scene, asking: Asking) -> Backup | None:
    late = scene.underway.late(
        scene.roster.kinds_for(asking.candidate.seat),
        speed=asking.speed,
        gain=BACKUP_GAIN,
        margin=asking.patience,
        now=scene.now,
    )
    for running in late[:_MAX_BACKUP_TRIES]:
        work = running.work
        if not _may_back_up(scene, asking, running, work.flops):
            continue
        other = soonest_other(scene, asking, work, running.worker)
        if other is not None and asking.seconds(work) > BACKUP_GAIN * (other[1] - scene.now):
            continue
        return _back_up(scene, asking, running)
    return None


def _back_up(scene: Scene, asking: Asking, running: Running) -> Backup:
    return Backup(
        running.work.assignment,
        reasons.late(scene, asking, running),
        replaces=scene.underway.backups.get(running.work.assignment),
    )


def _nothing(scene: Scene, asking: Asking) -> NoWork:
    if not scene.shelves.work:
        return NoWork("no assignment is open now")
    return NoWork(_lacks_least(scene, asking))


def _lacks_least(scene: Scene, asking: Asking) -> str:
    pieces = [
        scene.shelves.work[assignment]
        for shelf in scene.shelves.shelves
        for _, assignment in islice(shelf.ascending(math.inf), 1)
    ] or list(islice(scene.shelves.work.values(), _MAX_TRIES))
    found = [
        (obstacle.lack, work.flops, work.assignment, f"{work.words}: {obstacle.words}")
        for work in pieces
        if (obstacle := find_obstacle(work, asking.candidate, now=scene.now, speed=asking.speed))
    ]
    return min(found)[3]
