"""The run file: one TOML that describes a run, checked whole before anything starts."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator
from typing_extensions import override

from coordinator.runfile_errors import RunFileError, problems_of
from coordinator.sections import (
    Domain,
    LedgerPlace,
    Listen,
    Plan,
    Recipe,
    Run,
    Section,
    Seed,
    SeedRecipe,
    Shape,
    Text,
    Timing,
    Tokenizer,
    Trust,
    WidthLabel,
    Widths,
)
from protocol.ids import DomainId, WorkerId

__all__ = ["GENERAL", "RunFile", "RunFileError", "load_run_file"]

GENERAL = "general"
"""The domain of the general text, which seeds are trained on."""

MAX_RUN_FILE_BYTES = 1_000_000


class RunFile(Section):
    """A whole run file. `origin` is the folder it lies in: relative paths start there."""

    run: Run
    listen: Listen = Listen()
    timing: Timing = Timing()
    ledger: LedgerPlace = LedgerPlace()
    membership: Annotated[Trust, Field(alias="trust")] = Trust()
    tokenizer: Tokenizer
    shape: Shape
    widths: Widths
    general: Text
    domains: Annotated[dict[DomainId, Domain], Field(min_length=1, max_length=1000)]
    seed: Seed
    recipe: Recipe
    plan: Plan

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
    def enrolment(self) -> Literal["open", "invite"]:
        """Whether anyone may join, or only who has an invite."""
        return self.membership.enrolment

    @property
    def trust(self) -> Literal["all"] | tuple[WorkerId, ...]:
        """The workers that seeds may be given to."""
        return self.membership.workers

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems = [
            *_text_problems(self),
            *_shape_problems(self),
            *_recipe_problems("seed.recipe", self.seed.recipe, self.shape),
            *_recipe_problems("recipe", self.recipe, self.shape),
            *_plan_problems(self),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def width_labels(self) -> tuple[WidthLabel, ...]:
        """The labels that the plan uses, and M, which classes are measured with."""
        used: set[WidthLabel] = {"M"}
        if "MHe-IHo" in self.plan.schemes:
            used |= {self.plan.widths.easy, self.plan.widths.moderate, self.plan.widths.difficult}
        labels: tuple[WidthLabel, ...] = ("S", "M", "L")
        return tuple(label for label in labels if label in used)


def _text_problems(run: RunFile) -> list[str]:
    problems = []
    if (run.tokenizer.vocab_size is None) == (run.tokenizer.model is None):
        problems.append(
            f"tokenizer: vocab_size {run.tokenizer.vocab_size} and model {run.tokenizer.model}: "
            "expected exactly one of them"
        )
    if GENERAL in run.domains:
        problems.append(f"domains.{GENERAL}: this name is the general text's, expected another")
    texts = {
        GENERAL: run.general,
        **{f"domains.{name}": text for name, text in run.domains.items()},
    }
    problems += [
        f"{key}.sources: expected at least one" for key, text in texts.items() if not text.sources
    ]
    problems += [
        f"{key}: min_chars {text.min_chars} is more than max_chars {text.max_chars}"
        for key, text in texts.items()
        if text.min_chars > text.max_chars
    ]
    return problems


def _shape_problems(run: RunFile) -> list[str]:
    problems = []
    shape, widths = run.shape, run.widths
    if shape.hidden_size % (2 * shape.num_heads):
        problems.append(
            f"shape: hidden_size {shape.hidden_size}: expected an even multiple of num_heads "
            f"{shape.num_heads}"
        )
    if not widths.S < widths.M < widths.L:
        problems.append(
            f"widths: S {widths.S}, M {widths.M}, L {widths.L}: expected S below M below L"
        )
    return problems


def _recipe_problems(key: str, recipe: SeedRecipe | Recipe, shape: Shape) -> list[str]:
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


def _plan_problems(run: RunFile) -> list[str]:
    plan, recipe = run.plan, run.recipe
    problems = []
    if len(set(plan.schemes)) != len(plan.schemes):
        problems.append(f"plan.schemes: {list(plan.schemes)}: expected each scheme once")
    if ("MHo-IHe" in plan.schemes) != (plan.steps is not None):
        problems.append(
            f"plan: steps {plan.steps and plan.steps.model_dump()} with schemes "
            f"{list(plan.schemes)}: expected steps exactly when MHo-IHe is among them"
        )
    steps = {"plan.homogeneous_steps": plan.homogeneous_steps}
    if plan.steps is not None:
        steps |= {f"plan.steps.{name}": value for name, value in plan.steps.model_dump().items()}
    return problems + _schedule_problems(recipe, steps)


def _schedule_problems(recipe: Recipe, steps: dict[str, int]) -> list[str]:
    if recipe.schedule == "annealed":
        problems = [
            f"{key}: {value} is less than recipe.warmup_steps {recipe.warmup_steps}"
            for key, value in steps.items()
            if value < recipe.warmup_steps
        ]
        if recipe.schedule_steps is not None:
            problems.append(
                f"recipe.schedule_steps: {recipe.schedule_steps} with schedule 'annealed', whose "
                "cosines end with each expert's last step: expected none"
            )
        return problems
    if recipe.schedule_steps is None:
        return ["recipe.schedule_steps: missing; schedule 'paper' needs it"]
    return [
        f"{key}: {value} is more than recipe.schedule_steps {recipe.schedule_steps}"
        for key, value in {**steps, "recipe.warmup_steps": recipe.warmup_steps}.items()
        if value > recipe.schedule_steps
    ]


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
