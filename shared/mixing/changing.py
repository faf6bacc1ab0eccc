"""An expert joins a mixture, leaves it, or takes another's place: file to file, the rest untouched.

What comes out is, byte for byte, what making it anew of the same experts would give. That needs
none of the other experts' own files: a mixture keeps all that it was made of. Only where its shared
weights are the experts' mean, or where it was trained as one, each expert is in all of it; then it
has to be made again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.mixing.agreement import check_agreement, damage_in
from shared.mixing.carrying import carried_statistics, carried_tokens, check_statistics_of
from shared.mixing.facts import ExpertFacts, MixtureFacts, read_facts
from shared.mixing.ingredients import (
    SEED,
    Floats,
    Ingredient,
    MixingError,
    Reader,
    check_fit,
    check_names,
    untied,
)
from shared.mixing.making import check_adapter, check_recipe, expert_facts
from shared.mixing.names import expert_name
from shared.mixing.opening import mixture_tensors, read_config
from shared.mixing.progress import Counter, Stage, counted, silent
from shared.mixing.recipe import Recipe
from shared.mixing.router_tensors import Arrays, Known, check_statistics, router_tensors
from shared.mixing.router_tensors import Floats as States
from shared.mixing.statistics import ExpertStatistics
from shared.mixing.writing import WEIGHTS, Assembly, Tokens, write_mixture
from shared.sizing import num_parameters
from shared.tensorfiles import check_file, check_finite, model_tensors, read_tensors

_HEAD, _EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class _Member:
    """An expert of the mixture to be: its number in the old one, or how it is read if it is new."""

    facts: ExpertFacts
    number: int | None
    read: Reader


@dataclass(frozen=True)
class _Mixture:
    """A mixture on disk, its tensors mapped."""

    folder: Path
    facts: MixtureFacts
    tensors: Mapping[str, npt.NDArray[Any]]
    statistics: Mapping[str, ExpertStatistics]
    tokens: Tokens

    def read(self, name: str, expert: int) -> Floats:
        """What an expert of this number computes with, its own or shared, by its Llama name."""
        for known_as in self._known_as(name):
            for here in (expert_name(known_as, expert), known_as):
                if here in self.tensors:
                    return self.tensors[here]
        raise MixingError(f"{self.folder / WEIGHTS}: tensor {name} is missing")

    def shares(self, name: str) -> bool:
        """Whether a Llama's tensor of this name is no expert's."""
        return any(known_as in self.tensors for known_as in self._known_as(name))

    def _known_as(self, name: str) -> tuple[str, ...]:
        """A tied head is the embeddings."""
        tied = self.facts.seed.shape.tied_embeddings and name == _HEAD
        return (name, _EMBEDDINGS) if tied else (name,)

    @property
    def members(self) -> list[_Member]:
        """The experts as they are."""
        return [
            _Member(facts, number, partial(self.read, expert=number))
            for number, facts in enumerate(self.facts.experts)
        ]


def add_expert(
    folder: Path,
    ingredient: Ingredient,
    *,
    statistics: ExpertStatistics | None,
    into: Path,
    prompts: States | None = None,
    stage: Stage = silent,
) -> MixtureFacts:
    """Write the mixture in `folder` with one more expert, the last, into the new folder `into`.

    `statistics` and `prompts` are what its router has to know of it, as in `Known`; `stage` is told
    the weights that are read and written. Raises MixingError as `make_mixture` does, and for a
    mixture that has to be made again.
    """
    mixture = _open(folder, stage)
    members = [*mixture.members, _joining(mixture, ingredient, stage)]
    return _write(mixture, members, into, new=(statistics, prompts), stage=stage)


def remove_expert(folder: Path, name: str, *, into: Path, stage: Stage = silent) -> MixtureFacts:
    """Write the mixture in `folder` without the expert `name` into the new folder `into`.

    Nothing of it remains. Without `seed` there is no anchor any more. Raises MixingError where
    there is no such expert or no other, and for a mixture that has to be made again.
    """
    mixture = _open(folder, stage)
    _number(mixture, name)
    members = [one for one in mixture.members if one.facts.name != name]
    if not members:
        raise MixingError(f"experts: {name!r} is the only one, expected another beside it")
    return _write(mixture, members, into, stage=stage)


def replace_expert(
    folder: Path,
    ingredient: Ingredient,
    *,
    statistics: ExpertStatistics | None,
    into: Path,
    prompts: States | None = None,
    stage: Stage = silent,
) -> MixtureFacts:
    """Write the mixture in `folder` with another expert in place of the one of the same name.

    Otherwise as `add_expert`; nothing of the one before remains.
    """
    mixture = _open(folder, stage)
    number = _number(mixture, ingredient.name)
    members = mixture.members
    members[number] = _joining(mixture, ingredient, stage)
    return _write(mixture, members, into, new=(statistics, prompts), stage=stage)


def _open(folder: Path, stage: Stage) -> _Mixture:
    """Raises MixingError for a mixture that no expert can join or leave, or that is damaged."""
    facts = read_facts(folder)
    if facts.recipe.shared_from != "seed":
        raise MixingError(
            f"{folder}: shared_from {facts.recipe.shared_from!r}: each expert is part of what all "
            f"share: make the mixture again of the experts that it is to have"
        )
    if facts.tunings:
        raise MixingError(
            f"{folder}: it was trained as one since (trains {facts.tunings[-1].trains!r}): make "
            f"the mixture again of the experts that it is to have, and train that"
        )
    config = read_config(folder)
    check_agreement(folder, facts, config)
    with damage_in(folder):
        check_file(folder / WEIGHTS, mixture_tensors(config))
        check_finite(folder / WEIGHTS, progress=stage("reading the mixture"))
    return _Mixture(
        folder,
        facts,
        read_tensors(folder / WEIGHTS),
        carried_statistics(folder, facts),
        carried_tokens(folder, facts, config),
    )


def _number(mixture: _Mixture, name: str) -> int:
    names = mixture.facts.names
    if name not in names:
        raise MixingError(f"experts: {name!r}, expected one of {list(names)}")
    return names.index(name)


def _joining(mixture: _Mixture, ingredient: Ingredient, stage: Stage) -> _Member:
    """The ingredient as a member, once it was found to fit."""
    seed = mixture.facts.seed
    if ingredient.name == SEED:
        raise MixingError(f"experts: {SEED!r} is what the seed is called: expected another name")
    stand_in = Ingredient(
        name=SEED,
        domain=SEED,
        shape=seed.shape,
        forms=model_tensors(seed.shape),
        read=lambda name: mixture.read(name, 0),
        vocabulary=seed.vocabulary,
        origin=seed.origin,
        files=seed.files,
    )
    check_fit([ingredient], stand_in)
    total = num_parameters(ingredient.shape)
    counter = Counter(stage(f"reading {ingredient.name}"), total)
    facts, recipe = expert_facts(counted(ingredient, counter)), mixture.facts.recipe
    owned = recipe.parts_owned({facts.name: facts.changed(seed)})
    if ingredient.is_adapter:
        check_adapter(ingredient, stand_in.read, facts.changed(seed), owned)
    return _Member(facts, None, untied(ingredient.read, ingredient.forms))


def _write(
    mixture: _Mixture,
    members: Sequence[_Member],
    into: Path,
    *,
    new: tuple[ExpertStatistics | None, States | None] = (None, None),
    stage: Stage,
) -> MixtureFacts:
    seed, names = mixture.facts.seed, [one.facts.name for one in members]
    check_names(names)
    recipe = mixture.facts.recipe.model_copy(update={"anchor": SEED in names})
    check_recipe(recipe, names, seed.shape)
    known = _known(mixture, members, new)
    check_statistics(seed.shape, names, known)
    assembly = Assembly(
        recipe=recipe,
        owned=recipe.parts_owned({one.facts.name: one.facts.changed(seed) for one in members}),
        seed=seed,
        experts=tuple(one.facts for one in members),
        base_width=seed.shape.ffn_width,
        shared=_shared(mixture, members),
        own=tuple(one.read for one in members),
        router=_router(mixture, members, recipe, known),
        statistics=known.statistics,
        tokens=mixture.tokens,
    )
    return write_mixture(assembly, into, stage=stage)


def _known(
    mixture: _Mixture,
    members: Sequence[_Member],
    new: tuple[ExpertStatistics | None, States | None],
) -> Known:
    kept = {one.facts.name for one in members if one.number is not None}
    check_statistics_of(mixture.folder, mixture.facts, kept, mixture.statistics)
    statistics = {name: one for name, one in mixture.statistics.items() if name in kept}
    prompts: dict[str, States] = {}
    for one in members:
        if one.number is None:
            statistics |= {} if new[0] is None else {one.facts.name: new[0]}
            prompts |= {} if new[1] is None else {one.facts.name: new[1]}
    return Known(statistics, prompts)


def _shared(mixture: _Mixture, members: Sequence[_Member]) -> Reader:
    """The seed's weights. In a part that no one owns any more every expert has them."""
    return lambda name: mixture.read(name, 0) if mixture.shares(name) else members[0].read(name)


def _router(mixture: _Mixture, members: Sequence[_Member], recipe: Recipe, known: Known) -> Arrays:
    """The router's tensors. Of prompts a mixture keeps the rows alone, each its expert's own."""
    names, shape = [one.facts.name for one in members], mixture.facts.seed.shape
    if recipe.router.source != "prompts":
        return router_tensors(recipe, names, shape, known)
    fresh = [name for name, one in zip(names, members, strict=True) if one.number is None]
    joining = router_tensors(recipe, fresh, shape, known) if fresh else {}
    return {
        name: np.stack(
            [joining[name][0] if one.number is None else old[one.number] for one in members]
        )
        for name, old in mixture.tensors.items()
        if ".router." in name
    }
