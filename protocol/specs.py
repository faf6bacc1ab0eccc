"""What to train: the shape of a model, the recipe, and the two together with their text."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from protocol.digests import digest_value
from protocol.ids import Digest, DomainId
from protocol.values import Amount, Count, Items, Positive, Value

Trains = Literal["all", "ffn", "ffn_embeddings", "lora"]
"""Which tensors an expert may change; the others stay bit-equal to its parent's.

lora: none of them. Low-rank matrices beside some are trained (see `Lora`), and added in the end.
"""

Kind = Literal["seed", "expert", "dense", "average", "pretrained"]
"""What a checkpoint is for.

seed: what experts branch from. expert: one domain's. dense: the baseline, a seed continued on all
domains' text. average: a weighted mean of others' weights, which experts may branch from.
pretrained: a seed that was trained elsewhere. The last two are made by the coordinator, in no step.
"""

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""A linear map of a Llama layer, as Hugging Face calls it."""

PROJECTIONS: tuple[Projection, ...] = get_args(Projection)

RopeTheta = Annotated[float, Field(ge=1, le=1e12, allow_inf_nan=False)]
NormEps = Annotated[float, Field(gt=0, lt=1)]

MADE: tuple[Kind, ...] = ("average", "pretrained")


class ModelShape(Value):
    """A Llama decoder. Widths are in features, the context in tokens.

    `num_kv_heads` heads of keys and values serve groups of query heads (None: one each).
    `rope_theta` is the base of the rotary angles, `norm_eps` what RMS norms add to the mean square.
    With `tied_embeddings` the output embedding is the input embedding.
    """

    vocab_size: Positive
    hidden_size: Positive
    num_layers: Positive
    num_heads: Positive
    ffn_width: Positive
    context_length: Positive
    num_kv_heads: Positive | None = None
    rope_theta: RopeTheta = 10_000.0
    norm_eps: NormEps = 1e-6
    tied_embeddings: bool = False

    @model_validator(mode="after")
    def _heads_divide_the_hidden_size(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size}: expected an even multiple of num_heads "
                f"{self.num_heads}"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads {self.num_kv_heads}: expected a divisor of num_heads "
                f"{self.num_heads}"
            )
        return self

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def kv_size(self) -> int:
        """Features of the keys, and of the values."""
        return self.hidden_size // self.num_heads * self.kv_heads


class Lora(Value):
    """Low-rank adapters: W x becomes W x + alpha / rank * B A x (Hu et al., arXiv 2106.09685).

    A is [rank, inputs], B [outputs, rank], one pair for each of `projections` in every layer. Only
    they are trained.
    """

    rank: Positive
    alpha: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    projections: Annotated[tuple[Projection, ...], Field(strict=False, min_length=1)] = PROJECTIONS

    @model_validator(mode="after")
    def _projections_are_in_order(self) -> Self:
        if self.projections != tuple(one for one in PROJECTIONS if one in self.projections):
            raise ValueError(
                f"projections {self.projections}: expected each once, in the order of {PROJECTIONS}"
            )
        return self

    @property
    def scale(self) -> float:
        """What B A is multiplied with."""
        return self.alpha / self.rank


class TrainSpec(Value):
    """The recipe: `num_steps` optimizer updates along a cosine over `schedule_steps`.

    A batch is `accumulation` micro-batches of `micro_batch` sequences of `sequence_length` tokens.
    The learning rate rises linearly over `warmup_steps` to `peak_learning_rate`, then follows a
    cosine to `final_learning_rate` at `schedule_steps`. Stopping before the cosine ends is what the
    paper does (300, 400 or 500 of 600 steps; arXiv 2502.19385).
    """

    num_steps: Count
    schedule_steps: Positive
    warmup_steps: Count
    peak_learning_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    final_learning_rate: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    micro_batch: Positive
    accumulation: Positive
    sequence_length: Positive
    clip_norm: Amount
    rng_seed: Count
    compile: bool

    @model_validator(mode="after")
    def _schedule_holds_together(self) -> Self:
        if self.num_steps > self.schedule_steps:
            raise ValueError(
                f"num_steps {self.num_steps}: expected at most schedule_steps {self.schedule_steps}"
            )
        if self.warmup_steps > self.schedule_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps}: expected at most schedule_steps "
                f"{self.schedule_steps}"
            )
        if self.final_learning_rate > self.peak_learning_rate:
            raise ValueError(
                f"final_learning_rate {self.final_learning_rate}: expected at most "
                f"peak_learning_rate {self.peak_learning_rate}"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Label tokens in one optimizer update."""
        return self.micro_batch * self.accumulation * self.sequence_length


class StepShape(Value):
    """What one step of some work computes: what its speed depends on, and nothing else of it.

    `shape` with the widest FFN that is trained. Whether it is compiled is left out.
    """

    shape: ModelShape
    trains: Trains
    lora: Lora | None = None
    micro_batch: Positive
    accumulation: Positive
    sequence_length: Positive


class Ingredient(Value):
    """One checkpoint of an average: the digest of its spec, and its share of the weights."""

    spec: Digest
    share: Annotated[float, Field(gt=0, le=1)]


class ExpertSpec(Value):
    """Everything that determines an expert's weights on one machine. Its digest is its name.

    `parent` is the spec digest of the model that training starts from (None: fresh weights from
    `train.rng_seed`). A parent may be wider: the child takes the first `shape.ffn_width` rows of
    its FFNs, which is what a nested seed is trained for. `nested_widths` (seeds only, ascending,
    ending in `shape.ffn_width`) are the FFN prefixes that each step draws one of; empty: the full
    width only. `train_shard` may hold other domains' text beside that of `domain` (rehearsal); a
    dense baseline's domain is named after all of its text. `ingredients` are what an average is
    made of; `origin` is the digest of the file that a pretrained seed was read from. `lora` stands
    exactly where adapters are trained; a spec without it keeps the digest of before there was any.
    """

    kind: Kind
    domain: DomainId
    shape: ModelShape
    nested_widths: Items[Positive]
    train_shard: Digest
    parent: Digest | None
    trains: Trains
    train: TrainSpec
    ingredients: Items[Ingredient] = ()
    origin: Digest | None = None
    lora: Annotated[Lora | None, Field(exclude_if=lambda lora: lora is None)] = None

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        rules = (*self._rules_of_origin(), *self._rules_of_training(), *self._rules_of_lora())
        problems = [words for is_kept, words in rules if not is_kept]
        if problems:
            raise ValueError(problems[0])
        return self

    def _rules_of_origin(self) -> tuple[tuple[bool, str], ...]:
        branches = self.kind in ("expert", "dense")
        return (
            (branches or self.parent is None, f"parent: of kind {self.kind!r}, which has none"),
            (not branches or self.parent is not None, f"parent: {self.kind!r} needs one, got none"),
            (
                (self.kind == "average") == bool(self.ingredients),
                f"ingredients: {len(self.ingredients)} for kind {self.kind!r}, expected some "
                "exactly for an average",
            ),
            (
                (self.kind == "pretrained") == (self.origin is not None),
                f"origin {self.origin}: expected one exactly for kind 'pretrained'",
            ),
        )

    def _rules_of_training(self) -> tuple[tuple[bool, str], ...]:
        widths = list(self.nested_widths)
        ascending = widths == sorted(set(widths)) and widths[-1:] == [self.shape.ffn_width]
        train = self.train
        return (
            (
                self.kind in ("seed", "pretrained") or not widths,
                f"nested_widths {self.nested_widths}: only seeds are nested, got {self.kind!r}",
            ),
            (
                not widths or ascending,
                f"nested_widths {self.nested_widths}: expected ascending widths ending in "
                f"ffn_width {self.shape.ffn_width}",
            ),
            (
                self.kind in ("expert", "dense") or self.trains == "all",
                f"trains {self.trains!r}: kind {self.kind!r} trains all of its tensors",
            ),
            (
                (self.kind in MADE) == (train.num_steps == 0),
                f"num_steps {train.num_steps}: expected none exactly for kinds {MADE}",
            ),
            (
                train.sequence_length <= self.shape.context_length,
                f"sequence_length {train.sequence_length}: expected at most context_length "
                f"{self.shape.context_length}",
            ),
        )

    def _rules_of_lora(self) -> tuple[tuple[bool, str], ...]:
        shape = self.shape
        rank = 1 if self.lora is None else self.lora.rank
        least = min(shape.hidden_size, shape.kv_size, shape.ffn_width)
        return (
            (
                (self.trains == "lora") == (self.lora is not None),
                f"lora {self.lora}: expected one exactly where trains is 'lora', got trains "
                f"{self.trains!r}",
            ),
            (
                rank <= least,
                f"lora.rank {rank}: expected at most {least}, the least side of a layer's matrices",
            ),
        )

    @property
    def lora_rank(self) -> int | None:
        """The rank of the adapter that is trained, if one is."""
        return None if self.lora is None else self.lora.rank

    @property
    def step_shape(self) -> StepShape:
        """What one of its steps computes."""
        return StepShape(
            shape=self.shape,
            trains=self.trains,
            lora=self.lora,
            micro_batch=self.train.micro_batch,
            accumulation=self.train.accumulation,
            sequence_length=self.train.sequence_length,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes; equal specs are trained once."""
        return digest_value(self)

    @property
    def curve(self) -> str:
        """The digest of this spec with its steps left out.

        Specs of one curve differ only in where they stop: the longer one passes through the
        checkpoint of the shorter one, bit for bit.
        """
        train = self.train.model_copy(update={"num_steps": self.train.schedule_steps})
        return digest_value(self.model_copy(update={"train": train}))
