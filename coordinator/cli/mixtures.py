"""`hdee-coordinator mix add`, `remove`, `replace`, `show`: mixtures that are there already."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.errors import WrongUsage
from coordinator.cli.mixture_words import mixing, named, opened_run, show_made, staged, typed
from coordinator.cli.options import Format
from shared.tables import show_json

if TYPE_CHECKING:
    from coordinator.mixing.members import Guest
    from shared.mixing.facts import MixtureFacts
    from shared.mixing.router_tensors import Floats
    from shared.mixing.statistics import ExpertStatistics

Folder = Annotated[Path, typer.Argument(metavar="MIXTURE", help="The mixture's folder")]
NewExpert = Annotated[
    str,
    typer.Argument(
        metavar="NAME=FOLDER",
        help="What to call it, and its Hugging Face or PEFT folder; with --run, its checkpoint",
    ),
]
Into = Annotated[Path, typer.Option("--into", help="The new mixture's folder; must not be there")]
Text = Annotated[
    Path | None, typer.Option("--text", help="Text of its domain: UTF-8, or a shard of tokens")
]
Base = Annotated[Path | None, typer.Option("--base", help="What an adapter is to be added to")]
Run = Annotated[
    Path | None,
    typer.Option(
        "--run", help="A finished run's file: the expert and its text come from there, by name"
    ),
]
Prompted = Annotated[
    Path | None, typer.Option("--prompts", help="Its prompts, in TOML, for a router made of them")
]


def add(  # noqa: PLR0913  # each is an option
    folder: Folder,
    expert: NewExpert,
    into: Into,
    text: Text = None,
    base: Base = None,
    run: Run = None,
    prompts: Prompted = None,
    format: Format = "text",
) -> None:
    """Write a mixture with one more expert; the others and the router's part of them stay.

    It must have branched from the same seed. A router that is made of text needs text of its
    domain. Where shared weights are the experts' average, or the mixture was trained as one, it has
    to be made again: the message says so.

    Example: hdee-coordinator mix add mixture law=their/expert --text law.txt --into wider
    """
    with mixing():
        from shared.mixing.changing import add_expert  # noqa: PLC0415

        guest = _guest(folder, expert, text=text, base=base, run=run)
        _put(add_expert, folder, guest, prompts, into=into, format=format)


def replace(  # noqa: PLR0913  # each is an option
    folder: Folder,
    expert: NewExpert,
    into: Into,
    text: Text = None,
    base: Base = None,
    run: Run = None,
    prompts: Prompted = None,
    format: Format = "text",
) -> None:
    """Write a mixture with another expert in place of the one called NAME; the others stay.

    Example: hdee-coordinator mix replace mixture law=better/expert --text law.txt --into newer
    """
    with mixing():
        from shared.mixing.changing import replace_expert  # noqa: PLC0415

        guest = _guest(folder, expert, text=text, base=base, run=run)
        _put(replace_expert, folder, guest, prompts, into=into, format=format)


def remove(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The expert's name: see mix show")],
    into: Into,
    format: Format = "text",
) -> None:
    """Write a mixture without one of its experts: nothing of it remains.

    The new folder's weights are, byte for byte, those of a mixture that never had it. Delete the
    old one when nobody needs it.

    Example: hdee-coordinator mix remove mixture law --into narrower
    """
    with mixing():
        from shared.mixing.changing import remove_expert  # noqa: PLC0415

        facts = remove_expert(folder, name, into=into, stage=staged)
        show_made(facts, into, format=format)


def look(folder: Folder, format: Format = "text") -> None:
    """Show a mixture: experts and widths, what is shared, what a token costs by expert and layer.

    Parameters and FLOPs are those of a forward pass with one expert in use at every position, and
    for all of them; what the router makes of text stands in `mix compare`.

    Example: hdee-coordinator mix show my-run/mixture
    """
    with mixing():
        from coordinator.mixing.looking import looked_at, show_mixture  # noqa: PLC0415

        found = looked_at(folder)
        if format == "json":
            show_json(found)
        else:
            show_mixture(found)


def _guest(
    folder: Path, expert: str, *, text: Path | None, base: Path | None, run: Path | None
) -> "Guest":
    """The expert that NAME=FOLDER means, or NAME=CHECKPOINT of a run, with its text."""
    from coordinator.mixing.knowing import folder_vocabulary  # noqa: PLC0415
    from coordinator.mixing.members import open_guest, run_guest  # noqa: PLC0415

    name, path = named(expert, what="")
    vocabulary = folder_vocabulary(folder)
    if run is None:
        return open_guest(name, Path(path), base=base, text=text, vocabulary=vocabulary)
    if text is not None or base is not None:
        raise WrongUsage("--text, --base: not with --run, which has the expert's text and weights")
    return run_guest(name, opened_run(run), path)


def _put(
    join: "Callable[..., MixtureFacts]",
    folder: Path,
    guest: "Guest",
    prompts: Path | None,
    *,
    into: Path,
    format: Format,
) -> None:
    """Write the mixture with the expert, as `join` lets it in, and show what came of it."""
    statistics, states = _known(folder, guest, prompts)
    facts = join(
        folder,
        guest.ingredient,
        statistics=statistics,
        prompts=states,
        into=into,
        stage=staged,
    )
    show_made(facts, into, format=format)


def _known(
    folder: Path, guest: "Guest", prompts: Path | None
) -> "tuple[ExpertStatistics | None, Floats | None]":
    """What the mixture's router has to know of the expert."""
    from coordinator.mixing.knowing import (  # noqa: PLC0415
        joining_prompts,
        joining_statistics,
        read_prompts,
    )

    statistics = joining_statistics(folder, guest.ingredient, guest.texts, stage=staged)
    if prompts is None:
        return statistics, None
    with typed():
        said = read_prompts(prompts)
    name = guest.ingredient.name
    if said.keys() != {name}:
        raise WrongUsage(f"{prompts}: prompts of {sorted(said)}, expected those of {name!r} alone")
    return statistics, joining_prompts(folder, guest.ingredient, said[name])


VERBS: dict[str, Callable[..., None]] = {
    "show": look,
    "add": add,
    "remove": remove,
    "replace": replace,
}
