"""Artifacts of package indexes as text: kept by SHA-256 for all runs, read as streams.

No member is extracted.
"""

import contextlib
import fnmatch
import gzip
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from typing_extensions import override

from coordinator.text.downloads import FETCH_SECONDS, PackageError, Tell, download, name_of
from coordinator.text_sections import PackageSource
from shared.clock import now
from shared.files import sync_folder

__all__ = ["PackageError", "fetch_package", "find_package", "packages_folder", "read_members"]

PACKAGES_VARIABLE = "HDEE_PACKAGES"
MAX_MEMBER_BYTES = 64 * 1024**2
MAX_TOTAL_BYTES = 2 * 1024**3
MAX_MEMBERS = 200_000

ABANDONED_SECONDS = 2 * FETCH_SECONDS

_FETCHING = ".fetching-"
_CHUNK = 1024**2


def packages_folder() -> Path:
    """Where this machine keeps artifacts for all runs: HDEE_PACKAGES, else the user's cache."""
    named = os.environ.get(PACKAGES_VARIABLE)
    if named:
        return Path(named).absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "hdee" / "packages"


def find_package(source: PackageSource, *folders: Path) -> Path | None:
    """The artifact of `source` in the first of `folders` that holds it whole, hashed anew."""
    for folder in folders:
        path = folder / source.sha256
        if path.is_file() and _sha256(path) == source.sha256:
            return path
    return None


def fetch_package(
    source: PackageSource, cache: Path, *, also: tuple[Path, ...] = (), tell: Tell | None = None
) -> Path:
    """The artifact of `source`, named by its SHA-256 and hashed again at each call.

    It is looked for in `cache` and in the folders of `also`, and else downloaded into `cache`; a
    stop on the way leaves nothing there. `tell` is told how many bytes have arrived.
    Raises PackageError when it cannot be had or has another digest.
    """
    found = find_package(source, cache, *also)
    if found is not None:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        with tempfile.TemporaryDirectory(dir=cache, prefix=_FETCHING) as folder:
            file = download(source, Path(folder), tell=tell or (lambda _: None))
            digest = _sha256(file)
            if digest != source.sha256:
                raise PackageError(
                    f"{name_of(source)}: expected sha256 {source.sha256}, got sha256 {digest}"
                )
            with file.open("rb") as arrived:
                os.fsync(arrived.fileno())
            file.replace(cache / source.sha256)
        sync_folder(cache)
    except OSError as error:
        raise PackageError(
            f"{name_of(source)}: {error.filename or cache} cannot be written: {error.strerror}; "
            f"{PACKAGES_VARIABLE} names another folder for artifacts"
        ) from error
    return cache / source.sha256


def _sweep(cache: Path) -> None:
    """Delete what fetches left that were killed: by now each of them would have ended."""
    for folder in cache.glob(f"{_FETCHING}*"):
        with contextlib.suppress(OSError):
            if now() - folder.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def read_members(source: PackageSource, artifact: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the members of `artifact` that `source` selects; `*` crosses folders.

    Raises PackageError for an unreadable archive, and for one whose members are more, larger or in
    sum larger than the limits: sizes are counted while reading, not taken from headers.
    """
    with artifact.open("rb") as file:
        magic = file.read(2)
    read = {b"PK": _zip_members, b"\x1f\x8b": _tar_members}.get(magic)
    if read is None:
        raise PackageError(f"{name_of(source)}: expected a wheel, zip or tar.gz file")
    total = 0
    try:
        for name, stream in read(source, artifact):
            data = stream.read(MAX_MEMBER_BYTES + 1)
            total += len(data)
            if len(data) > MAX_MEMBER_BYTES:
                raise PackageError(
                    f"{name_of(source)}: {name} is over {MAX_MEMBER_BYTES} bytes when unpacked"
                )
            if total > MAX_TOTAL_BYTES:
                raise PackageError(f"{name_of(source)}: over {MAX_TOTAL_BYTES} bytes when unpacked")
            yield name, data
    except _DAMAGE as error:
        raise PackageError(f"{name_of(source)}: damaged archive: {error}") from error


_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)
"""What zipfile and tarfile raise for broken, encrypted and exotic archives."""


def _zip_members(source: PackageSource, artifact: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(artifact) as archive:
        members = archive.infolist()
        _check_count(source, len(members))
        for member in members:
            if not member.is_dir() and _selects(source, member.filename):
                with archive.open(member) as stream:
                    yield member.filename, stream


def _tar_members(source: PackageSource, artifact: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with (
        gzip.open(artifact) as unpacked,
        tarfile.open(fileobj=_Limited(source, unpacked), mode="r|") as archive,
    ):
        for count, member in enumerate(archive, start=1):
            _check_count(source, count)
            if member.isreg() and not member.issparse() and _selects(source, member.name):
                stream = archive.extractfile(member)
                if stream is not None:
                    yield member.name, stream


class _Limited(io.RawIOBase):
    """`stream` until MAX_TOTAL_BYTES have passed, unwanted members included."""

    def __init__(self, source: PackageSource, stream: gzip.GzipFile) -> None:
        self._source = source
        self._stream = stream
        self._total = 0

    @override
    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._total += len(data)
        if self._total > MAX_TOTAL_BYTES:
            raise PackageError(
                f"{name_of(self._source)}: over {MAX_TOTAL_BYTES} bytes when unpacked"
            )
        return data


def _check_count(source: PackageSource, count: int) -> None:
    if count > MAX_MEMBERS:
        raise PackageError(f"{name_of(source)}: over {MAX_MEMBERS} members")


def _selects(source: PackageSource, name: str) -> bool:
    return fnmatch.fnmatchcase(name, source.members) and not any(
        fnmatch.fnmatchcase(name, pattern) for pattern in source.exclude
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
