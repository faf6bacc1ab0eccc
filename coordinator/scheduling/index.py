"""The scheduler's index: open work, work in progress and workers, kept up to date piece by piece.

Mutable, deterministic, without a clock: what it answers follows from what was put and dropped and
from `now`, which must not run backwards. With up to 500 workers the order of puts and drops does
not matter either; beyond, the target finish lags behind by up to as many changes as a hundredth of
the workers, so that few decisions pay for it.
"""

from coordinator.scheduling.choice import decide
from coordinator.scheduling.kinds import Kinds
from coordinator.scheduling.pace import Demand, Supply, Target, find_target
from coordinator.scheduling.roster import Roster
from coordinator.scheduling.scene import Asking, Scene
from coordinator.scheduling.shelves import Shelves
from coordinator.scheduling.underway import Underway
from coordinator.scheduling.values import Backup, Candidate, Choice, NoWork, Running, Verdict, Work
from coordinator.scheduling.why import give_account

_EXACT_WORKERS = 500
_CHANGES_SHARE = 1 / 100
_SHARE_OF_HORIZON = 1 / 256


class Index:
    """Answers who gets what. An unknown name raises KeyError in `choose` and `why` alone."""

    def __init__(self) -> None:
        self._kinds = Kinds()
        self._shelves = Shelves(self._kinds)
        self._roster = Roster(self._kinds)
        self._underway = Underway(self._kinds)
        self._target: Target | None = None
        self._behind: dict[int, list[Running]] = {}
        self._target_made_at = 0.0
        self._steps: tuple[int, ...] = ()
        self._changes = 0

    def put_work(self, work: Work) -> None:
        """Adds an open assignment, or replaces what was known of it."""
        self._shelves.put(work)
        self._changed()

    def drop_work(self, assignment: str) -> None:
        """An assignment is not open any more. Unknown ones are ignored."""
        if self._shelves.drop(assignment):
            self._changed()

    def put_running(self, running: Running) -> None:
        """Adds work in progress, or replaces what was known of it."""
        before = self._underway.put(running)
        if before is not None:
            self._roster.set_running(before, self._underway.longest_of(before))
        self._roster.set_running(running.seat, self._underway.longest_of(running.seat))
        self._changed()

    def drop_running(self, assignment: str) -> None:
        """Work is not in progress any more. Unknown ones are ignored."""
        seat = self._underway.drop(assignment)
        if seat is not None:
            self._roster.set_running(seat, self._underway.longest_of(seat))
            self._changed()

    def put_worker(self, candidate: Candidate) -> None:
        """Adds a worker, as one of its devices, or replaces what was known of that.

        Not those that drain or are banned.
        """
        self._roster.put(candidate)
        self._roster.set_running(candidate.seat, self._underway.longest_of(candidate.seat))
        self._changed()

    def drop_worker(self, seat: str) -> None:
        """Nothing is expected of a worker's device any more. Unknown ones are ignored."""
        if self._roster.drop(seat):
            self._changed()

    def choose(
        self, seat: str, *, now: float, waits_since: float | None, patience_seconds: float
    ) -> Choice | Backup | NoWork:
        """What `seat`, which is free now, gets.

        It has been told to wait since `waits_since` (None: not yet). It waits for others at most
        the longer of `patience_seconds` and half of the time that it would need itself. Raises
        KeyError where it was not put.
        """
        return decide(self._scene(now), self._asking(seat, now, waits_since, patience_seconds))

    def why(
        self, seat: str, *, now: float, limit: int | None = None, after: str = ""
    ) -> list[Verdict]:
        """What is thought of every open assignment for `seat`, by name; `limit` after `after`.

        Raises KeyError where the seat was not put.
        """
        asking = self._asking(seat, now, None, 0.0)
        return give_account(self._scene(now), asking, limit, after=after)

    def expected_end(self, now: float) -> float | None:
        """When all open and running work is expected to end; None if some fits nobody here."""
        scene = self._scene(now)
        if scene.target.impossible or self._find_deserted() is not None:
            return None
        return max(scene.target.at, self._underway.last_end(now))

    def deserted(self) -> str:
        """Which open assignment every worker here is excluded from, in words; empty: none."""
        work = self._find_deserted()
        if work is None:
            return ""
        return (
            f"{work.assignment} ({work.words}) waits for another worker: "
            f"the work of all {len(self._roster.seats_of)} here on it was not accepted"
        )

    def _find_deserted(self) -> Work | None:
        here = self._roster.seats_of.keys()
        special = self._shelves.special
        found = (name for name, work in special.items() if here and here <= work.excluded)
        name = min(found, default=None)
        return None if name is None else special[name]

    def _changed(self) -> None:
        self._changes += 1

    def _asking(self, seat: str, now: float, waits_since: float | None, patience: float) -> Asking:
        candidate = self._roster.candidates[seat]
        waited = 0.0 if waits_since is None else now - waits_since
        return Asking(candidate, self._roster.speed(candidate), waited, patience)

    def _scene(self, now: float) -> Scene:
        if self._shelves.unpause(now):
            self._changed()
        target = self._target
        if target is None or self._outdated(target, now):
            target = self._target = self._make_target(now)
            self._target_made_at, self._changes = now, 0
            self._steps = target.steps
            self._behind = self._underway.behind(target.by_kind, now)
        return Scene(self._shelves, self._roster, self._underway, target, self._behind, now)

    def _outdated(self, target: Target, now: float) -> bool:
        seats = len(self._roster.slots)
        if seats <= _EXACT_WORKERS:
            return self._changes > 0 or now != self._target_made_at
        passed = now - self._target_made_at
        return (
            self._changes > seats * _CHANGES_SHARE
            or passed > (target.at - self._target_made_at) * _SHARE_OF_HORIZON
            or self._roster.stale
        )

    def _make_target(self, now: float) -> Target:
        self._roster.refresh()
        pattern, table = self._roster.patterns()
        supply = Supply(
            self._roster.speeds(), self._roster.free_at(now), self._roster.until(), pattern, table
        )
        return find_target(Demand(*self._shelves.demand()), supply, now=now, near=self._steps)
