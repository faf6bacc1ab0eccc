"""A text's sources to its collection: every file by its document rule, cleaned, and counted."""

from collections.abc import Callable, Iterator, Set

from coordinator.text.cleaning import Repeats, cleaned
from coordinator.text_sections import AnySource, Text
from shared.text.documents import Collection, DocumentError, documents_of

Files = Callable[[AnySource], Iterator[tuple[str, bytes]]]
"""(name, content) of a source's files, one at a time, in a fixed order."""


def collect(text: Text, *, files: Files, seen: Set[bytes] = frozenset()) -> Collection:
    """What is kept of `text`; its `left_out` also counts files and characters in repeated lines.

    `seen` are the digests of documents that other texts of the run have claimed.
    Raises DocumentError, which names the file, for one without the form that its rule reads, and
    what `files` raises.
    """
    collection = Collection(
        min_chars=text.min_chars,
        max_chars=text.max_chars,
        max_bytes=text.max_bytes,
        seen=seen,
    )
    repeats = Repeats(text.repeated_line_chars)
    unreadable = 0
    for source in text.sources:
        for name, data in files(source):
            try:
                collection.add(cleaned(documents_of(source.document, data), source, repeats))
            except UnicodeError:
                unreadable += 1
            except DocumentError as error:
                raise DocumentError(f"{name}: {error}") from error
    collection.left_out["files not UTF-8"] = unreadable
    collection.left_out["characters in repeated lines"] = repeats.chars_left_out
    return collection
