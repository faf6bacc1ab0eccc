"""`hdee-coordinator mix train`: a mixture's router, or more of it, trained as one model."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coordinator.cli.errors import VerbError, WrongUsage
from coordinator.cli.mixture_words import mixing, opened_run, show_made, staged
from coordinator.cli.options import Format
from protocol.capability import Device
from shared.tables import show, show_json, show_table

if TYPE_CHECKING:
    from coordinator.mixing.run import FinishedRun
    from shared.training.assignment import RouterLosses


def train(  # noqa: PLR0913  # each is an option
    folder: Annotated[Path, typer.Argument(metavar="MIXTURE", help="The mixture's folder")],
    run_file: Annotated[
        Path, typer.Argument(metavar="RUN.toml", help="The finished run whose text it trains on")
    ],
    into: Annotated[Path, typer.Option("--into", help="The trained mixture's folder, new")],
    trains: Annotated[
        Literal["router", "router_embeddings", "router_attention", "all"],
        typer.Option(help="What may change; the rest stays bit for bit"),
    ] = "router",
    steps: Annotated[int, typer.Option(min=1, max=10_000_000, help="Optimizer updates")] = 100,
    rate: Annotated[float, typer.Option(min=1e-9, max=1.0, help="The peak learning rate")] = 1e-3,
    penalty: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of P-Penalty: wide experts are dear")
    ] = None,
    balance: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of load balance: all are used alike")
    ] = None,
    entropy: Annotated[
        float | None, typer.Option(min=0.0, help="Weight of the router's entropy: clear decisions")
    ] = None,
    control: Annotated[
        bool, typer.Option(help="Train the seed for the same steps on the same text, too")
    ] = True,
    control_rate: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            max=1.0,
            help="The control's peak learning rate [the run's dense baseline's, which trials "
            "found; without one, its experts']",
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="What the trainer computes on")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads of the trainer")] = 1,
    format: Format = "text",
) -> None:
    """Train a mixture's router, or more of it, on text of all domains in equal shares.

    Then the mixture before and after is measured on dev text, beside the seed and the control: the
    seed, all of it, given the same steps on the same text at a rate of its own. Losses that are not
    named weigh what the mixture's configuration says. Ctrl-C: the next call goes on from there. A
    mixture that was trained as one takes no further experts.

    Example: hdee-coordinator mix train linear-mixture my-run/run.toml --steps 200 --into tuned
    """
    with mixing():
        from coordinator.mixing import training  # noqa: PLC0415
        from coordinator.mixing.training import (  # noqa: PLC0415
            SHARD,
            Halted,
            Machine,
            balanced_text,
            control_assignment,
            mixture_assignment,
            recipe_of,
            run_training,
            work_folder,
        )
        from shared.mixing.opening import read_config  # noqa: PLC0415
        from shared.mixing.tuning import apply_tuning, check_trainable  # noqa: PLC0415

        if into.exists():
            raise VerbError(f"{into}: is there already, expected a new folder")
        if control_rate is not None and not control:
            raise WrongUsage(f"--control-rate {control_rate}: not with --no-control")
        losses = _losses(folder, penalty, balance, entropy)
        check_trainable(read_config(folder), trains, losses)
        run = opened_run(run_file)
        recipe = recipe_of(run, num_steps=steps, peak_learning_rate=rate)
        its_rate = control_rate or training.control_rate(run)
        machine = Machine(device=device, num_threads=threads)
        work = work_folder(run, folder, recipe, trains=trains, losses=losses)
        balanced_text(run, recipe, work / SHARD)
        log = run.folders.logs / "mixing.log"
        assignment = mixture_assignment(
            folder,
            recipe,
            machine,
            trains=trains,
            losses=losses,
            work=work,
        )
        try:
            run_training(assignment, log=log, tell=staged(f"training {trains}"))
            weights = None
            if control:
                its_recipe = recipe_of(run, num_steps=steps, peak_learning_rate=its_rate)
                beside = control_assignment(run, its_recipe, machine, work=work)
                told = staged("training the control")
                weights = Path(run_training(beside, log=log, tell=told)["file"])
        except Halted as error:
            raise VerbError("stopped; the same call goes on from the last checkpoint") from error
        facts = apply_tuning(folder, work / "mixture" / "trained", into)
        table = _measured(run, folder, into, weights)
        shutil.rmtree(work)
    if format == "json":
        rates = {"rate": rate, "control_rate": its_rate if control else None}
        found = {"folder": str(into), "perplexity": table, "trains": trains, "steps": steps}
        show_json({**found, **rates})
        return
    show_made(facts, into, format=format)
    columns = list(next(iter(table.values())))
    if control:
        show(f"\nthe control: the seed, {steps} steps at a rate of {its_rate:g}")
    show("\nperplexity on dev text:\n")
    show_table(
        ("text", *(f">{column}" for column in columns)),
        [(name, *(f"{row[column]:.3f}" for column in columns)) for name, row in table.items()],
    )


def _losses(
    folder: Path, penalty: float | None, balance: float | None, entropy: float | None
) -> "RouterLosses | None":
    """What was named, beside what the configuration says of the others; None if nothing was."""
    from shared.mixing.opening import read_config  # noqa: PLC0415
    from shared.training.assignment import RouterLosses  # noqa: PLC0415

    if penalty is balance is entropy is None:
        return None
    config = read_config(folder)
    return RouterLosses(
        penalty=config.penalty_weight if penalty is None else penalty,
        balance=config.balance_weight if balance is None else balance,
        entropy=config.entropy_weight if entropy is None else entropy,
    )


def _measured(
    run: "FinishedRun", before: Path, after: Path, control: Path | None
) -> dict[str, dict[str, float]]:
    """Perplexity on dev text, by text and model."""
    from coordinator.mixing.comparing import on_dev  # noqa: PLC0415
    from coordinator.mixing.contenders import checkpoint_contender  # noqa: PLC0415
    from coordinator.mixing.kitchen import folder_contender  # noqa: PLC0415
    from coordinator.scoring.measuring import Checkpoint  # noqa: PLC0415
    from shared.blobs import piece_list_of  # noqa: PLC0415

    seed = run.seed.checkpoint
    models = [checkpoint_contender("seed", seed)]
    if control is not None:
        digest = piece_list_of(control).ref().digest
        trained = Checkpoint(digest=digest, path=control, shape=seed.shape)
        models.append(checkpoint_contender("seed, same steps", trained))
    models += [folder_contender("before", before), folder_contender("after", after)]
    return on_dev(run, models, stage=staged)
