"""What happens to documents between their file and the collection: removals, repeats, packing."""

import hashlib
import re
from collections.abc import Iterable, Iterator

from coordinator.text_sections import Source

_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
_SENTENCE_END = re.compile(r"(?<=[.!?]) +")


class Repeats:
    """The long lines of one text: of equal lines over `min_chars` characters the first stays.

    Holds 8 bytes of each line's digest. None: every line stays.
    """

    def __init__(self, min_chars: int | None) -> None:
        self._min_chars = min_chars
        self._seen: set[bytes] = set()
        self.chars_left_out = 0

    def without(self, text: str) -> str:
        """`text` without the lines that came before, here or in an earlier text."""
        if self._min_chars is None:
            return text
        return "\n".join(line for line in text.split("\n") if not self._came_before(line))

    def _came_before(self, line: str) -> bool:
        plain = line.strip()
        if self._min_chars is None or len(plain) <= self._min_chars:
            return False
        digest = hashlib.blake2b(plain.encode("utf-8"), digest_size=8).digest()
        if digest in self._seen:
            self.chars_left_out += len(line)
            return True
        self._seen.add(digest)
        return False


def cleaned(documents: Iterable[str], source: Source, repeats: Repeats) -> Iterator[str]:
    """One file's `documents` as `source` wants them, in order; blank ones are left out.

    Raises UnicodeEncodeError for a line with lone surrogates.
    """
    removals = [re.compile(pattern) for pattern in source.remove]
    kept = _kept(documents, removals, repeats)
    return kept if source.pack is None else packed(kept, limit=source.pack)


def _kept(
    documents: Iterable[str], removals: list[re.Pattern[str]], repeats: Repeats
) -> Iterator[str]:
    for document in documents:
        text = document
        for pattern in removals:
            text = pattern.sub("", text)
        text = repeats.without(text).strip("\n").rstrip()
        if text and not text.isspace():
            yield text


def packed(documents: Iterable[str], *, limit: int) -> Iterator[str]:
    """`documents` cut at blank lines, else at ends of lines, else of sentences, and packed.

    No result is over `limit` characters but by a single sentence that is.
    """
    held = ""
    for document in documents:
        for gap, piece in _pieces(document, limit):
            joined = f"{held}{gap}{piece}" if held else piece
            if held and len(joined) > limit:
                yield held
                joined = piece
            held = joined
    if held:
        yield held


def _pieces(document: str, limit: int) -> Iterator[tuple[str, str]]:
    """(what parts it from the piece before, the piece)."""
    for paragraph in _BLANK_LINES.split(document):
        for number, line in enumerate(_parts(paragraph, "\n", limit)):
            for place, sentence in enumerate(_parts(line, _SENTENCE_END, limit)):
                if sentence and not sentence.isspace():
                    yield (" " if place else "\n" if number else "\n\n"), sentence


def _parts(text: str, gap: str | re.Pattern[str], limit: int) -> list[str]:
    if len(text) <= limit:
        return [text]
    return gap.split(text) if isinstance(gap, re.Pattern) else text.split(gap)
