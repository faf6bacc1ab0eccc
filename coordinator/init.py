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

_TEMPLATE = Path(__file__).with_name("template.toml")


class InitError(ValueError):
    """The folder cannot be made a new run's; the message names what is in the way."""


def init_folder(folder: Path, *, force: bool = False) -> list[Path]:
    """Write run.toml and keys/ into `folder`, and return what was written, the run file last.

    keys/coordinator.key is the coordinator's identity, keys/split.key decides which documents are
    gate and test, keys/admin.token opens the operator's routes; all are their owner's alone.
    `force` replaces run.toml and keeps the keys that are there; otherwise nothing is written where
    any of these exists. Raises InitError.
    """
    folders = RunFolders(folder)
    run_file = folders.root / RUN_FILE
    keys = (folders.coordinator_key, folders.split_key, folders.admin_token)
    present = [path for path in (run_file, *keys) if path.exists()]
    if present and not force:
        raise InitError(f"{', '.join(map(str, present))}: already there, expected a new folder")
    try:
        folders.keys.mkdir(parents=True, exist_ok=True)
        folders.keys.chmod(PRIVATE_MODE)
        written = [path for path in keys if not path.exists()]
        for path in written:
            _write_key(path, folders)
        write_atomic(run_file, _run_file(folders.root).encode())
    except OSError as error:
        raise InitError(f"{folders.root}: cannot be written: {error.strerror}") from error
    return [*written, run_file]


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


def _run_file(folder: Path) -> str:
    name = re.sub(r"[^a-z0-9_.-]+", "-", folder.name.lower()).lstrip("_.-")[:63]
    template = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(name=name or "run", stdlib=sysconfig.get_path("stdlib"))
