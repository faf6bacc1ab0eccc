"""Which texts are mixed into one train shard: rehearsal along lineages, and the dense baseline's.

What a worker trains on stays one shard; `coordinator.text.blending` makes it. Pure.
"""

from collections.abc import Mapping, Sequence

from coordinator.runfile import MIXED, RunFile, rehearsed
from coordinator.text.blending import Blend
from coordinator.text_sections import Difficulty


def blends_of(run: RunFile, order: Mapping[Difficulty, Sequence[str]]) -> tuple[Blend, ...]:
    """The shards that the plan needs beside the domains' own; `order` are the lineages, if any.

    The dense baseline's has all trained domains in equal shares: an expert each, and the budget of
    all. Rehearsal divides its share equally among the lineage's earlier domains.
    """
    recipe = run.recipe
    step_tokens = recipe.micro_batch * recipe.accumulation * recipe.sequence_length
    blends = []
    if run.dense is not None:
        share = 1 / len(run.trained)
        budget = len(run.trained) * run.plan.homogeneous_steps * step_tokens
        blends.append(Blend(MIXED, dict.fromkeys(run.trained, share), budget))
    if run.plan.rehearsal > 0:
        for domains in order.values():
            for index, domain in enumerate(domains[1:], start=1):
                earlier = run.plan.rehearsal / index
                shares = {domain: 1 - run.plan.rehearsal}
                shares |= dict.fromkeys(domains[:index], earlier)
                blends.append(Blend(rehearsed(domain), shares, run.most_steps * step_tokens))
    return tuple(blends)
