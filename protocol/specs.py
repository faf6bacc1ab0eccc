"""What to train: the shape of a model, the recipe, and the two together with their text."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from protocol.digests import digest_value
from protocol.ids import Digest, DomainId
from protocol.values import Amount, Count, Items, Positive, Value

Trains = Literal["all", "ffn", "ffn_embeddings"]
"""Which tensors an expert may change; the others stay bit-equal to its parent's."""


class ModelShape(Value):
    """A Llama decoder. Widths are in features, the context in tokens."""

    vocab_size: Positive
    hidden_size: Positive
    num_layers: Positive
    num_heads: Positive
    ffn_width: Positive
    context_length: Positive

    @model_validator(mode="after")
    def _heads_divide_the_hidden_size(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size}: expected an even multiple of num_heads "
                f"{self.num_heads}"
            )
        return self


class TrainSpec(Value):
    """The recipe: `num_steps` optimizer updates along a cosine over `schedule_steps`.

    A batch is `accumulation` micro-batches of `micro_batch` sequences of `sequence_length` tokens.
    The learning rate rises linearly over `warmup_steps` to `peak_learning_rate`, then follows a
    cosine to `final_learning_rate` at `schedule_steps`. Stopping before the cosine ends is what the
    paper does (300, 400 or 500 of 600 steps; arXiv 2502.19385).
    """

    num_steps: Positive
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


class ExpertSpec(Value):
    """Everything that determines an expert's weights on one machine. Its digest is its name.

    `parent` is the spec digest of the model that training starts from (None: fresh weights from
    `train.rng_seed`). A parent may be wider: the child takes the first `shape.ffn_width` rows of
    its FFNs, which is what a nested seed is trained for. `nested_widths` (seeds only, ascending,
    ending in `shape.ffn_width`) are the FFN prefixes that each step draws one of; empty: the full
    width only.
    """

    kind: Literal["seed", "expert"]
    domain: DomainId
    shape: ModelShape
    nested_widths: Items[Positive]
    train_shard: Digest
    parent: Digest | None
    trains: Trains
    train: TrainSpec

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        if self.kind == "seed" and self.parent is not None:
            raise ValueError("parent: a seed has none")
        if self.kind == "expert" and self.parent is None:
            raise ValueError("parent: an expert branches from one, got none")
        if self.kind == "expert" and self.nested_widths:
            raise ValueError("nested_widths: only seeds are nested")
        if self.kind == "seed" and self.trains != "all":
            raise ValueError(f"trains {self.trains!r}: a seed trains all of its tensors")
        if self.nested_widths and (
            list(self.nested_widths) != sorted(set(self.nested_widths))
            or self.nested_widths[-1] != self.shape.ffn_width
        ):
            raise ValueError(
                f"nested_widths {self.nested_widths}: expected ascending widths ending in "
                f"ffn_width {self.shape.ffn_width}"
            )
        if self.train.sequence_length > self.shape.context_length:
            raise ValueError(
                f"sequence_length {self.train.sequence_length}: expected at most context_length "
                f"{self.shape.context_length}"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes; equal specs are trained once."""
        return digest_value(self)
