"""What is known of a mixture in a folder: mixture.json, which is written last."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from protocol.ids import Digest, DomainId
from protocol.manifests import InexactFrom
from protocol.specs import ModelShape, TrainSpec
from protocol.values import Amount, Count, Items, Number, Positive, Value
from shared.mixing.ingredients import MixingError
from shared.mixing.recipe import PARTS, Part, Recipe
from shared.training.assignment import MixtureTrains, RouterLosses

FACTS = "mixture.json"
_MAX_BYTES = 16_000_000

Parts = dict[str, Digest]
"""Digests of weights by part: those of OWNABLE, and `ffn`."""


class SeedFacts(Value):
    """The seed that a mixture's experts branched from: its shape, its parts, its files."""

    shape: ModelShape
    parts: Parts
    vocabulary: Digest | None
    origin: str
    files: dict[str, Digest]


class ExpertFacts(Value):
    """One expert as it was before it was mixed, and as which one its files can be known again."""

    name: DomainId
    domain: DomainId
    ffn_width: Positive
    parts: Parts
    origin: str
    files: dict[str, Digest]

    def changed(self, seed: SeedFacts) -> tuple[Part, ...]:
        """The parts beside the FFN in which it differs from the seed, in the order of PARTS."""
        return tuple(part for part in PARTS if self.parts[part] != seed.parts[part])


class Tuning(Value):
    """A training of the mixture as one model: of what, from which weights, on which text.

    `mixture` is the digest of the weights that it began from. `tokens` counts the labels that it
    read. `loss` is the trainer's smoothed one at the end, in nats a token. From the update after
    `inexact_from` on, memory was short, and micro-batches smaller than the recipe's.
    """

    mixture: Digest
    shard: Digest
    trains: MixtureTrains
    losses: RouterLosses
    train: TrainSpec
    tokens: Positive
    train_seconds: Amount
    loss: Number
    inexact_from: InexactFrom = None


class MixtureFacts(Value):
    """A mixture: how it was made, of what, and what came of it.

    `owned` are the parts that the experts own, beside their FFNs. `parameters` counts all weights,
    `shared_parameters` those of no expert, the router's among them. `tokenizer` are the digests of
    the tokenizer's files. `warning` says what is wrong with the router, if anything is. `tunings`
    are the trainings since.
    """

    format: Literal[1] = 1
    recipe: Recipe
    owned: Items[Part]
    seed: SeedFacts
    experts: Items[ExpertFacts] = Field(min_length=1)
    tokenizer: dict[str, Digest]
    parameters: Positive
    shared_parameters: Count
    warning: str | None = None
    tunings: Items[Tuning] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names, by their numbers."""
        return tuple(expert.name for expert in self.experts)

    def lost(self, name: str) -> tuple[Part, ...]:
        """The parts that an expert had changed and does not own: the mixture shares others."""
        expert = next(one for one in self.experts if one.name == name)
        return tuple(part for part in expert.changed(self.seed) if part not in self.owned)

    def to_bytes(self) -> bytes:
        """What mixture.json holds."""
        return (self.model_dump_json(indent=1) + "\n").encode()


def read_facts(folder: Path) -> MixtureFacts:
    """The facts of the mixture in `folder`. Raises MixingError where there is none."""
    path = folder / FACTS
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise MixingError(f"{path}: expected at most {_MAX_BYTES} bytes")
        return MixtureFacts.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MixingError(f"{folder}: no mixture: {FACTS}: {error.strerror}") from error
    except ValidationError as error:
        item = error.errors()[0]
        key = ".".join(map(str, item["loc"]))
        raise MixingError(f"{path}: {key}: {item['msg']}, got {item['input']!r:.80}") from error
