"""The sections of a run file, a frozen class each. Unknown keys and other types are refused."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from coordinator.text_sections import Difficulty, Glob, Section
from protocol.ids import RunId, WorkerId
from protocol.specs import PROJECTIONS, Lora, NormEps, Projection, RopeTheta, Trains
from protocol.values import Count, Items, Positive
from shared.exchange.rates import SLOWEST_RATE

WidthLabel = Literal["S", "M", "L"]
Scheme = Literal["MHo-IHo", "MHo-IHe", "MHe-IHo", "MHe-IHe", "adaptive"]
"""Who is alike in the paper's words: the models (widths) and the iterations (steps).

adaptive: models alike, and steps where the measured slope of the dev curve is greatest.
"""

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
MaxEpochs = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
"""Passes over a text. Up to four are nearly as good as new text (arXiv 2305.16264)."""

BytesPerSecond = Annotated[int, Field(ge=SLOWEST_RATE)]


class Run(Section):
    """`folder` holds the run's keys and state, relative to the run file."""

    name: RunId
    folder: Glob = "."


class Listen(Section):
    """Addresses. `public_host` is the name under which workers reach this machine.

    `upload_bytes_per_second` and `download_bytes_per_second` limit the network role's blobs, by
    libp2p and by HTTP; without them there is no limit.
    """

    api_host: Glob = "127.0.0.1"
    api_port: Port = 8700
    network_port: Port = 8701
    libp2p_port: Port = 8702
    public_host: Glob | None = None
    upload_bytes_per_second: BytesPerSecond | None = None
    download_bytes_per_second: BytesPerSecond | None = None


class Timing(Section):
    """`heartbeat_seconds` between heartbeats, `checkpoint_seconds` between durable checkpoints.

    After `max_attempts` equal failures of workers whose earlier work was accepted, an assignment
    has failed.
    """

    heartbeat_seconds: Seconds = 10.0
    checkpoint_seconds: Seconds = 600.0
    max_attempts: Annotated[int, Field(ge=2, le=100)] = 3


class LedgerPlace(Section):
    """Where the ledger is; None: state/ledger.sqlite in the run's folder. --database overrules it.

    `sqlite:///` and an absolute path, or `postgresql+psycopg://user@host/database`.
    """

    database: Annotated[str, Field(min_length=1, max_length=1000)] | None = None


def _kind_of_trust(value: object) -> str:
    return "<listed>" if isinstance(value, list | tuple) else "<all>"


class Trust(Section):
    """Who may enrol, and which workers may be given seeds: all, or those listed by peer id.

    So may trials of learning rates and probes, which need not be better than what they branch from.
    """

    enrolment: Literal["open", "invite"] = "open"
    workers: Annotated[
        Annotated[Literal["all"], Tag("<all>")] | Annotated[Items[WorkerId], Tag("<listed>")],
        Discriminator(_kind_of_trust),
    ] = "all"


class Tokenizer(Section):
    """Either the size of a vocabulary to learn from the general text, or a SentencePiece model.

    A pretrained seed has its own: beside it, or as `model`, which then may be a tokenizer.json.
    """

    vocab_size: Annotated[int, Field(ge=260, le=65_536)] | None = None
    model: Glob | None = None


class Shape(Section):
    """What all models of the run share (see `ModelShape`); their FFN widths stand in [widths]."""

    hidden_size: Positive
    num_layers: Positive
    num_heads: Positive
    context_length: Positive
    num_kv_heads: Positive | None = None
    rope_theta: RopeTheta = 10_000.0
    norm_eps: NormEps = 1e-6
    tied_embeddings: bool = False


class Widths(Section):
    """FFN widths in features, ascending; M alone where models differ in their ranks instead."""

    M: Positive
    S: Positive | None = None
    L: Positive | None = None

    def of(self, label: WidthLabel) -> int:
        """The width that `label` stands for."""
        return {"S": self.S, "M": self.M, "L": self.L}[label] or self.M

    @property
    def widest(self) -> int:
        """The width of L."""
        return self.of("L")

    def nested(self) -> tuple[int, ...]:
        """S, M, L: the prefixes of one seed; none where there is one width."""
        return () if self.S is None or self.L is None else (self.S, self.M, self.L)


class Ranks(Section):
    """Ranks of LoRA adapters, ascending: what makes an expert big where all have one FFN width.

    Every expert trains an adapter alone and adds alpha / rank times it to its parent's
    `projections` (Hu et al., arXiv 2106.09685). `alpha` is one for all ranks, as that paper keeps
    it while the rank varies; without it, it is the rank of M.
    """

    S: Positive
    M: Positive
    L: Positive
    alpha: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    projections: Annotated[tuple[Projection, ...], Field(strict=False, min_length=1)] = PROJECTIONS

    def of(self, label: WidthLabel) -> int:
        """The rank that `label` stands for."""
        return {"S": self.S, "M": self.M, "L": self.L}[label]

    def lora(self, label: WidthLabel) -> Lora:
        """The adapter of an expert that is as big as `label`."""
        alpha = float(self.M) if self.alpha is None else self.alpha
        ordered = tuple(one for one in PROJECTIONS if one in self.projections)
        return Lora(rank=self.of(label), alpha=alpha, projections=ordered)


class SeedRecipe(Section):
    """How seed models are trained: one cosine over all `num_steps`.

    More than `max_epochs` over the text is refused.
    """

    num_steps: Positive
    warmup_steps: Count
    peak_learning_rate: Rate
    final_learning_rate: Rate
    micro_batch: Positive
    accumulation: Positive = 1
    sequence_length: Positive
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    rng_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    compile: bool = False
    max_epochs: MaxEpochs = 4.0


class Pretrained(Section):
    """A Llama from elsewhere: a Hugging Face directory with safetensors, or a .gguf file.

    `path` is relative to the run file. The model's own FFN width is M. S keeps the units that are
    most active on general text; L adds units that at first contribute nothing: near copies of the
    most active ones. With M alone the seed is the model as it is.
    """

    path: Glob


class Seed(Section):
    """nested: one seed whose FFN prefixes are the smaller widths, if there are any; per-size: one
    seed a width.

    These are trained by `recipe`. pretrained: one seed with all widths, made from a model.
    """

    kind: Literal["nested", "per-size", "pretrained"]
    recipe: SeedRecipe | None = None
    pretrained: Pretrained | None = None


class Recipe(Section):
    """How experts are trained; their steps stand in [plan].

    `paper`: one cosine over `schedule_steps`, left before its end (arXiv 2502.19385: 300, 400 or
    500 of 600 steps). `annealed`: each expert's cosine ends with its last step. More than
    `max_epochs` over a domain's text is refused.
    """

    warmup_steps: Count
    peak_learning_rate: Rate
    final_learning_rate: Rate
    micro_batch: Positive
    accumulation: Positive = 1
    sequence_length: Positive
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    rng_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    compile: bool = False
    max_epochs: MaxEpochs = 4.0
    trains: Trains = "all"
    schedule: Literal["paper", "annealed"] = "paper"
    schedule_steps: Positive | None = None


class ClassWidths(Section):
    """The width of each class where models differ."""

    easy: WidthLabel = "S"
    moderate: WidthLabel = "M"
    difficult: WidthLabel = "L"

    def of(self, difficulty: Difficulty) -> WidthLabel:
        """The label of `difficulty`."""
        labels: dict[Difficulty, WidthLabel] = {
            "easy": self.easy,
            "moderate": self.moderate,
            "difficult": self.difficult,
        }
        return labels[difficulty]


class ClassSteps(Section):
    """The steps of each class where iterations differ."""

    easy: Positive
    moderate: Positive
    difficult: Positive

    def of(self, difficulty: Difficulty) -> int:
        """The steps of `difficulty`."""
        steps: dict[Difficulty, int] = {
            "easy": self.easy,
            "moderate": self.moderate,
            "difficult": self.difficult,
        }
        return steps[difficulty]


class Thresholds(Section):
    """Seed perplexities on dev text that part the classes, in place of terciles.

    Below `moderate_from` a domain is easy, from `difficult_from` on it is difficult.
    """

    moderate_from: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    difficult_from: Annotated[float, Field(ge=1, allow_inf_nan=False)]


class Plan(Section):
    """Which schemes are compared, at an equal budget in `unit`.

    Where models are alike they have width M, where iterations are alike `homogeneous_steps`; ranks
    take the place of widths throughout, where there are some.
    `ffn_steps` is the paper's unit, FFN width x steps; `flops` counts real training FLOPs. MHe-IHe
    takes the widths of MHe-IHo and steps in the proportions of `steps`, scaled to the budget.
    adaptive measures each expert at the two `probe_steps` and divides the rest.

    `experts`: "keep-all" trains one on each domain (Branch-Train-Merge, arXiv 2208.03306);
    "lineages" has one of each class, which trains on a domain a round and goes on from there (HDEE,
    arXiv 2502.19385). `branch`: what the experts of a later round start from with keep-all: the
    seed, or the average of the experts so far, weighted by their posterior on its dev text.
    `rehearsal` is the share of earlier domains' text in what a lineage trains on.
    """

    schemes: Annotated[tuple[Scheme, ...], Field(strict=False, min_length=1, max_length=5)]
    unit: Literal["flops", "ffn_steps"] = "flops"
    homogeneous_steps: Positive
    steps: ClassSteps | None = None
    widths: ClassWidths = ClassWidths()
    probe_steps: Annotated[tuple[Positive, Positive], Field(strict=False)] | None = None
    classes: Thresholds | None = None
    experts: Literal["keep-all", "lineages"] = "keep-all"
    rounds: Annotated[int, Field(ge=1, le=100)] = 1
    branch: Literal["seed", "average"] = "seed"
    rehearsal: Annotated[float, Field(ge=0, le=0.9)] = 0.0


class Dense(Section):
    """The dense baseline: seed M, continued on all trained domains' text with a scheme's budget.

    Its rate is that of `learning_rates` with the lowest dev perplexity after `trial_steps` steps;
    one rate needs no trial. All else is the experts' recipe; the final rate keeps its proportion.
    """

    learning_rates: Annotated[tuple[Rate, ...], Field(strict=False, min_length=1, max_length=8)]
    trial_steps: Positive | None = None


class Evaluation(Section):
    """What is measured beside every scheme's ensembles.

    `weight_averages`: for each scheme the models whose weights are the mean of its experts',
    uniform and weighted by posterior. It needs a shared basis: a nested or a pretrained seed.
    """

    weight_averages: bool = False


class OwnData(Section):
    """Workers may bring a domain whose text stays on their machine, and get its expert.

    It has width `width` and takes `steps` by the experts' recipe, from the same seed. It counts in
    no scheme and no result. It is accepted if its perplexity on the gate text of every domain of
    the run is at most `harm_percent` above its seed's; of its own domain nobody else can tell.
    """

    steps: Positive
    width: WidthLabel = "M"
    max_domains: Annotated[int, Field(ge=1, le=1000)] = 16
    harm_percent: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
