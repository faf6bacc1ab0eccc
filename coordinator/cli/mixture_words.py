"""What the verbs about mixtures have in common: what they say of one, and how they end."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.cli.errors import VerbError, WrongUsage
from coordinator.cli.options import Format
from shared.compute import compute_environment
from shared.tables import Progress, show, show_json, show_table
from shared.words import amount

if TYPE_CHECKING:
    from coordinator.mixing.run import FinishedRun
    from shared.mixing.facts import MixtureFacts
    from shared.mixing.progress import Tell

_FLOAT_BYTES = 4


@contextmanager
def mixing() -> Iterator[None]:
    """What keeps experts from being mixed ends the verb with words, not with a traceback."""
    # Threads that wait must not spin: before torch is loaded, or never.
    os.environ.update(compute_environment(_cores()))
    from shared.mixing.evidence import StatisticsError  # noqa: PLC0415
    from shared.mixing.generation import GenerationError  # noqa: PLC0415
    from shared.mixing.ingredients import MixingError  # noqa: PLC0415
    from shared.tensorfiles import TensorFileError  # noqa: PLC0415

    try:
        yield
    except BrokenPipeError:
        raise
    except (MixingError, GenerationError, StatisticsError, TensorFileError) as error:
        raise VerbError(str(error)) from error
    except OSError as error:
        known = error.filename is not None and error.strerror is not None
        words = f"{error.filename}: {error.strerror}" if known else str(error)
        raise VerbError(words) from error


@contextmanager
def typed() -> Iterator[None]:
    """What is wrong with files and options that say what to do is a wrong usage."""
    from shared.mixing.ingredients import MixingError  # noqa: PLC0415

    try:
        yield
    except MixingError as error:
        raise WrongUsage(str(error)) from error


def opened_run(run_file: Path) -> "FinishedRun":
    """The finished run of a run file; its folder in place of the file is a wrong usage."""
    from coordinator.mixing.run import FinishedRun  # noqa: PLC0415

    if run_file.is_dir():
        raise WrongUsage(f"{run_file}: {run_folder_words(run_file)}")
    return FinishedRun.open(run_file)


def run_folder_words(folder: Path) -> str:
    """What to name where a run file is expected and a folder was named."""
    file = folder / "run.toml"
    if file.exists():
        return f"a run's folder: expected the run file, {file}"
    return "a folder without a run.toml: expected a run file"


def staged(what: str) -> "Tell":
    """Says on standard error how far something long is, and when it is likely to end."""
    return Progress(what).tell


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def named_paths(values: Sequence[str], *, option: str) -> dict[str, Path]:
    """NAME=PATH options, each name once."""
    found: dict[str, Path] = {}
    for value in values:
        name, path = named(value, what=option)
        if name in found:
            raise WrongUsage(f"{option} {value}: {name!r} is there twice")
        found[name] = Path(path)
    return found


def named(value: str, *, what: str) -> tuple[str, str]:
    """NAME=VALUE in its two parts."""
    name, _, rest = value.partition("=")
    if not name or not rest:
        raise WrongUsage(f"{what} {value}: expected NAME=FOLDER, such as law=their/expert")
    return name, rest


def show_made(
    facts: "MixtureFacts",
    target: Path,
    *,
    scheme: str | None = None,
    dry_run: bool = False,
    format: Format,
) -> None:
    """What a mixture is made of, and how to load it."""
    size = _FLOAT_BYTES * facts.parameters
    if format == "json":
        show_json(
            {
                "folder": str(target),
                "made": not dry_run,
                "scheme": scheme,
                "bytes": size,
                **json.loads(facts.to_bytes()),
            }
        )
        return
    show_table(
        ("expert", "domain", ">FFN width", "from", "not taken over"),
        [
            (
                one.name,
                one.domain,
                str(one.ffn_width),
                one.origin,
                ", ".join(facts.lost(one.name)),
            )
            for one in facts.experts
        ],
    )
    owned = ", ".join(("FFNs", *facts.owned))
    shared = {"seed": "the seed's", "average": "their average"}.get(
        facts.recipe.shared_from, "their average by posterior"
    )
    if scheme is not None:
        show(f"the experts of {scheme}")
    show(f"each expert owns its {owned}; all else is {shared}; router {facts.recipe.router.kind}")
    show(f"{facts.parameters / 1e6:.2f}M parameters, about {amount(size)}")
    if facts.warning is not None:
        show(f"warning: {facts.warning}")
    if dry_run:
        show(f"would be written to {target}")
        return
    show(f"wrote {target}")
    show(f"load it: AutoModelForCausalLM.from_pretrained({str(target)!r}, trust_remote_code=True)")
