"""A report as its readers have it: a page, and numbers."""

from collections import defaultdict
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "img", "br", "link", "input", "hr"}


@dataclass(frozen=True)
class Reported:
    """A report that was written to `folder`: the page's text, and what report.json holds."""

    folder: Path
    page: str
    numbers: dict[str, Any]


class Page(HTMLParser):
    """What a browser would make of a page. `numbers` are by the name of their table, in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: dict[str, list[float]] = defaultdict(list)
        self.words: list[str] = []
        self._table = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = found["data-name"] or ""
        if tag == "data":
            self.numbers[self._table].append(float(found["value"] or "nan"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
