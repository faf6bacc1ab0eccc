"""`hdee-worker can-join` and `join --dry-run`: what there is to do, without doing any of it."""

import typer

from shared.tables import show, show_json
from worker.folder import WorkerFolder
from worker.settings import JoinSettings
from worker.verbs.joining import settings_of_join
from worker.verbs.options import Format, JoinUrl


def can_join(context: typer.Context, url: JoinUrl, format: Format = "text") -> None:
    """Say whether a run has work for this machine, and if not, what the machine lacks.

    Takes every flag of `join`; see `hdee-worker join --help`. Measures the machine and registers
    it, as `join` would, and takes no work. Exit code 0: there is work, or will be when some opens;
    1: never with this machine, or it could not be measured; 3: no coordinator can be reached there;
    4: it refused.

    Example: hdee-worker can-join https://hdee.example.org --memory 4GB --for 8h
    """
    settings = settings_of_join(context, [url, *context.args])
    # What measures and calls takes a second to load, which no wrong flag should wait for.
    from worker.consent import look_around  # noqa: PLC0415
    from worker.preview import as_data, verdict  # noqa: PLC0415

    kept = WorkerFolder(settings.folder)
    try:
        look = look_around(settings, kept)
    finally:
        kept.close_or_remove(remains=kept.has_met(settings.url))
    if format == "json":
        show_json(as_data(look))
    else:
        show(verdict(look))
    raise typer.Exit(1 if look.preview.prospect == "never" else 0)


def dry_run(settings: JoinSettings) -> None:
    """`join --dry-run`: registers, shows what would run, leaves. Raises WorkerError."""
    from worker.consent import look_around  # noqa: PLC0415 - as above
    from worker.preview import describe  # noqa: PLC0415

    kept = WorkerFolder(settings.folder)
    try:
        look = look_around(settings, kept)
    finally:
        kept.close_or_remove(remains=kept.has_met(settings.url))
    show(describe(look))
    show(
        "\nA dry run: this machine was measured and registered with the coordinator. No work\n"
        "was taken, nothing was trained."
    )
