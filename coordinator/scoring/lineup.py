"""Which checkpoints make up each contestant: seed, dense baseline, the experts of every scheme."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.scoring.outcome import SearchCost
from coordinator.text_sections import Difficulty
from protocol.ids import Digest


@dataclass(frozen=True)
class SchemeLineup:
    """A scheme's experts, by spec digest.

    `members` form its final ensemble. `experts` maps each trained domain to the expert that trained
    on it; along lineages, most of those are not members any more.
    """

    members: tuple[Digest, ...]
    experts: Mapping[str, Digest]


@dataclass(frozen=True)
class Lineup:
    """All contestants. `seed` and `dense` are spec digests; `rounds` maps domains to their round.

    `others` are digests of all other accepted specs that the plan made: probes, trials, averages.
    `classes` maps the trained domains to their difficulty; `search` is what the choice of steps and
    rates cost. Before all is planned, contestants may
    be missing, but none that is a member is replaced later.
    """

    seed: Digest
    dense: Digest | None
    schemes: Mapping[str, SchemeLineup]
    rounds: Mapping[str, int]
    others: tuple[Digest, ...] = ()
    classes: Mapping[str, Difficulty] = field(default_factory=dict)
    search: tuple[SearchCost, ...] = ()


def needed_texts(lineup: Lineup, domains: Sequence[str]) -> dict[Digest, tuple[str, ...]]:
    """Spec digest to the domains on whose dev and test text its checkpoint is measured.

    The seed, the dense baseline and every ensemble's final members are measured on all `domains`;
    an expert that others followed on what its scheme had trained on by the end of its round, to see
    what is forgotten later.
    """
    needed: dict[Digest, set[str]] = {lineup.seed: set(domains)}
    if lineup.dense is not None:
        needed[lineup.dense] = set(domains)
    for scheme in lineup.schemes.values():
        for domain, digest in scheme.experts.items():
            needed.setdefault(digest, set()).update(
                other for other in scheme.experts if lineup.rounds[other] <= lineup.rounds[domain]
            )
        for digest in scheme.members:
            needed.setdefault(digest, set()).update(domains)
    return {
        digest: tuple(domain for domain in domains if domain in some)
        for digest, some in needed.items()
    }


@dataclass(frozen=True)
class Contestants:
    """A lineup by the names of its checkpoints. Members are in order, so that equal sets are equal.

    `parents` maps a checkpoint to the one that it was trained from.
    """

    seed: str
    dense: str | None
    members: Mapping[str, tuple[str, ...]]
    experts: Mapping[str, Mapping[str, str]]
    rounds: Mapping[str, int]
    classes: Mapping[str, Difficulty]
    parents: Mapping[str, str]

    @property
    def schemes(self) -> tuple[str, ...]:
        """Their names, in the order of the plan."""
        return tuple(self.members)


def named(
    lineup: Lineup, names: Mapping[Digest, str], parents: Mapping[Digest, Digest]
) -> Contestants:
    """The contestants of `lineup`; `names` and `parents` are by spec digest."""
    return Contestants(
        seed=names[lineup.seed],
        dense=None if lineup.dense is None else names[lineup.dense],
        members={
            scheme: tuple(sorted({names[digest] for digest in one.members}))
            for scheme, one in lineup.schemes.items()
        },
        experts={
            scheme: {domain: names[digest] for domain, digest in sorted(one.experts.items())}
            for scheme, one in lineup.schemes.items()
        },
        rounds=lineup.rounds,
        classes=lineup.classes,
        parents={
            names[digest]: names[parent]
            for digest, parent in parents.items()
            if digest in names and parent in names
        },
    )
