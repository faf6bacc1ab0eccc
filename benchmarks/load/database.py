"""Where the ledger lies: a SQLite file, or a PostgreSQL server of our own for as long as it takes.

The server is Debian's with its defaults: every commit waits for the disk.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Kind = Literal["sqlite", "postgresql"]

PROGRAMS = "usr/lib/postgresql/*/bin/initdb"
USERS = ("postgres", "nobody")
"""PostgreSQL refuses to run as root; root runs it as the first of these that there is."""


class NoPostgres(Exception):
    """PostgreSQL is not there or does not start; the message says what to do."""


@contextlib.contextmanager
def database(kind: Kind, *, port: int) -> Iterator[str | None]:
    """The ledger's URL; None stands for the run folder's own SQLite file. Raises NoPostgres."""
    if kind == "sqlite":
        yield None
        return
    found = sorted(Path("/").glob(PROGRAMS))
    if not found:
        raise NoPostgres("no PostgreSQL server here; on Debian: apt-get install postgresql")
    initdb, control = found[-1], found[-1].with_name("pg_ctl")
    folder = Path(tempfile.mkdtemp(prefix="hdee-postgres-"))
    try:
        user = _give_away(folder)
        cluster, options = folder / "cluster", f"-p {port} -k {folder} -h 127.0.0.1"
        _run([initdb, "-D", cluster, "-U", "hdee", "-A", "trust", "-E", "UTF8", "--locale=C"], user)
        _run([control, "-D", cluster, "-w", "-l", folder / "log", "-o", options, "start"], user)
        try:
            yield f"postgresql+psycopg://hdee@127.0.0.1:{port}/postgres"
        finally:
            _run([control, "-D", cluster, "-w", "-m", "fast", "stop"], user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _give_away(folder: Path) -> str | None:
    if os.geteuid() != 0:
        return None
    for name in USERS:
        with contextlib.suppress(KeyError):
            owner = pwd.getpwnam(name)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            return name
    raise NoPostgres(f"PostgreSQL does not run as root, and there is none of the users {USERS}")


def _run(command: list[object], user: str | None) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd="/", check=False, user=user, timeout=60
    )
    if done.returncode:
        raise NoPostgres(f"{' '.join(words)}: {done.stdout[-500:]}{done.stderr[-1500:]}")
