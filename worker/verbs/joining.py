"""The flags of `join` for verbs that take them all, read as `join` reads them."""

from collections.abc import Sequence
from typing import Any

import typer

from worker.settings import JoinSettings

ANY_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of a command that passes the flags of `join` on."""


def settings_of_join(context: typer.Context, arguments: Sequence[str]) -> JoinSettings:
    """What `join` with these arguments would begin with, by the program that `context` is of.

    Raises what `join` raises for flags that make no sense: BadSetting, or click's usage error.
    """
    found: list[JoinSettings] = []
    group: Any = context.find_root().command
    command = group.commands["join"]
    with command.make_context("join", list(arguments), obj=found.append) as joining:
        command.invoke(joining)
    return found[0]
