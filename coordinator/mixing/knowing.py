"""What a mixture's routers have to know of an expert: sums over text of its domain, or prompts.

Counts of tokens cost a reading of the text. Hidden states cost forward passes through the mixture
with all of the text forced through the expert; what its router would be does not matter there.
"""

import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.mixing.agreement import damage_in
from shared.mixing.evidence import TokenCounts, count_tokens
from shared.mixing.facts import read_facts
from shared.mixing.hidden_states import hidden_products, prompt_states, spread_windows
from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM
from shared.mixing.ingredients import SEED, Floats, Ingredient, MixingError
from shared.mixing.making import make_mixture
from shared.mixing.opening import open_mixture, read_config
from shared.mixing.progress import Stage, Tell, silent, untold
from shared.mixing.recipe import Recipe, RouterRecipe
from shared.mixing.router_tensors import Floats as States
from shared.mixing.statistics import ExpertStatistics
from shared.mixing.writing import WEIGHTS
from shared.shards import Shard
from shared.tensorfiles import model_tensors, read_tensors
from shared.text.tokenizer import TokenizerError
from shared.text.vocabulary import Vocabulary, open_vocabulary, read_given

HIDDEN_WINDOWS = 256
"""Windows of one context whose hidden states are summed for each expert."""

HIDDEN_BATCH = 8
GATELESS = RouterRecipe(kind="gateless", source="none")

_MAX_BYTES = 1_000_000

Texts = Mapping[str, Shard]
"""Text of one domain: shards by their digests."""


@dataclass(frozen=True)
class Prompts:
    """Texts with which an expert's router is to turn to it, and those with which it is not."""

    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()


def sum_counts(
    texts: Texts, *, vocab_size: int, num_pairs: int, tell: Tell = untold
) -> TokenCounts:
    """Of all texts of a domain, of which there is at least one. `tell` counts windows."""
    counts = [
        count_tokens(shard, vocab_size=vocab_size, num_pairs=num_pairs, progress=progress)
        for shard, progress in _shared_out(texts, tell)
    ]
    return sum(counts[1:], counts[0])


def sum_hidden(
    model: HdeeMoeForCausalLM, texts: Texts, *, expert: str, tell: Tell = untold
) -> States:
    """Products of hidden states over HIDDEN_WINDOWS windows of a domain's text, spread over it.

    `tell` counts windows.
    """
    length = model.config.max_position_embeddings
    most = max(1, HIDDEN_WINDOWS // len(texts))
    total = None
    for shard, progress in _shared_out(texts, tell):
        windows = spread_windows(shard, length=length, most=most)
        found = hidden_products(
            model, shard, windows, expert=expert, batch=HIDDEN_BATCH, progress=progress
        )
        total = found if total is None else total + found
    assert total is not None, "there is text"
    return total


def _shared_out(texts: Texts, tell: Tell) -> Iterator[tuple[Shard, Tell]]:
    """Each shard, and what to tell of it, so that all of them together are told of as one."""
    parts = 1000
    tell(0, parts * len(texts))
    for number, shard in enumerate(texts.values()):

        def progress(done: int, total: int, before: int = parts * number) -> None:
            tell(before + parts * done // total, parts * len(texts))

        yield shard, progress


def prompted(
    model: HdeeMoeForCausalLM, prompts: Prompts, *, expert: str, vocabulary: Vocabulary
) -> States:
    """Mean hidden states of an expert's prompts, less those of the negative ones."""

    def states(texts: tuple[str, ...]) -> States:
        ids = [[vocabulary.bos_id, *one] for one in vocabulary.encode(texts)]
        try:
            return prompt_states(model, ids, expert=expert)
        except ValueError as error:
            raise MixingError(f"prompts of {expert!r}: {error}") from error

    found = states(prompts.positive)
    return found - states(prompts.negative) if prompts.negative else found


def read_prompts(path: Path) -> dict[str, Prompts]:
    """Prompts by expert from TOML: `[law]`, `positive = ["..."]`, `negative = ["..."]`.

    Raises MixingError naming file, expert and key.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise MixingError(f"{path}: expected at most {_MAX_BYTES} bytes")
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise MixingError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise MixingError(f"{path}: no TOML: {error}") from error
    return {name: _prompts(table, f"{path}: {name}") for name, table in tables.items()}


def _prompts(table: object, where: str) -> Prompts:
    if not isinstance(table, dict) or not table.keys() <= {"positive", "negative"}:
        raise MixingError(f"{where}: {table!r:.80}: expected a table of positive and negative")
    texts = {}
    for key in ("positive", "negative"):
        found = table.get(key, [])
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise MixingError(f"{where}.{key} = {found!r:.80}: expected a list of texts")
        texts[key] = tuple(found)
    if not texts["positive"]:
        raise MixingError(f"{where}.positive: none, expected at least one text")
    return Prompts(**texts)


def folder_vocabulary(folder: Path) -> Vocabulary:
    """The tokenizer in a mixture's folder. Raises MixingError without a usable one."""
    config = read_config(folder)
    bos, eos = config.bos_token_id, config.eos_token_id
    if not isinstance(bos, int) or not isinstance(eos, int):
        raise MixingError(f"{folder}: bos_token_id {bos}, eos_token_id {eos}: expected one id each")
    for name in ("tokenizer.model", "tokenizer.json"):
        if (folder / name).exists():
            try:
                return open_vocabulary(read_given(folder / name, bos_id=bos, eos_id=eos))
            except TokenizerError as error:
                raise MixingError(str(error)) from error
    raise MixingError(f"{folder}: has neither tokenizer.model nor tokenizer.json")


def check_texts(texts: Mapping[str, Texts], recipe: Recipe) -> None:
    """Raises MixingError for an expert without text, where the recipe's router is made of text."""
    source = recipe.router.source
    for name, some in texts.items():
        if not some and source in ("counts", "hidden", "ridge"):
            raise MixingError(
                f"{name}: no text of its domain, of which a {recipe.router.kind} router from "
                f"{source} is made: name some, such as --text {name}=FILE with mix make, or --text "
                "FILE with mix add"
            )


def joining_statistics(
    folder: Path, ingredient: Ingredient, texts: Texts, *, stage: Stage = silent
) -> ExpertStatistics | None:
    """What the mixture in `folder` has to know of an expert that joins it; None without text.

    Hidden states only where its router is made of them. Raises MixingError for what does not fit,
    and without text where that is needed.
    """
    facts = read_facts(folder)
    check_texts({ingredient.name: texts}, facts.recipe)
    if not texts:
        return None
    tokens = sum_counts(
        texts,
        vocab_size=facts.seed.shape.vocab_size,
        num_pairs=facts.recipe.router.num_pairs,
        tell=stage(f"counting tokens of {ingredient.name}"),
    )
    if facts.recipe.router.source not in ("hidden", "ridge"):
        return ExpertStatistics(tokens)
    with tempfile.TemporaryDirectory() as work:
        model = _alone(folder, ingredient, Path(work) / "alone")
        tell = stage(f"hidden states of {ingredient.name}")
        return ExpertStatistics(tokens, sum_hidden(model, texts, expert=ingredient.name, tell=tell))


def joining_prompts(folder: Path, ingredient: Ingredient, prompts: Prompts) -> States:
    """The prompts' hidden states in the expert as it will be in the mixture in `folder`."""
    with tempfile.TemporaryDirectory() as work:
        model = _alone(folder, ingredient, Path(work) / "alone")
        vocabulary = folder_vocabulary(folder)
        return prompted(model, prompts, expert=ingredient.name, vocabulary=vocabulary)


def _alone(folder: Path, ingredient: Ingredient, into: Path) -> HdeeMoeForCausalLM:
    """The expert alone on what the mixture shares, which routers in the layers leave whole."""
    facts = read_facts(folder)
    with damage_in(folder):
        tensors = read_tensors(folder / WEIGHTS)
    shape = facts.seed.shape
    forms = model_tensors(shape)

    def shared(name: str) -> Floats:
        # The seed's own FFNs are nobody's where every layer has experts'.
        return tensors[name] if name in tensors else np.zeros(forms[name][1], dtype=np.float32)

    seed = Ingredient(
        name=SEED,
        domain=SEED,
        shape=shape,
        forms=forms,
        read=shared,
        vocabulary=facts.seed.vocabulary,
        origin=facts.seed.origin,
        files=facts.seed.files,
    )
    recipe = Recipe(owned=(), expert_layers=facts.recipe.expert_layers, router=GATELESS)
    vocabulary = folder_vocabulary(folder)
    make_mixture([ingredient], seed, recipe, statistics={}, vocabulary=vocabulary, into=into)
    return open_mixture(into)
