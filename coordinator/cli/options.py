"""Arguments and options that several verbs have in common."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from coordinator.database import DATABASE_VARIABLE

Format = Annotated[Literal["text", "json"], typer.Option("--format", help="text or json")]
RunPath = Annotated[Path, typer.Argument(help="The run file, such as run.toml")]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar=DATABASE_VARIABLE,
        help="The ledger: sqlite:////PATH or postgresql+psycopg://USER@HOST/DATABASE "
        "[state/ledger.sqlite]. A password is safe from other users in the variable alone",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url", help="The coordinator, if not by the run file's address: https://hdee.example.org"
    ),
]
Reason = Annotated[
    str, typer.Option("--reason", help="Why; it stands in the ledger's entry (500 characters)")
]
WorkerName = Annotated[
    str, typer.Argument(help="The worker's peer id, the end of it, or its name if no other has it")
]
AssignmentName = Annotated[
    str, typer.Argument(help="The assignment's id, such as a0123456789abcdef")
]
