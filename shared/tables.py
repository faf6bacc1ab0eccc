"""What verbs write to a terminal or a pipe: lines, tables, JSON, and how far a long verb is.

Names and reasons come from strangers: nothing in them reaches the terminal as a command.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.words import duration, plain

PIPE_WIDTH = 1000
"""Columns where nobody's screen is the limit, so that no line of a pipe is cut or wrapped."""

SAY_SECONDS = 1.0
"""How often a long verb says how far it is."""


def show(text: str) -> None:
    """A line of output."""
    typer.echo(plain(text))


def show_json(value: object) -> None:
    """A value for programs."""
    typer.echo(json.dumps(_plain_json(value), indent=2))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table that uses the screen's width; into a pipe, one line a row. `>name`: to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(file=sys.stdout, width=width, highlight=False)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


class Progress:
    """Says how far a long verb is, at most once in SAY_SECONDS, and when it expects to end.

    Nothing in the first `quiet_seconds`. By itself it says so on standard error, so that standard
    output is the verb's result alone.
    """

    def __init__(
        self,
        what: str,
        *,
        quiet_seconds: float = SAY_SECONDS,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._say = say or _say
        self._clock = clock
        self._wait = quiet_seconds
        self._first: tuple[float, int] | None = None
        self._said = 0.0

    def tell(self, done: int, total: int) -> None:
        """`done` of `total` so far. The first call begins the measurement."""
        now = self._clock()
        if self._first is None:
            self._first, self._said = (now, done), now
        began, before = self._first
        if now - self._said < self._wait or not before < done < total:
            return
        self._said, self._wait = now, SAY_SECONDS
        left = (now - began) * (total - done) / (done - before)
        self._say(f"{self._what}: {100 * done // total} %, about {duration(left)} left")


def _say(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)  # noqa: T201 - progress is no output


def _plain_json(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain_json(one) for one in value]
    return value
