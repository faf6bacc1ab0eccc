"""A PostgreSQL server of our own: made from the installed programs, stopped by its pid, wiped."""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

START_SECONDS = 30.0
STOP_SECONDS = 20.0
PASSWORD_USER = "guarded"
PASSWORD = "open/sesame"

_PR_SET_PDEATHSIG = 1
_ACCESS = f"local all {PASSWORD_USER} scram-sha-256\nlocal all all trust\n"


def programs() -> Path | None:
    """The folder of initdb and postgres, which Debian keeps off the PATH; None where they miss."""
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0,
    )
    found = [*debian[-1:], *filter(None, [shutil.which("initdb")])]
    return Path(found[0]).resolve().parent if found else None


class PostgresServer:
    """One server on a Unix socket in a temporary folder. It does not survive its starter.

    `fsync` is off: a test that kills a client finds what was committed all the same.
    """

    def __init__(self, bin_folder: Path) -> None:
        self._bin = bin_folder
        self._user = _unprivileged()
        self._number = 0
        self.folder = Path(tempfile.mkdtemp(prefix="hdee-postgres-"))
        if self._user:
            shutil.chown(self.folder, self._user)
        try:
            self._initialise()
            self._process = self._start()
            self._wait()
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def url(self, database: str, *, user: str = "postgres", password: str = "") -> str:
        """SQLAlchemy's URL of a database."""
        login = f"{user}:{password.replace('/', '%2F')}" if password else user
        return f"postgresql+psycopg://{login}@/{database}?host={self.folder}"

    def run(self, statement: str, database: str = "postgres") -> None:
        """Execute one statement outside of a transaction."""
        with psycopg.connect(
            host=str(self.folder), user="postgres", dbname=database, autocommit=True
        ) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def create_database(self, *, template: str = "template0", encoding: str = "UTF8") -> str:
        """A new database; its name."""
        self._number += 1
        name = f"test_{self._number}"
        locale = "" if encoding == "UTF8" else "LOCALE 'C' LOCALE_PROVIDER libc"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} ENCODING '{encoding}' {locale}")
        return name

    def drop_database(self, name: str) -> None:
        self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def stop(self) -> None:
        """End the server and remove its folder."""
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)
                process.wait(STOP_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _initialise(self) -> None:
        # A language's own order of letters, as most servers have it, and not that of bytes.
        locale = ["--locale=C.UTF-8"]
        if self._version() >= 15:
            locale += ["--locale-provider=icu", "--icu-locale=en-US"]
        command = [
            str(self._bin / "initdb"),
            f"--pgdata={self.folder / 'data'}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-sync",
            *locale,
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=self.folder, user=self._user
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stdout}{done.stderr}")
        (self.folder / "data" / "pg_hba.conf").write_text(_ACCESS)

    def _start(self) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "dynamic_shared_memory_type": "mmap",
            "autovacuum": "off",
        }
        command = [str(self._bin / "postgres"), "-D", str(self.folder / "data")]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                user=self._user,
                preexec_fn=_die_with_parent,
            )

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                self.run(f"CREATE ROLE {PASSWORD_USER} LOGIN PASSWORD '{PASSWORD}'")
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > until:
                    log = (self.folder / "log").read_text()
                    raise RuntimeError(f"postgres did not start: {log}") from None
                time.sleep(0.02)

    def _version(self) -> int:
        text = subprocess.run(
            [str(self._bin / "postgres"), "--version"], capture_output=True, text=True, check=True
        ).stdout
        found = re.search(r"(\d+)", text)
        return int(found[1]) if found else 0


def _unprivileged() -> str | None:
    """postgres refuses to run as root: whom to become then, else None."""
    if os.geteuid() != 0:
        return None
    names = {line.split(":", 1)[0] for line in Path("/etc/passwd").read_text().splitlines()}
    return "postgres" if "postgres" in names else "nobody"


def _die_with_parent() -> None:
    # Linux alone; elsewhere a killed test run leaves its server behind.
    if hasattr(os, "pidfd_open"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
