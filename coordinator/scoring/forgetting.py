"""Pure: what the experts of a lineage still know of the domains that it trained on before."""

from collections.abc import Mapping

from coordinator.scoring.lineup import Contestants
from coordinator.scoring.outcome import Measure, Remembered


def lineage_of(expert: str, contestants: Contestants, scheme: str) -> tuple[str, ...]:
    """The scheme's experts that led to `expert`, the first one first, itself the last."""
    experts = set(contestants.experts[scheme].values())
    found = [expert]
    while (parent := contestants.parents.get(found[-1])) in experts and parent is not None:
        found.append(parent)
    return tuple(reversed(found))


def remembered(
    contestants: Contestants, measures: Mapping[str, Mapping[str, Measure]]
) -> tuple[Remembered, ...]:
    """Each expert of each lineage on every domain that its lineage has trained on so far.

    `measures` maps domains to names of checkpoints to what they measure on the test text. A scheme
    without lineages, in which no expert was trained from another, has nothing to remember.
    """
    found = []
    for scheme, experts in contestants.experts.items():
        domain_of = {name: domain for domain, name in experts.items()}
        lineages = {name: lineage_of(name, contestants, scheme) for name in experts.values()}
        if all(len(lineage) == 1 for lineage in lineages.values()):
            continue
        for expert, lineage in lineages.items():
            for earlier in lineage:
                domain = domain_of[earlier]
                found.append(
                    Remembered(
                        scheme=scheme,
                        expert=expert,
                        after_round=contestants.rounds[domain_of[expert]],
                        domain=domain,
                        trained_in=contestants.rounds[domain],
                        perplexity=measures[domain][expert].perplexity,
                        seed=measures[domain][contestants.seed].perplexity,
                    )
                )
    return tuple(found)
