"""`hdee-coordinator mix sizes`: FFN widths for experts of unequal size, before they are trained."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.errors import WrongUsage
from coordinator.cli.mixture_words import run_folder_words
from coordinator.cli.options import Format
from coordinator.runfile import RunFile, load_run_file
from shared.mixing.widths import WidthPreset, preset_widths
from shared.tables import show, show_json, show_table

_LABELS = ("S", "M", "L")


def sizes(  # each is an option
    run_file: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN.toml]", help="A run file, for its shape and its M"),
    ] = None,
    preset: Annotated[WidthPreset, typer.Option(help="How widths grow")] = "geometric",
    mean: Annotated[
        int | None, typer.Option(min=1, help="Their mean, in features [the run's M]")
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, max=1000, help="Experts; 3 are a run's S, M and L")
    ] = 3,
    multiple: Annotated[int, typer.Option(min=1, help="Each is a multiple of it")] = 1,
    format: Format = "text",
) -> None:
    """Show FFN widths of one mean by the presets of HMoE: arithmetic, geometric, hybrid.

    arithmetic: equal steps, the last to the first as 23 to 9. geometric: each twice the one before.
    hybrid: a quarter of the experts four times, a quarter twice as wide as the others. With a run
    file also the FFNs' parameters, in all layers; nothing is changed.

    Example: hdee-coordinator mix sizes --preset geometric --mean 192 --count 4

    Example: hdee-coordinator mix sizes my-run/run.toml --preset arithmetic
    """
    run = None if run_file is None else _run(run_file)
    if run is not None:
        mean = mean or run.widths.M
    if mean is None:
        raise WrongUsage("--mean: expected one, or a run file, which has M")
    try:
        widths = preset_widths(
            preset, num_experts=count, total_width=mean * count, multiple=multiple
        )
    except ValueError as error:
        raise WrongUsage(str(error)) from error
    parameters = None if run is None else [_ffn_parameters(run, width) for width in widths]
    if format == "json":
        total = None if parameters is None else sum(parameters)
        show_json(
            {
                "preset": preset,
                "mean": mean,
                "widths": list(widths),
                "ffn_parameters": parameters,
                "total_ffn_parameters": total,
            }
        )
        return
    rows = [
        (str(number), str(width), f"{100 * width / sum(widths):.1f} %")
        for number, width in enumerate(widths, start=1)
    ]
    if parameters is None:
        show_table((">expert", ">FFN width", ">share"), rows)
    else:
        shown = [(*row, f"{one:,}") for row, one in zip(rows, parameters, strict=True)]
        show_table((">expert", ">FFN width", ">share", ">FFN parameters"), shown)
        show(f"\n{sum(parameters):,} FFN parameters in all")
    if count == len(_LABELS):
        named = zip(_LABELS, widths, strict=True)
        show("\nin a run file:\n\n[widths]")
        show("\n".join(f"{label} = {width}" for label, width in named))


def _run(path: Path) -> RunFile:
    if path.is_dir():
        raise WrongUsage(f"{path}: {run_folder_words(path)}")
    return load_run_file(path)


def _ffn_parameters(run: RunFile, width: int) -> int:
    """Gate, up and down projections of all layers."""
    return 3 * width * run.shape.hidden_size * run.shape.num_layers
