"""How a mixture is to be made: what its experts own, where the rest comes from, and its router."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from protocol.ids import DomainId
from protocol.values import Amount, Count, Items, Positive, Value
from shared.mixing.evidence import PAIRS
from shared.mixing.ingredients import MixingError

Part = Literal["embeddings", "head", "norms", "q_proj", "k_proj", "v_proj", "o_proj"]
RouterKind = Literal["gateless", "prefix", "linear", "global", "fine", "deep"]
RouterSource = Literal["none", "counts", "noisy", "hidden", "prompts", "ridge"]

PARTS: tuple[Part, ...] = get_args(Part)
"""What an expert may own: OWNABLE."""

_SOURCES: dict[RouterKind, tuple[RouterSource, ...]] = {
    "gateless": ("none",),
    "prefix": ("counts",),
    "linear": ("noisy", "hidden", "prompts", "ridge"),
    "global": ("noisy", "hidden", "prompts", "ridge"),
    "fine": ("noisy", "hidden", "prompts", "ridge"),
    "deep": ("noisy",),
}
"""What a router's numbers may come from; the first unless the recipe says otherwise."""

_MAX_BYTES = 1_000_000


class RouterRecipe(Value):
    """The router of a mixture; `HdeeMoeConfig` says what its settings mean.

    `source` is where its numbers come from. none: it has none. counts: of each token in the
    experts' domains, and of pairs of neighbours in `pairs` buckets, raised by `smoothing`. noisy:
    drawn with `rng_seed`. hidden: the mean hidden states of the domains' text, prompts: those of
    given prompts. ridge: the closed form of DUME (arXiv 2603.29765), regularised by `ridge`.
    `always_on` is an expert's name. A deep router has `hidden_size` features between its layers
    (None: as many as the model).
    """

    kind: RouterKind = "prefix"
    source: RouterSource = "counts"
    bias: bool = False
    hidden_size: Positive | None = None
    selection: Literal["soft", "top_k", "top_p"] = "soft"
    top_k: Positive = 2
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.6
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.01
    always_on: DomainId | None = None
    sharpness: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.5
    window: Positive = 64
    decay: Annotated[float, Field(gt=0, le=1)] = 0.98
    pairs: Annotated[int, Field(ge=0, le=2**24)] = PAIRS
    smoothing: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    ridge: Annotated[float, Field(gt=0, le=1e9)] = 1e-2
    rng_seed: Count = 0
    penalty_weight: Amount = 0.0
    balance_weight: Amount = 0.0
    entropy_weight: Amount = 0.0

    @model_validator(mode="before")
    @classmethod
    def _source_follows_the_kind(cls, values: Any) -> Any:
        if isinstance(values, dict) and "source" not in values:
            known = _SOURCES.get(values.get("kind", "prefix"))
            return {**values, "source": known[0]} if known else values
        return values

    @model_validator(mode="after")
    def _source_fits_the_kind(self) -> Self:
        allowed = _SOURCES[self.kind]
        if self.source not in allowed:
            raise ValueError(
                f"router.source {self.source!r}: expected one of {allowed} for a {self.kind} router"
            )
        if self.kind != "deep" and self.hidden_size is not None:
            raise ValueError(
                f"router.hidden_size {self.hidden_size}: only a deep router has hidden features, "
                f"got {self.kind!r}"
            )
        if self.kind not in ("linear", "global") and self.bias:
            raise ValueError(f"router.bias: a {self.kind} router has none, expected false")
        return self

    @property
    def num_pairs(self) -> int:
        """Buckets of pairs that are counted in the experts' text."""
        return self.pairs if self.kind == "prefix" else 0


class Recipe(Value):
    """How a mixture is to be made.

    `owned` says what each expert has of its own, beside its FFNs: parts, or auto for whatever an
    expert of the mixture has changed. All else comes from the seed, or is the experts' mean: plain
    (BTX, arXiv 2403.07816) or weighted by `shares`, which must be the experts' posterior.
    With `anchor` the seed is the first expert, called `seed`. Only the FFNs of `expert_layers` are
    experts' (None: those of all layers).
    """

    owned: Literal["auto"] | Items[Part] = "auto"
    shared_from: Literal["seed", "average", "posterior"] = "seed"
    shares: Mapping[DomainId, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    anchor: bool = False
    expert_layers: Items[Count] | None = None
    router: RouterRecipe = RouterRecipe()

    @field_validator("owned", mode="before")
    @classmethod
    def _parts_are_known(cls, owned: Any) -> Any:
        parts = owned if isinstance(owned, list | tuple) else ()
        if owned != "auto" and (not isinstance(owned, list | tuple) or set(parts) - set(PARTS)):
            raise ValueError(f"expected 'auto', or some of {PARTS}")
        return owned

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.owned != "auto" and len(set(self.owned)) < len(self.owned):
            raise ValueError(f"owned {self.owned}: expected each part once")
        if (self.shared_from == "posterior") != bool(self.shares):
            raise ValueError(
                f"shares of {sorted(self.shares)}: expected them exactly where shared_from is "
                f"'posterior', got {self.shared_from!r}"
            )
        layers = self.expert_layers
        if layers is not None and (not layers or list(layers) != sorted(set(layers))):
            raise ValueError(f"expert_layers {layers}: expected ascending numbers, at least one")
        return self

    def parts_owned(self, changed: Mapping[str, tuple[str, ...]]) -> tuple[Part, ...]:
        """The parts that experts own, in the order of OWNABLE.

        `changed` says by expert in which parts it differs from the seed.
        """
        if self.owned == "auto":
            wanted = {part for parts in changed.values() for part in parts}
        else:
            wanted = set(self.owned)
        return tuple(part for part in PARTS if part in wanted)


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """The recipe that `values` describe. Raises MixingError naming key, value and expectation."""
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        item = error.errors()[0]
        key = ".".join(str(part) for part in item["loc"] if not str(part).startswith("tuple["))
        if item["type"] == "extra_forbidden":
            raise MixingError(f"recipe: {key}: {unknown_key_words(item['loc'], Recipe)}") from error
        words = (
            str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
        )
        shown = f"recipe: {key} = {item['input']!r:.80}: " if key else "recipe: "
        raise MixingError(shown + words) from error


def unknown_key_words(place: Sequence[int | str], model: type[Value]) -> str:
    """What to say of a key of a TOML for `model` that nothing is called, given where it stands."""
    for name in place[:-1]:
        inner = model.model_fields[str(name)].annotation
        if not (isinstance(inner, type) and issubclass(inner, Value)):
            break
        model = inner
    return f"unknown key, expected one of {sorted(model.model_fields)}"


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file. Raises MixingError, which names the file."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise MixingError(f"{path}: expected at most {_MAX_BYTES} bytes")
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise MixingError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise MixingError(f"{path}: no TOML: {error}") from error
    try:
        return make_recipe(values)
    except MixingError as error:
        raise MixingError(f"{path}: {error}") from error
