"""What a run does with workers' own data: its terms, and the spec of such an expert. Pure."""

import math

from coordinator.planning.recipes import Recipes
from coordinator.runfile import GENERAL, MIXED, RunFile, rehearsed
from coordinator.scoring.outcome import ALL, HELD_OUT, OWN
from coordinator.text.prepared import Prepared
from protocol.owndata import DomainOffer, OwnDataTerms
from protocol.specs import ExpertSpec


def own_data_terms(run: RunFile, prepared: Prepared) -> OwnDataTerms | None:
    """What workers are told; None where the run takes no own data.

    As little text as lets the steps stay within the recipe's max_epochs is enough.
    """
    own, recipe = run.own_data, run.recipe
    if own is None:
        return None
    batch = recipe.micro_batch * recipe.accumulation * recipe.sequence_length
    names = {GENERAL, MIXED, OWN, HELD_OUT, ALL, "seed", "dense"}
    names |= run.domains.keys() | {rehearsed(name) for name in run.domains}
    return OwnDataTerms(
        tokenizer=prepared.tokenizer,
        vocab_size=prepared.vocab_size,
        ffn_width=run.widths.of(own.width),
        num_steps=own.steps,
        min_train_tokens=max(batch + 1, math.ceil(own.steps * batch / recipe.max_epochs)),
        harm_percent=own.harm_percent,
        max_domains=own.max_domains,
        reserved=tuple(sorted(names)),
    )


def own_expert(
    run: RunFile, prepared: Prepared, offer: DomainOffer, seeds: dict[str, ExpertSpec]
) -> ExpertSpec:
    """The expert of an own domain: the experts' recipe, from the seed of its width.

    Raises ValueError where the run takes no own data.
    """
    own = run.own_data
    if own is None:
        raise ValueError(f"{offer.domain}: the run file has no [own_data]")
    spec = Recipes(run, prepared).expert(
        offer.domain,
        text=GENERAL,
        label=own.width,
        steps=own.steps,
        parent=seeds[own.width].digest,
    )
    return spec.model_copy(update={"train_shard": offer.train.blob.digest})
