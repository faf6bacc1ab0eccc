"""A new run's folder: a commented run file and the operator's keys."""

import os
import re
import secrets
import string
import sysconfig
from pathlib import Path

from coordinator.folders import PRIVATE_MODE, RunFolders
from shared.files import sync_folder, write_atomic
from shared.identity import Identity

RUN_FILE = "run.toml"

PRESETS = Path(__file__).with_name("presets")
DEFAULT_PRESET = "demo"


class InitError(ValueError):
    """The folder cannot be made a new run's; the message names what is in the way."""


def presets() -> list[str]:
    """The names of the run files that `init` can begin with."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def init_folder(folder: Path, *, preset: str = DEFAULT_PRESET, force: bool = False) -> list[Path]:
    """Write run.toml and keys/ into `folder`, and return what was written, the run file last.

    keys/coordinator.key is the coordinator's identity, keys/split.key decides which documents are
    gate and test, keys/admin.token opens the operator's routes; all are their owner's alone.
    `force` replaces run.toml and keeps the keys that are there; otherwise nothing is written where
    any of these exists. Raises InitError.
    """
    if preset not in presets():
        raise InitError(f"preset {preset!r}: expected one of {', '.join(presets())}")
    folders = RunFolders(folder)
    run_file = folders.root / RUN_FILE
    keys = (folders.coordinator_key, folders.split_key, folders.admin_token)
    present = [path for path in (run_file, *keys) if path.exists()]
    if present and not force:
        raise InitError(f"{', '.join(map(str, present))}: already there, expected a new folder")
    written = make_keys(folders)
    try:
        write_atomic(run_file, _run_file(folders.root, preset).encode())
    except OSError as error:
        raise InitError(f"{folders.root}: cannot be written: {error.strerror}") from error
    return [*written, run_file]


def make_keys(folders: RunFolders) -> list[Path]:
    """Make those of the operator's keys that are missing, and return them. Raises InitError."""
    keys = (folders.coordinator_key, folders.split_key, folders.admin_token)
    try:
        folders.keys.mkdir(parents=True, exist_ok=True)
        folders.keys.chmod(PRIVATE_MODE)
        written = [path for path in keys if not path.exists()]
        for path in written:
            _write_key(path, folders)
    except OSError as error:
        raise InitError(f"{folders.root}: cannot be written: {error.strerror}") from error
    return written


def _write_key(path: Path, folders: RunFolders) -> None:
    if path == folders.coordinator_key:
        Identity.create(path)
        return
    secret = secrets.token_hex(32) if path == folders.split_key else secrets.token_urlsafe(32)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _run_file(folder: Path, preset: str) -> str:
    name = re.sub(r"[^a-z0-9_.-]+", "-", folder.name.lower()).lstrip("_.-")[:63]
    template = string.Template((PRESETS / f"{preset}.toml").read_text(encoding="utf-8"))
    return template.substitute(name=name or "run", stdlib=sysconfig.get_path("stdlib"))
