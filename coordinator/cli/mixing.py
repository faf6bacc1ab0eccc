"""`hdee-coordinator mix`: the experts of a finished run become one model; which, and how good.

Exit codes: 0 done, 1 it cannot be done (the message names what does not fit), 2 usage.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coordinator.cli import mixture_sizes, mixture_training, mixtures
from coordinator.cli.errors import VerbError, WrongUsage
from coordinator.cli.mixture_words import (
    mixing,
    named_paths,
    opened_run,
    show_made,
    staged,
    typed,
)
from coordinator.cli.options import Format, RunPath
from shared.files import write_atomic
from shared.tables import show, show_json

if TYPE_CHECKING:
    from coordinator.mixing.members import Guest
    from coordinator.mixing.run import FinishedRun

RESULTS_FILE = "mixing.json"
RECIPE_FILE = "mixing.toml"

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="From experts to one model: mix a finished run's experts, change the mixture, measure it. "
    "docs/mixing.md tells it from the beginning.",
)

Scheme = Annotated[
    str | None,
    typer.Option(
        "--scheme", help="Whose experts to mix, such as MHe-IHo [the best ensemble on dev text]"
    ),
]
RecipePath = Annotated[
    Path | None,
    typer.Option(
        "--recipe", help="How to mix, in TOML; `mix compare` writes the best one into the run"
    ),
]

Experts = Annotated[
    list[str] | None,
    typer.Option(
        "--expert",
        metavar="NAME=FOLDER",
        help="A further expert: a Hugging Face folder of a Llama, or a PEFT folder; repeat it",
    ),
]
TextsOf = Annotated[
    list[str] | None,
    typer.Option(
        "--text", metavar="NAME=FILE", help="Text of its domain: UTF-8, or a shard; repeat it"
    ),
]
BasesOf = Annotated[
    list[str] | None,
    typer.Option(
        "--base", metavar="NAME=FOLDER", help="What an adapter is added to [the run's seed]"
    ),
]
PromptsPath = Annotated[
    Path | None,
    typer.Option("--prompts", help="Prompts by expert, in TOML, for a router that is made of them"),
]


@app.command()
def make(  # noqa: PLR0913  # each is an option
    run_file: RunPath,
    scheme: Scheme = None,
    recipe: RecipePath = None,
    expert: Experts = None,
    text: TextsOf = None,
    base: BasesOf = None,
    prompts: PromptsPath = None,
    into: Annotated[
        Path | None,
        typer.Option("--into", help="The mixture's folder, new [mixture, in the run's]"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be made, and what does not fit")
    ] = False,
    format: Format = "text",
) -> None:
    """Mix the experts of a finished run into one model, which transformers loads by itself.

    Without a recipe the router is the prefix router, which nobody trains; experts own what they
    have changed; everything else is the seed's. Nothing of the run is changed. Experts from
    elsewhere must have branched from the same seed: the first tensor that does not fit is named.

    Example: hdee-coordinator mix make my-run/run.toml --into my-run/mixture

    Example: hdee-coordinator mix make my-run/run.toml --expert law=their/expert --text law=law.txt
    """
    with mixing():
        from coordinator.mixing.comparing import best_scheme  # noqa: PLC0415
        from coordinator.mixing.kitchen import Kitchen  # noqa: PLC0415
        from coordinator.mixing.knowing import read_prompts  # noqa: PLC0415
        from shared.mixing.recipe import Recipe, read_recipe  # noqa: PLC0415
        from shared.mixing.writing import write_mixture  # noqa: PLC0415

        with typed():
            wanted = Recipe() if recipe is None else read_recipe(recipe)
            said = {} if prompts is None else read_prompts(prompts)
        if prompts is not None and wanted.router.source != "prompts":
            raise WrongUsage(
                f"--prompts {prompts}: the recipe's router is made of {wanted.router.source!r}: "
                'expected --recipe with router.source = "prompts"'
            )
        run = opened_run(run_file)
        target = into or run.folders.root / "mixture"
        if target.exists():
            raise VerbError(f"{target}: is there already, expected a new folder: name --into")
        chosen = scheme or best_scheme(run, stage=staged)
        guests = _guests(run, expert or [], text or [], base or [])
        members = run.members(chosen)
        with Kitchen(run, members, guests=guests, prompts=said, stage=staged) as kitchen:
            plan = kitchen.plan(wanted)
            facts = plan.facts({}) if dry_run else write_mixture(plan, target, stage=staged)
        show_made(facts, target, scheme=chosen, dry_run=dry_run, format=format)


@app.command()
def compare(  # noqa: PLR0913  # each is an option
    run_file: RunPath,
    scheme: Scheme = None,
    levers: Annotated[
        Path | None, typer.Option("--levers", help="What to vary, in TOML [see docs/mixing.md]")
    ] = None,
    choose_by: Annotated[
        Literal["own", "all"],
        typer.Option(
            "--choose-by",
            help="Best on dev text of the trained domains, or also of held-out and spliced text",
        ),
    ] = "own",
    also: Annotated[
        list[str] | None,
        typer.Option("--also", help="A further variant to measure on test text; repeat it"),
    ] = None,
    dev_labels: Annotated[
        int | None,
        typer.Option(min=1, help="Choose on so many tokens of each dev text [all of it]"),
    ] = None,
    format: Format = "text",
) -> None:
    """Make many mixtures, measure them on dev text, and the best on test text beside the rest.

    Beside it stand the seed, the seed given the same extra steps (dense), the posterior ensemble of
    the same experts, each also with the seed, the best single expert and the average of weights;
    differences with 95 % intervals over documents. Writes mixing.json beside results.json, and the
    best recipe as mixing.toml.

    Example: hdee-coordinator mix compare my-run/run.toml --choose-by all
    """
    with mixing():
        from coordinator.mixing.comparing import (  # noqa: PLC0415
            Question,
            best_scheme,
            compare,
        )
        from coordinator.mixing.tables import show_results  # noqa: PLC0415
        from coordinator.mixing.variants import Levers, read_levers, recipe_toml  # noqa: PLC0415

        with typed():
            varied = Levers() if levers is None else read_levers(levers)
        question = Question(
            levers=varied, choose_by=choose_by, also=tuple(also or ()), dev_labels=dev_labels
        )
        run = opened_run(run_file)
        chosen = scheme or best_scheme(run, stage=staged)
        results = compare(run, chosen, question, stage=staged)
        path = run.folders.state / RESULTS_FILE
        write_atomic(path, (results.model_dump_json(indent=1) + "\n").encode())
        best = run.folders.state / RECIPE_FILE
        write_atomic(best, recipe_toml(results.variants[0].recipe).encode())
        if format == "json":
            show_json(results)
            return
        show_results(results)
        show(f"\nwrote {path}")
        show(f"hdee-coordinator mix make {run_file} --recipe {best} makes the chosen one")


def _guests(
    run: "FinishedRun", experts: Sequence[str], texts: Sequence[str], bases: Sequence[str]
) -> "list[Guest]":
    """The experts of --expert, each with its --text and --base."""
    from coordinator.mixing.members import open_guest  # noqa: PLC0415

    folders = named_paths(experts, option="--expert")
    beside = {
        option: named_paths(values, option=option)
        for option, values in (("--text", texts), ("--base", bases))
    }
    for option, paths in beside.items():
        for name in paths.keys() - folders.keys():
            raise WrongUsage(f"{option} {name}=...: there is no --expert {name}=...")
    seed = run.folders.experts / run.seed.facts.name
    return [
        open_guest(
            name,
            path,
            base=beside["--base"].get(name, seed),
            text=beside["--text"].get(name),
            vocabulary=run.vocabulary,
        )
        for name, path in folders.items()
    ]


_VERBS: dict[str, Callable[..., None]] = {
    **mixtures.VERBS,
    "sizes": mixture_sizes.sizes,
    "train": mixture_training.train,
}
for name, verb in _VERBS.items():
    app.command(name)(verb)
