"""`hdee-coordinator export`: one checkpoint of a finished run, as anybody loads it."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.errors import VerbError
from coordinator.cli.mixture_words import mixing, opened_run
from coordinator.cli.options import Format, RunPath
from shared.tables import show, show_json


def export(
    run_file: RunPath,
    name: Annotated[
        str,
        typer.Argument(
            help="The checkpoint, such as python-ffn640-1a2b3c4d; a wrong name lists all"
        ),
    ],
    into: Annotated[Path, typer.Option("--into", help="The new folder; must not be there")],
    format: Format = "text",
) -> None:
    """Write a checkpoint of a finished run as a Hugging Face folder: weights, tokenizer, settings.

    An expert that was trained with LoRA is whole there, with its adapter below it. To make one
    model of several experts see `mix make`.

    Example: hdee-coordinator export my-run/run.toml python-ffn640-1a2b3c4d --into python-expert
    """
    with mixing():
        from coordinator.mixing.taking import export_member  # noqa: PLC0415

        if into.exists():
            raise VerbError(f"{into}: is there already, expected a new folder")
        run = opened_run(run_file)
        member = run.expert(name)
        export_member(run, member, into=into)
        facts = {
            "folder": str(into),
            "checkpoint": name,
            "domain": member.facts.domain,
            "ffn_width": member.checkpoint.shape.ffn_width,
        }
    if format == "json":
        show_json(facts)
        return
    show(f"wrote {into}: {name}, FFN width {facts['ffn_width']}")
    show(f"load it: AutoModelForCausalLM.from_pretrained({str(into)!r})")
