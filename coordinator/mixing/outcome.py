"""What a comparison of mixtures says: the values of mixing.json. No arithmetic, no torch.

A *column* is a contestant: `mixture` (the chosen variant), the models and ensembles that it is to
stand beside. A *text* is a domain, or a pair of them spliced, `python > law`. A *group* is several
texts: `own` (the trained domains), `held-out`, `spliced`.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from coordinator.scoring.outcome import Comparison, Name
from protocol.ids import Digest
from protocol.values import Amount, Count, Items, Number, Positive, Value

MIXTURE = "mixture"
SEED_COLUMN = "seed"
DENSE_COLUMN = "dense"
ENSEMBLE = "ensemble"
BEST_SINGLE = "best single"
AVERAGE = "average of weights"
WITH_SEED = "+seed"

Group = Literal["own", "held-out", "spliced"]
OWN: Group = "own"
HELD_OUT: Group = "held-out"
SPLICED: Group = "spliced"
GROUPS: tuple[Group, ...] = (OWN, HELD_OUT, SPLICED)

ChooseBy = Literal["own", "all"]
"""own: the geometric mean of perplexities over the trained domains' dev text; all: the geometric
mean of those of all groups, which rates what nobody trained on, and what changes its subject."""

Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], Field(strict=False)]


class MixedExpert(Value):
    """An expert: its name in the mixture, its checkpoint in the run, and its FFN width."""

    name: Name
    checkpoint: Name
    domains: Items[str]
    ffn_width: Positive


class VariantScores(Value):
    """A variant on dev text: perplexity by text, and geometric means by group.

    `digest` is what its measurements are kept under.
    """

    name: Name
    recipe: dict[str, Any]
    digest: Digest
    texts: dict[str, Number]
    groups: dict[Group, Number]


class Usage(Value):
    """What the chosen mixture's router does on one text's dev shard.

    `gates` is each expert's mean gate, `active` the share of positions that it is in use at, both
    the mean over layers. `experts` are in use at a position, `parameters` and `flops` a token costs
    on average.
    """

    text: str
    gates: dict[str, Amount]
    active: dict[str, Amount]
    experts: Amount
    parameters: Amount
    flops: Amount


class MixingResults(Value):
    """A comparison of the mixtures of one scheme's experts.

    `variants` were measured on dev text, best first; `refused` says which could not be made, and
    why. `chosen` is the best; it alone, and those that were named before, were measured on test
    text, as columns beside the models and ensembles in `perplexity` by text and column. In
    comparisons `where` is a text or a group.
    """

    format: Literal[1] = 1
    run: str
    rng_seed: Count
    scheme: str
    experts: Items[MixedExpert]
    choose_by: ChooseBy
    variants: Many[VariantScores]
    refused: dict[str, str]
    chosen: Name
    usage: Many[Usage]
    documents: dict[str, Positive]
    perplexity: dict[str, dict[str, Number]]
    groups: dict[Group, dict[str, Number]]
    comparisons: Many[Comparison]
    versions: dict[str, str]
    digests: dict[str, str]
