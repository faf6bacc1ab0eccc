"""The flags of `hdee-worker join` about caps and manners, their groups in its help, worker.toml.

worker.toml in the worker's folder holds flags by their names, without dashes in front:

    only-when-idle = "5m"
    hours = ["22:00-07:00"]
    threads = "50%"

A flag that is given on the command line counts instead.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typing_extensions import override

from worker.settings import BadSetting, default_folder

FILE = "worker.toml"
NOT_IN_FILE = frozenset({"folder", "yes", "dry-run", "help"})
"""Where the file lies, and what is said once and by hand."""

LIMITS, MANNERS, NETWORK = "What it may use", "When it may train", "Network"
MAX_FILE_BYTES = 65_536

Threads = Annotated[
    str | None,
    typer.Option(help="CPU threads of training, such as 2 or 50%", rich_help_panel=LIMITS),
]
Memory = Annotated[
    str | None,
    typer.Option(help="Memory of training, such as 700MB, 2GB or 50%", rich_help_panel=LIMITS),
]
GpuMemory = Annotated[
    str | None,
    typer.Option(
        help="Memory of training on a CUDA device, such as 6GB or 50%", rich_help_panel=LIMITS
    ),
]
Disk = Annotated[
    str | None,
    typer.Option(
        help="Disk that blobs may occupy, such as 20GB or 10% [what is free]",
        rich_help_panel=LIMITS,
    ),
]
Upload = Annotated[
    str | None,
    typer.Option(
        help="Send no more than this a second, such as 2MB [no limit]", rich_help_panel=LIMITS
    ),
]
Download = Annotated[
    str | None,
    typer.Option(
        help="Fetch no more than this a second, such as 2MB [no limit]", rich_help_panel=LIMITS
    ),
]
Nice = Annotated[
    int,
    typer.Option(
        help="How far training gives way to other programs: 0 not at all, 19 most",
        rich_help_panel=LIMITS,
    ),
]
OnlyWhenIdle = Annotated[
    str | None,
    typer.Option(
        help="Train only after you have not used this computer for so long, such as 5m",
        rich_help_panel=MANNERS,
    ),
]
ActivityFile = Annotated[
    Path | None,
    typer.Option(
        help="With --only-when-idle: you are active when this file is touched, by a hook of the "
        "screensaver for example [what this machine tells]",
        rich_help_panel=MANNERS,
    ),
]
HoursFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--hours",
        help="Train only then, such as 22:00-07:00 or 'Mon-Fri 18:00-08:00'; may be repeated",
        rich_help_panel=MANNERS,
    ),
]
OnBattery = Annotated[
    bool,
    typer.Option("--on-battery", help="Train on battery, too", rich_help_panel=MANNERS),
]
MaxOtherCpu = Annotated[
    str | None,
    typer.Option(
        help="Train only while other programs use at most this share of the CPU, such as 50%",
        rich_help_panel=MANNERS,
    ),
]
FreeMemoryAfter = Annotated[
    str,
    typer.Option(
        help="Give memory and lease back when training is paused for so long; it goes on later",
        rich_help_panel=MANNERS,
    ),
]


class JoinCommand(TyperCommand):
    """A command whose flags may also stand in worker.toml, and whose help is in groups.

    Contexts and options are click's, which typer brings along under a name of its own or not.
    """

    @override
    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Raises BadSetting for a file that cannot be read as flags."""
        given = super().make_context(info_name, list(args), *rest, **extra)
        path = (given.params.get("folder") or default_folder(given.params["url"])) / FILE
        words = dict(self._from_file(given, path))
        if not words:
            return given
        together = [word for each in words.values() for word in each]
        context = super().make_context(info_name, [*together, *args], *rest, **extra)
        context.meta[FILE] = (path, tuple(words))
        return context

    @override
    def invoke(self, ctx: Any) -> Any:
        path, keys = ctx.meta.get(FILE, (None, ()))
        try:
            return super().invoke(ctx)
        except BadSetting as error:
            if any(str(error).startswith(f"--{key} ") for key in keys):
                raise BadSetting(f"{path}: {error}") from error
            raise

    @override
    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panel = getattr(parameter, "rich_help_panel", None)
                is_flag = parameter.param_type_name == "option"
                groups.setdefault(panel or ("Options" if is_flag else "Arguments"), []).append(
                    record
                )
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)

    def _from_file(self, given: Any, path: Path) -> Iterator[tuple[str, list[str]]]:
        """Flags of the file, each as the command line would have it, that it does not have."""
        flags = {
            flag.removeprefix("--"): parameter
            for parameter in self.get_params(given)
            if parameter.param_type_name == "option"
            for flag in parameter.opts
        }
        known = sorted(flags.keys() - NOT_IN_FILE)
        for key, value in read_file(path).items():
            if key not in known:
                raise BadSetting(f"{path}: key {key!r}: expected one of {', '.join(known)}")
            words = _words(path, key, value, flags[key])
            if given.get_parameter_source(flags[key].name).name == "DEFAULT":
                yield key, words


def read_file(path: Path) -> dict[str, Any]:
    """What stands in the file; nothing if there is none. Raises BadSetting."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise BadSetting(f"{path}: {error.strerror}") from error
    if len(text) > MAX_FILE_BYTES:
        raise BadSetting(f"{path}: more than {MAX_FILE_BYTES} bytes, expected some flags")
    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSetting(f"{path}: no TOML: {error}") from error


def _words(path: Path, key: str, value: object, option: Any) -> list[str]:
    """The value as the command line would have it. Raises BadSetting."""
    expected = "text in quotes, or a whole number"
    if option.is_flag:
        if isinstance(value, bool):
            return [f"--{key}"] if value else []
        expected = "true or false"
    elif option.multiple:
        several = value if isinstance(value, list) else [value]
        if all(isinstance(one, str) for one in several):
            return [f"--{key}={one}" for one in several]
        expected = 'text, such as ["..."]'
    elif isinstance(option.default, int):
        if isinstance(value, int) and not isinstance(value, bool):
            return [f"--{key}={value}"]
        expected = "a whole number"
    elif isinstance(value, str | int) and not isinstance(value, bool):
        return [f"--{key}={value}"]
    raise BadSetting(f"{path}: {key} = {value!r}: expected {expected}")
