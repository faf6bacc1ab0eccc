"""What a scored run says: the values of results.json. No arithmetic, no torch.

A *column* is a contestant of the table: `seed M`, `dense`, a scheme (its uniform-prior posterior
ensemble), each of the last two also with the seed as a further member (`dense+seed`,
`MHo-IHo+seed`). A *mode* is one way to turn a scheme's experts into one model.
"""

from typing import Annotated, Literal, TypeVar

from pydantic import Field

from protocol.ids import Digest, DomainId
from protocol.manifests import CurvePoint
from protocol.owndata import OwnState
from protocol.specs import Ingredient, Kind, Lora, ModelShape, Trains, TrainSpec
from protocol.values import Amount, Count, Items, Number, Positive, Value

SEED_COLUMN = "seed M"
DENSE_COLUMN = "dense"
WITH_SEED = "+seed"

OWN, HELD_OUT, ALL = "own", "held-out", "all"
"""Groups of domains over which columns are compared: those trained on, the others, and both."""

Mode = Literal["average", "posterior", "cached-prior"]
MODES: tuple[Mode, ...] = ("average", "posterior", "cached-prior")
"""average: the mean of the members' probabilities. posterior: members weighted by a uniform prior
times the likelihood of the window so far. cached-prior: the same with a prior that was estimated on
dev text and then frozen."""

WEIGHTS_UNIFORM = "average of weights, uniform"
WEIGHTS_BY_POSTERIOR = "average of weights, posterior-weighted"
"""One model whose weights are the mean of the members', in equal shares or by their mean posterior
on the domain's dev text."""

Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], Field(strict=False)]

Role = Literal["trained", "held-out"]
Verdict = Literal["better", "worse", "unclear", "tie"]
"""Of the first of two columns. tie: by construction, as both rest on the same expert."""

Name = Annotated[str, Field(min_length=1, max_length=200)]


class Measure(Value):
    """Perplexity for each label token, and total nats / ln 2 / UTF-8 bytes of the documents."""

    perplexity: Number
    bits_per_byte: Number


class SchemeScores(Value):
    """One scheme on one domain's test text.

    `modes` has every ensemble (`mode_name`) and weight average by its name. `best_single` is the
    member with the lowest dev perplexity. `oracle` is the expert, also of earlier rounds, with the
    lowest perplexity on the test text itself: no method, but a bound on what choosing one can give.
    """

    modes: dict[str, Measure]
    best_single: Name
    oracle: Name


def mode_name(mode: Mode, *, top_k: int | None = None) -> str:
    """Such as `posterior` or `cached-prior top-2`; with the seed as a further member, `+seed`
    follows."""
    return mode if top_k is None else f"{mode} top-{top_k}"


class DomainScores(Value):
    """Everything measured on one domain's test text. `models` has each checkpoint alone, by name.

    `round` is when the domain was trained on, `difficulty` its class by `seed_dev_perplexity`; both
    None for a held-out domain.
    """

    domain: DomainId
    role: Role
    round: Positive | None
    difficulty: Literal["easy", "moderate", "difficult"] | None
    seed_dev_perplexity: Amount | None
    num_documents: Positive
    num_labels: Positive
    num_bytes: Count
    columns: dict[str, Measure]
    models: dict[str, Measure]
    schemes: dict[str, SchemeScores]
    tied: tuple[tuple[str, ...], ...]


class Comparison(Value):
    """Column `a` against column `b`, on one domain or on the mean over a group of domains.

    `difference` is 100 times the difference of nats per label, a - b: about percent of perplexity,
    negative where a is better. `low` and `high` bound it with 95 % confidence: a paired bootstrap
    over test documents (over the documents of each domain, for a group), in which the noise of
    training is not contained.
    """

    a: str
    b: str
    where: Name
    num_domains: Positive
    difference: Number
    low: Number
    high: Number
    verdict: Verdict


class Remembered(Value):
    """How well a scheme's expert predicts a domain's test text after a round of its lineage.

    `after_round` is the round that ended with `expert`; the lineage trained on `domain` in
    `trained_in`, which is not later. `seed` is the seed's perplexity on the same text.
    """

    scheme: str
    expert: Name
    after_round: Positive
    domain: DomainId
    trained_in: Positive
    perplexity: Number
    seed: Number


class CheckpointFacts(Value):
    """One checkpoint that was trained or made. `file` is the digest of its weights.

    `flops` counts all of its steps, shared prefixes too. `schemes` are those whose experts it is
    one of. `dev_perplexity` maps the domains on whose dev text it was measured to its perplexity.
    """

    name: Name
    kind: Kind
    domain: DomainId
    round: Positive | None
    spec: Digest
    file: Digest
    parent: Name | None
    ingredients: Items[Ingredient]
    shape: ModelShape
    trains: Trains
    lora: Lora | None = None
    train: TrainSpec
    flops: Amount
    worker: Name
    schemes: Items[str]
    curve: Items[CurvePoint]
    dev_perplexity: dict[str, Number]

    @property
    def lora_rank(self) -> int | None:
        """The rank of the adapter that is trained, if one is."""
        return None if self.lora is None else self.lora.rank


class BudgetFacts(Value):
    """What a scheme's experts cost in all; ratios are to the first scheme's.

    `ffn_steps` is the sum of FFN width x steps, the paper's unit; `flops` real training FLOPs.
    `probe_flops` is what was trained beside the experts to find their steps.
    """

    scheme: str
    ffn_steps: Count
    flops: Amount
    ffn_steps_ratio: Amount
    flops_ratio: Amount
    probe_flops: Amount = 0.0


class SearchCost(Value):
    """What was trained to find steps or a learning rate. It is in no budget that is compared.

    `flops` is what all of it costs at most: where one training goes on from where another stopped,
    what they have in common is trained once. `diverged` are the peak learning rates of trials whose
    loss was no longer finite.
    """

    purpose: Name
    num_trainings: Positive
    flops: Amount
    diverged: Items[Number] = ()


class PosteriorTrace(Value):
    """How the posterior of a scheme's ensemble moves over a stretch of test text.

    `tokens` are the pieces of text of the labels, `weights` [members][labels] the weight of each
    member before it sees the label.
    """

    scheme: str
    domain: DomainId
    members: Items[Name]
    tokens: Annotated[tuple[str, ...], Field(strict=False, max_length=512)]
    weights: Items[Items[Number]]


class OwnDomainFacts(Value):
    """A domain whose text stays with its worker. Perplexities are self-reported, on its dev text.

    `state` is that of its expert, which counts in nothing else that results say.
    """

    domain: str
    worker: str
    state: OwnState
    num_train_tokens: Count
    perplexity_before: Amount | None
    perplexity_after: Amount | None


class Results(Value):
    """A scored run. `schemes` maps scheme and domain to the expert that trained on the domain.

    `members` are the experts of each scheme's final ensemble; `versions` names what computed this;
    `digests` the run file, the tokenizer and the split key. `own_domains` are told, not scored.
    """

    run: str
    rng_seed: Count
    seed: Name
    dense: Name | None
    schemes: dict[str, dict[str, Name]]
    members: dict[str, tuple[Name, ...]]
    unit: Literal["flops", "ffn_steps"]
    budgets: Items[BudgetFacts]
    search: Items[SearchCost] = ()
    checkpoints: Many[CheckpointFacts]
    domains: Many[DomainScores]
    comparisons: Many[Comparison]
    remembered: Many[Remembered]
    traces: Items[PosteriorTrace]
    versions: dict[str, str]
    digests: dict[str, str]
    own_domains: Items[OwnDomainFacts] = ()
