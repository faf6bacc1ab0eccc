"""From ingredients to a mixture: what fits is planned, then written."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from protocol.specs import ModelShape
from shared.mixing.facts import ExpertFacts, MixtureFacts, Parts, SeedFacts
from shared.mixing.ingredients import (
    SEED,
    Ingredient,
    MixingError,
    Reader,
    check_fit,
    survey,
    untied,
)
from shared.mixing.names import part_of
from shared.mixing.others import shared_reader, shared_width
from shared.mixing.progress import Counter, Stage, counted, silent
from shared.mixing.recipe import Part, Recipe
from shared.mixing.router_tensors import Known, check_statistics, router_tensors
from shared.mixing.statistics import ExpertStatistics
from shared.mixing.writing import Assembly, Tokens, write_mixture
from shared.sizing import num_parameters
from shared.tensorfiles import model_tensors
from shared.text.vocabulary import Vocabulary


def make_mixture(
    ingredients: Sequence[Ingredient],
    seed: Ingredient,
    recipe: Recipe,
    *,
    statistics: Mapping[str, ExpertStatistics],
    vocabulary: Vocabulary,
    into: Path,
) -> MixtureFacts:
    """Mix `ingredients` into the folder `into`, which must not be there: whole, or not at all.

    `statistics`, by expert, are needed as far as the recipe's router is made of them; with an
    anchor those of `seed` too. All that are given are kept in the folder. Raises MixingError for
    what does not fit, TensorFileError and OSError.
    """
    known = Known(statistics, {})
    plan = plan_mixture(ingredients, seed, recipe, known=known, vocabulary=vocabulary)
    return write_mixture(plan, into)


def plan_mixture(
    ingredients: Sequence[Ingredient],
    seed: Ingredient,
    recipe: Recipe,
    *,
    known: Known,
    vocabulary: Vocabulary,
    stage: Stage = silent,
) -> Assembly:
    """All that a mixture is written from, each weight read and found to be a number.

    Its `facts` and `configuration` say what the mixture will be. `stage` is told the weights that
    are read. Raises MixingError as `make_mixture` does.
    """
    check_fit(ingredients, seed)
    if SEED in (one.name for one in ingredients):
        raise MixingError(f"experts: {SEED!r} is what the seed is called: expected another name")
    experts = [replace(seed, name=SEED), *ingredients] if recipe.anchor else list(ingredients)
    names = [one.name for one in experts]
    check_recipe(recipe, names, seed.shape)
    check_statistics(seed.shape, names, known)
    router = router_tensors(recipe, names, seed.shape, known)
    facts, seed_facts = _surveyed(experts, seed, stage)
    owned = recipe.parts_owned({one.name: one.changed(seed_facts) for one in facts})
    for one, its_facts in zip(experts, facts, strict=True):
        if one.is_adapter and recipe.shared_from == "seed":
            check_adapter(one, untied(seed.read, seed.forms), its_facts.changed(seed_facts), owned)
    return Assembly(
        recipe=recipe,
        owned=owned,
        seed=seed_facts,
        experts=facts,
        base_width=shared_width(recipe, seed, experts),
        shared=shared_reader(recipe, seed, experts),
        own=tuple(untied(one.read, one.forms) for one in experts),
        router=router,
        statistics=dict(known.statistics),
        tokens=Tokens(vocabulary.bos_id, vocabulary.eos_id, vocabulary.write_hf),
    )


def check_recipe(recipe: Recipe, names: Sequence[str], shape: ModelShape) -> None:
    """Raises MixingError where a recipe asks for experts or layers that there are not."""
    router, layers = recipe.router, recipe.expert_layers
    if router.selection == "top_k" and router.top_k > len(names):
        raise MixingError(
            f"router.top_k {router.top_k}: expected at most {len(names)}, all experts"
        )
    if router.always_on is not None and router.always_on not in names:
        raise MixingError(f"router.always_on {router.always_on!r}: expected one of {list(names)}")
    if layers is not None and layers[-1] >= shape.num_layers:
        raise MixingError(
            f"expert_layers {list(layers)}: expected layers up to {shape.num_layers - 1}"
        )


def expert_facts(one: Ingredient, parts: Parts | None = None) -> ExpertFacts:
    """What is known of an expert. Raises MixingError for NaN.

    Reads all of its weights, unless the digests of its `parts` are known.
    """
    return ExpertFacts(
        name=one.name,
        domain=one.domain,
        ffn_width=one.shape.ffn_width,
        parts=survey(one) if parts is None else parts,
        origin=one.origin,
        files=dict(one.files),
    )


def check_adapter(
    one: Ingredient, shared: Reader, changed: Sequence[Part], owned: Sequence[Part]
) -> None:
    """Raises MixingError where an adapter changed what the mixture takes from the seed.

    `shared` reads the seed's weights. The message names the first tensor that differs.
    """
    lost = [part for part in changed if part not in owned]
    for name in model_tensors(one.shape):
        if part_of(name) in lost and not np.array_equal(one.read(name), shared(name)):
            raise MixingError(
                f"{one.name}: its adapter changes tensor {name}, which the recipe shares: expected "
                f"{part_of(name)!r} among what experts own, or owned 'auto'"
            )


def _surveyed(
    experts: Sequence[Ingredient], seed: Ingredient, stage: Stage
) -> tuple[tuple[ExpertFacts, ...], SeedFacts]:
    read = [seed, *(one for one in experts if one.name != SEED)]
    counter = Counter(stage("reading the experts"), sum(num_parameters(one.shape) for one in read))
    parts = survey(counted(seed, counter))
    seed_facts = SeedFacts(
        shape=seed.shape,
        parts=parts,
        vocabulary=seed.vocabulary,
        origin=seed.origin,
        files=dict(seed.files),
    )
    facts = [
        expert_facts(one, parts) if one.name == SEED else expert_facts(counted(one, counter))
        for one in experts
    ]
    return tuple(facts), seed_facts
