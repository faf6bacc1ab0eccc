"""The run file: one TOML that describes a run, checked whole before anything starts."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator
from typing_extensions import override

from coordinator.planning.checks import plan_problems
from coordinator.planning.sizes import size_problems
from coordinator.pretrained.checks import seed_problems
from coordinator.runfile_errors import RunFileError, problems_of
from coordinator.scoring.outcome import ALL, HELD_OUT, OWN
from coordinator.sections import (
    Dense,
    Evaluation,
    LedgerPlace,
    Listen,
    OwnData,
    Plan,
    Ranks,
    Recipe,
    Run,
    Seed,
    SeedRecipe,
    Shape,
    Timing,
    Tokenizer,
    Trust,
    WidthLabel,
    Widths,
)
from coordinator.text import catalogue
from coordinator.text_sections import Domain, Section, Text
from protocol.ids import DomainId, WorkerId

__all__ = ["GENERAL", "MIXED", "RunFile", "RunFileError", "load_run_file", "rehearsed"]

GENERAL = "general"
"""The domain of the general text, which seeds are trained on."""

MIXED = "mixed"
"""The text that the dense baseline is trained on: all trained domains'."""

MAX_RUN_FILE_BYTES = 1_000_000


def rehearsed(domain: str) -> str:
    """The name of the shard that has `domain` and, for rehearsal, the lineage's earlier domains."""
    return f"{domain}.rehearsed"


class RunFile(Section):
    """A whole run file. `origin` is the folder it lies in: relative paths start there."""

    run: Run
    listen: Listen = Listen()
    timing: Timing = Timing()
    ledger: LedgerPlace = LedgerPlace()
    membership: Annotated[Trust, Field(alias="trust")] = Trust()
    tokenizer: Tokenizer = Tokenizer()
    shape: Shape
    widths: Widths
    ranks: Ranks | None = None
    general: Text
    domains: Annotated[dict[DomainId, Domain], Field(min_length=1, max_length=1000)]
    seed: Seed
    recipe: Recipe
    plan: Plan
    dense: Dense | None = None
    evaluation: Evaluation = Evaluation()
    own_data: OwnData | None = None

    _origin: Path = PrivateAttr(default_factory=Path.cwd)

    @override
    def model_post_init(self, context: Any, /) -> None:
        """Keep the run file's folder, which the context names."""
        if isinstance(context, dict):
            self._origin = context["origin"]

    @property
    def origin(self) -> Path:
        """The folder that the run file lies in, absolute."""
        return self._origin

    @property
    def folder(self) -> Path:
        """The folder of the run's keys and state, absolute."""
        return (self._origin / self.run.folder).resolve()

    @property
    def trained(self) -> tuple[str, ...]:
        """The domains that experts train on, by name."""
        return tuple(sorted(name for name, one in self.domains.items() if one.role == "trained"))

    @property
    def most_steps(self) -> int:
        """The most steps that the plan may give an expert."""
        most = [self.plan.homogeneous_steps]
        if self.plan.steps is not None:
            most += self.plan.steps.model_dump().values()
        if "adaptive" in self.plan.schemes and self.recipe.schedule_steps is not None:
            most.append(self.recipe.schedule_steps)
        return max(most)

    @property
    def enrolment(self) -> Literal["open", "invite"]:
        """Whether anyone may join, or only who has an invite."""
        return self.membership.enrolment

    @property
    def trust(self) -> Literal["all"] | tuple[WorkerId, ...]:
        """The workers that seeds may be given to."""
        return self.membership.workers

    @model_validator(mode="before")
    @classmethod
    def _catalogue_is_spelled_out(cls, data: Any) -> Any:
        return _spelled_out(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems = [
            *_name_problems(self),
            *_text_problems(self),
            *_shape_problems(self),
            *size_problems(self),
            *seed_problems(self.seed, self.tokenizer),
            *_recipe_problems("seed.recipe", self.seed.recipe, self.shape),
            *_recipe_problems("recipe", self.recipe, self.shape),
            *plan_problems(
                self.plan, self.recipe, self.seed, self.dense, self.domains, self.widths
            ),
            *_evaluation_problems(self),
            *_own_data_problems(self),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def width_labels(self) -> tuple[WidthLabel, ...]:
        """The labels that the plan uses, and M, which classes are measured with."""
        used: set[WidthLabel] = {"M"}
        if {"MHe-IHo", "MHe-IHe"} & set(self.plan.schemes):
            used |= {self.plan.widths.easy, self.plan.widths.moderate, self.plan.widths.difficult}
        labels: tuple[WidthLabel, ...] = ("S", "M", "L")
        return tuple(label for label in labels if label in used)


def _spelled_out(data: dict[str, Any]) -> dict[str, Any]:
    """The run file with what the catalogue says, wherever a text names one of its entries."""
    spelled = dict(data)
    if isinstance(data.get(GENERAL), dict):
        spelled[GENERAL] = _one_spelled_out(data[GENERAL])
    if isinstance(data.get("domains"), dict):
        spelled["domains"] = {
            name: _one_spelled_out(text) if isinstance(text, dict) else text
            for name, text in data["domains"].items()
        }
    return spelled


def _one_spelled_out(text: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(text.get("catalogue"), str):
        return text
    # Without sources, _catalogue_problems says what the matter is.
    return {"sources": [], **catalogue.expanded(text)}


def _catalogue_problems(key: str, text: Text) -> list[str]:
    if text.catalogue is None:
        return [] if text.sources else [f"{key}.sources: expected at least one"]
    problem = catalogue.problem_of(text.catalogue)
    if problem is not None:
        return [f"{key}.catalogue = {problem} (`hdee-coordinator corpora list`)"]
    if list(text.sources) != list(catalogue.catalogue().texts[text.catalogue].sources):
        return [f"{key}: catalogue {text.catalogue!r} and sources: expected one of them"]
    return []


def _name_problems(run: RunFile) -> list[str]:
    taken = {GENERAL: "the general text", MIXED: "the dense baseline's text"}
    taken |= dict.fromkeys((OWN, HELD_OUT, ALL), "a group of domains in the results")
    taken |= {rehearsed(name): f"the text that rehearses for {name}" for name in run.domains}
    return [
        f"domains.{name}: this name is that of {what}, expected another"
        for name, what in taken.items()
        if name in run.domains
    ]


def _evaluation_problems(run: RunFile) -> list[str]:
    if not run.evaluation.weight_averages or run.seed.kind != "per-size":
        return []
    return [
        "evaluation.weight_averages: true with seed.kind 'per-size': seeds that were trained apart "
        "have no basis in common; expected false, or 'nested' or 'pretrained'"
    ]


def _own_data_problems(run: RunFile) -> list[str]:
    own, recipe = run.own_data, run.recipe
    if own is None:
        return []
    problems = []
    if recipe.schedule_steps is not None and own.steps > recipe.schedule_steps:
        problems.append(
            f"own_data.steps: {own.steps} is more than recipe.schedule_steps "
            f"{recipe.schedule_steps}"
        )
    if recipe.warmup_steps > own.steps:
        problems.append(
            f"own_data.steps: {own.steps} is less than recipe.warmup_steps {recipe.warmup_steps}"
        )
    if run.seed.kind == "per-size" and own.width not in run.width_labels():
        problems.append(
            f"own_data.width: {own.width!r}: the plan trains no seed of this width, expected one "
            f"of {list(run.width_labels())}"
        )
    return problems


def _text_problems(run: RunFile) -> list[str]:
    problems = []
    texts = {
        GENERAL: run.general,
        **{f"domains.{name}": text for name, text in run.domains.items()},
    }
    for key, text in texts.items():
        problems += _catalogue_problems(key, text)
    problems += [
        f"{key}: min_chars {text.min_chars} is more than max_chars {text.max_chars}"
        for key, text in texts.items()
        if text.min_chars > text.max_chars
    ]
    return problems


def _shape_problems(run: RunFile) -> list[str]:
    problems = []
    shape = run.shape
    if shape.hidden_size % (2 * shape.num_heads):
        problems.append(
            f"shape: hidden_size {shape.hidden_size}: expected an even multiple of num_heads "
            f"{shape.num_heads}"
        )
    if shape.num_heads % (shape.num_kv_heads or shape.num_heads):
        problems.append(
            f"shape: num_kv_heads {shape.num_kv_heads}: expected a divisor of num_heads "
            f"{shape.num_heads}"
        )
    return problems


def _recipe_problems(key: str, recipe: SeedRecipe | Recipe | None, shape: Shape) -> list[str]:
    if recipe is None:
        return []
    problems = []
    if recipe.sequence_length > shape.context_length:
        problems.append(
            f"{key}: sequence_length {recipe.sequence_length} is more than shape.context_length "
            f"{shape.context_length}"
        )
    if recipe.final_learning_rate > recipe.peak_learning_rate:
        problems.append(
            f"{key}: final_learning_rate {recipe.final_learning_rate} is more than "
            f"peak_learning_rate {recipe.peak_learning_rate}"
        )
    if isinstance(recipe, SeedRecipe) and recipe.warmup_steps > recipe.num_steps:
        problems.append(
            f"{key}: warmup_steps {recipe.warmup_steps} is more than num_steps {recipe.num_steps}"
        )
    return problems


def load_run_file(path: Path) -> RunFile:
    """Read and check the run file at `path`.

    Raises RunFileError, which lists every problem with its key, its value and what was expected.
    """
    path = path.absolute()
    try:
        size = path.stat().st_size
        if size > MAX_RUN_FILE_BYTES:
            raise RunFileError(path, [f"{size} bytes: expected at most {MAX_RUN_FILE_BYTES}"])
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFileError(path, [f"cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise RunFileError(path, [f"not UTF-8: {error}"]) from error
    except tomllib.TOMLDecodeError as error:
        raise RunFileError(path, [f"not TOML: {error}"]) from error
    try:
        return RunFile.model_validate(data, context={"origin": path.parent})
    except ValidationError as error:
        raise RunFileError(path, problems_of(error, RunFile)) from error
