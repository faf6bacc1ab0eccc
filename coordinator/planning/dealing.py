"""Classes to rounds, and which domains follow one another in a lineage. Pure."""

from collections.abc import Mapping

from coordinator.planning.difficulty import CLASSES
from coordinator.planning.errors import PlanError
from coordinator.runfile import RunFile
from coordinator.text_sections import Difficulty


def deal(
    classes: Mapping[str, Difficulty], *, rounds: int, pins: Mapping[str, int]
) -> dict[str, int]:
    """The round, from 1, in which each domain is trained on.

    A class's domains are spread evenly over the rounds: pinned ones in theirs, the others by name
    into the round that has the fewest of their class, the earliest of equals. Raises PlanError for
    a pin beyond `rounds`.
    """
    late = {domain: number for domain, number in pins.items() if number > rounds}
    if late:
        raise PlanError(f"rounds pinned {late}: expected at most plan.rounds {rounds}")
    dealt: dict[str, int] = {}
    for difficulty in CLASSES:
        members = sorted(domain for domain, one in classes.items() if one == difficulty)
        counts = dict.fromkeys(range(1, rounds + 1), 0)
        for domain in sorted(members, key=lambda name: (name not in pins, name)):
            number = pins.get(domain) or min(counts, key=lambda one: (counts[one], one))
            counts[number] += 1
            dealt[domain] = number
    return dealt


def lineages(
    classes: Mapping[str, Difficulty], dealt: Mapping[str, int], *, rounds: int
) -> dict[Difficulty, tuple[str, ...]]:
    """Each class's domains in the order in which its one expert trains on them.

    Raises PlanError, with the numbers, unless every round has exactly one domain of each class.
    """
    found: dict[Difficulty, tuple[str, ...]] = {}
    for difficulty in CLASSES:
        members = [domain for domain, one in classes.items() if one == difficulty]
        by_round = [
            sorted(domain for domain in members if dealt[domain] == number)
            for number in range(1, rounds + 1)
        ]
        for number, domains in enumerate(by_round, start=1):
            if len(domains) != 1:
                raise PlanError(
                    f"round {number} has {len(domains)} {difficulty} domains ({domains}), expected "
                    f"one of each class in each of {rounds} rounds for experts = 'lineages'"
                )
        found[difficulty] = tuple(domains[0] for domains in by_round)
    return found


def order_of(run: RunFile, classes: Mapping[str, Difficulty]) -> dict[Difficulty, tuple[str, ...]]:
    """The lineages: each class's domains in the order of training; none with keep-all.

    Raises PlanError when a round lacks a class.
    """
    if run.plan.experts == "keep-all":
        return {}
    return lineages(classes, rounds_of(run, classes), rounds=run.plan.rounds)


def rounds_of(run: RunFile, classes: Mapping[str, Difficulty]) -> dict[str, int]:
    """The round in which each trained domain is trained on."""
    pins = {name: one.round for name, one in run.domains.items() if one.round is not None}
    return deal(classes, rounds=run.plan.rounds, pins=pins)
