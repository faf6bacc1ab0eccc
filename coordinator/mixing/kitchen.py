"""Makes mixtures of a run's experts: ingredients, what routers know of their text, and the rest.

Hidden states are computed for recipes that want them, once for each way to share weights.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

from coordinator.mixing.adapters import file_digest
from coordinator.mixing.contenders import Contender, Scorer
from coordinator.mixing.ingredients import vocabulary_digest
from coordinator.mixing.knowing import (
    GATELESS,
    Prompts,
    Texts,
    check_texts,
    prompted,
    sum_counts,
    sum_hidden,
)
from coordinator.mixing.members import Guest, member_ingredient, train_texts
from coordinator.mixing.run import FinishedRun, Member
from protocol.digests import digest_bytes, digest_value
from shared import mixing
from shared.mixing.agreement import damage_in
from shared.mixing.evidence import TokenCounts
from shared.mixing.facts import MixtureFacts
from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM
from shared.mixing.ingredients import SEED, Ingredient, MixingError, check_fit
from shared.mixing.making import check_recipe, plan_mixture
from shared.mixing.opening import open_mixture, read_config, reconfigured
from shared.mixing.progress import Stage, silent
from shared.mixing.recipe import Recipe, RouterRecipe
from shared.mixing.router_tensors import Floats as States
from shared.mixing.router_tensors import Known
from shared.mixing.scoring import mixture_log_likelihoods
from shared.mixing.statistics import ExpertStatistics
from shared.mixing.writing import WEIGHTS, Assembly, write_mixture

_WORK = ".mixing-"
"""Begins the name of a folder for what is kept on the way; the process's number follows."""

_WEIGHING = ("kind", "source", "bias", "hidden_size", "smoothing", "pairs", "ridge", "rng_seed")
"""Fields of a router's recipe that its tensors follow from; all others are settings."""


class Kitchen:
    """Makes mixtures of these experts. Use `with`: what it keeps on the way is removed."""

    def __init__(
        self,
        run: FinishedRun,
        members: Sequence[Member],
        *,
        guests: Sequence[Guest] = (),
        prompts: Mapping[str, Prompts] | None = None,
        stage: Stage = silent,
    ) -> None:
        self.vocabulary = run.vocabulary
        known_as = vocabulary_digest(self.vocabulary)
        self.seed = member_ingredient(run.seed, known_as)
        self.ingredients = [member_ingredient(one, known_as) for one in members]
        self.ingredients += [guest.ingredient for guest in guests]
        self._run = run
        self._prompts = prompts or {}
        self._stage = stage
        self._texts: dict[str, Texts] = {
            one.name: train_texts(run, one) for one in (run.seed, *members)
        }
        self._texts |= {guest.ingredient.name: guest.texts for guest in guests}
        self._counts: dict[tuple[str, int], TokenCounts] = {}
        self._hidden: dict[str, dict[str, States]] = {}
        self._opened: _Opened | None = None
        sweep(run.folders.state)
        self._work = Path(tempfile.mkdtemp(prefix=f"{_WORK}{os.getpid()}-", dir=run.folders.state))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._work, ignore_errors=True)

    def plan(self, recipe: Recipe) -> Assembly:
        """What the mixture will be. Raises MixingError for what does not fit."""
        names = [one.name for one in self.ingredients]
        if recipe.anchor:
            names = [SEED, *names]
        check_fit(self.ingredients, self.seed)
        check_texts({name: self._texts[name] for name in names}, recipe)
        hidden = self._hidden_of(recipe) if recipe.router.source in ("hidden", "ridge") else {}
        statistics = {
            name: ExpertStatistics(self._counts_of(name, recipe.router.num_pairs), hidden.get(name))
            for name in names
            if self._texts[name]
        }
        prompts = self._prompted(recipe) if recipe.router.source == "prompts" else {}
        return plan_mixture(
            self.ingredients,
            self.seed,
            recipe,
            known=Known(statistics, prompts),
            vocabulary=self.vocabulary,
            stage=self._stage,
        )

    def make(self, recipe: Recipe, into: Path) -> MixtureFacts:
        """Write the mixture's folder, whole or not at all. Raises MixingError, OSError."""
        return write_mixture(self.plan(recipe), into, stage=self._stage)

    def open(self, recipe: Recipe) -> HdeeMoeForCausalLM:
        """The model of a recipe. Those that differ in their settings alone are made once."""
        basis = without_settings(recipe)
        key = digest_value(basis)
        if self._opened is None or self._opened.key != key:
            plan = self.plan(basis)
            folder = self._work / key
            write_mixture(plan, folder, stage=self._stage)
            self._opened = _Opened(key, plan, open_mixture(folder))
            shutil.rmtree(folder)
        plan, model = self._opened.plan, self._opened.model
        check_recipe(recipe, [one.name for one in plan.experts], self.seed.shape)
        return reconfigured(model, replace(plan, recipe=recipe).configuration())

    def contender(self, name: str, recipe: Recipe) -> Contender:
        """The mixture as something to measure; made when it is. Measuring raises MixingError."""

        def open_contender() -> Scorer:
            return partial(mixture_log_likelihoods, self.open(recipe))

        width = sum(one.shape.ffn_width for one in self.ingredients)
        return Contender(name, self._digest(recipe), width, open_contender)

    def _digest(self, recipe: Recipe) -> str:
        """Of all that a mixture's likelihoods follow from: files, text, recipe, and our code."""
        return digest_value(
            {
                "mixture": recipe.model_dump(mode="json"),
                "seed": _identity(self.seed),
                "experts": [_identity(one) for one in self.ingredients],
                "texts": {name: list(texts) for name, texts in self._texts.items()},
                "code": _code(),
            }
        )

    def _counts_of(self, name: str, num_pairs: int) -> TokenCounts:
        if (name, num_pairs) not in self._counts:
            self._counts[name, num_pairs] = sum_counts(
                self._texts[name],
                vocab_size=self.seed.shape.vocab_size,
                num_pairs=num_pairs,
                tell=self._stage(f"counting tokens of {name}"),
            )
        return self._counts[name, num_pairs]

    def _hidden_of(self, recipe: Recipe) -> dict[str, States]:
        basis = recipe.model_copy(update={"router": GATELESS})
        key = digest_value(basis)
        if key not in self._hidden:
            model = self.open(basis)
            self._hidden[key] = {
                name: sum_hidden(
                    model,
                    self._texts[name],
                    expert=name,
                    tell=self._stage(f"hidden states of {name}"),
                )
                for name in model.config.expert_names
                if self._texts[name]
            }
        return self._hidden[key]

    def _prompted(self, recipe: Recipe) -> dict[str, States]:
        model = self.open(recipe.model_copy(update={"router": GATELESS}))
        names = list(model.config.expert_names)
        for name in self._prompts:
            if name not in names:
                raise MixingError(
                    f"prompts of {name!r}: no expert is called so, expected some of {names}"
                )
        return {
            name: prompted(model, prompts, expert=name, vocabulary=self.vocabulary)
            for name, prompts in self._prompts.items()
        }


def sweep(state: Path) -> None:
    """Removes what processes that were killed while they mixed have left in a run's state."""
    for path in state.glob(f"{_WORK}*"):
        pid = path.name.removeprefix(_WORK).partition("-")[0]
        if not (pid.isdigit() and psutil.pid_exists(int(pid))):
            shutil.rmtree(path, ignore_errors=True)


def folder_contender(name: str, folder: Path) -> Contender:
    """A mixture that is there already. Measuring raises MixingError for what is none."""

    def open_folder() -> Scorer:
        with damage_in(folder):
            return partial(mixture_log_likelihoods, open_mixture(folder))

    config = read_config(folder)
    files = [digest_bytes((folder / "config.json").read_bytes()), file_digest(folder / WEIGHTS)]
    digest = digest_value({"mixture": files, "code": _code()})
    return Contender(name, digest, sum(config.expert_widths), open_folder)


def without_settings(recipe: Recipe) -> Recipe:
    """The recipe of the same weights, with the settings that a recipe has unless it says so."""
    kept = {name: getattr(recipe.router, name) for name in _WEIGHING}
    return recipe.model_copy(update={"router": RouterRecipe(**kept)})


@dataclass(frozen=True)
class _Opened:
    key: str
    plan: Assembly
    model: HdeeMoeForCausalLM


def _identity(one: Ingredient) -> list[Any]:
    return [one.name, one.domain, one.shape.ffn_width, dict(one.files)]


def _code() -> str:
    """Digest of the code that makes mixtures and computes: other code, other likelihoods."""
    files = sorted(Path(mixing.__path__[0]).rglob("*.py"))
    return digest_bytes(b"".join(path.read_bytes() for path in files))
