"""The volunteer's files to documents. Any file that is no text is refused, none is skipped."""

import stat
from collections.abc import Iterator
from pathlib import Path

from shared.text.documents import Collection, DocumentError, documents_of

TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
DOCUMENT_CHARS = 4000
"""Paragraphs are packed into documents of up to so many characters."""

MAX_FILE_BYTES = 256 * 2**20
MAX_BYTES = 2 * 2**30
MAX_FILES = 100_000
MAX_CHARS = 1_000_000
MIN_DOCUMENTS = 30
"""With fewer, the dev shard that the reported perplexities rest on would be next to nothing."""

_RULES = {".jsonl": "jsonl:text"}


class OwnTextError(ValueError):
    """Own text cannot be used; the message names the file or the domain, and what was expected."""


def read_own_text(path: Path) -> Collection:
    """The distinct documents of a file, or of all text files below a folder.

    A .jsonl file has a document a line, under "text"; others are cut at blank lines. Raises
    OwnTextError.
    """
    collection = Collection(min_chars=1, max_chars=MAX_CHARS, max_bytes=MAX_BYTES)
    for file in _files(path):
        try:
            rule = _RULES.get(file.suffix.lower(), f"paragraphs:{DOCUMENT_CHARS}")
            collection.add(documents_of(rule, _read(file)))
        except UnicodeError as error:
            raise OwnTextError(f"{file}: expected text as UTF-8: {error}") from error
        except DocumentError as error:
            raise OwnTextError(f"{file}: {error}") from error
    found = len(collection.documents)
    if found < MIN_DOCUMENTS:
        raise OwnTextError(
            f"{path}: {found} distinct documents of up to {DOCUMENT_CHARS} characters "
            f"({collection.num_bytes} bytes), expected at least {MIN_DOCUMENTS}"
        )
    return collection


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    found = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES and file.is_file()
    )
    if not found:
        raise OwnTextError(f"{path}: expected files named {', '.join(TEXT_SUFFIXES)}, found none")
    if len(found) > MAX_FILES:
        raise OwnTextError(f"{path}: {len(found)} files, expected at most {MAX_FILES}")
    yield from found


def _read(file: Path) -> bytes:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OwnTextError(f"{file}: expected a regular file or a folder")
        if status.st_size > MAX_FILE_BYTES:
            raise OwnTextError(
                f"{file}: {status.st_size} bytes, expected at most {MAX_FILE_BYTES} a file"
            )
        data = file.read_bytes()
    except OSError as error:
        raise OwnTextError(f"{file}: cannot be read: {error.strerror}") from error
    if b"\0" in data:
        raise OwnTextError(f"{file}: a binary file, expected text as UTF-8")
    return data
