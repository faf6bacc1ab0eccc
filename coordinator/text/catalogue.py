"""The catalogue: texts by name, each with its artifacts, document rule, cleaning and licence.

The data are in catalogue.toml. Nothing is fetched here, and no text is shipped.
"""

import difflib
import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import Field

from coordinator.text_sections import Index, PackageSource, Section, Text
from protocol.ids import Digest
from protocol.values import Positive

Role = Literal["general", "trained", "held-out"]
Words = Annotated[str, Field(min_length=1, max_length=500)]


class Artifact(Section):
    """A file of a package index; `bytes` is its size."""

    index: Index
    package: Words
    version: Words
    sha256: Digest
    bytes: Positive


class Entry(Text):
    """A text of the catalogue: sources, cleaning and limits, and where it comes from.

    `genre` is its register; `redistribution` is whether the licence allows to pass the text on;
    `documents` and `text_bytes` are what these settings give.
    """

    role: Role
    genre: Annotated[Words, Field(alias="register")]
    licence: Words
    redistribution: bool
    attribution: Words
    documents: Positive
    text_bytes: Positive

    @property
    def packages(self) -> tuple[PackageSource, ...]:
        """The sources, one for each artifact."""
        named = {
            source.sha256: source for source in self.sources if isinstance(source, PackageSource)
        }
        return tuple(named.values())


class Catalogue(Section):
    """Texts by name, and their artifacts by SHA-256."""

    artifacts: dict[str, Artifact]
    texts: dict[str, Entry]

    def size(self, source: PackageSource) -> int | None:
        """How large the artifact of `source` is in bytes, where the catalogue knows it."""
        artifact = self.artifacts.get(source.sha256)
        return None if artifact is None else artifact.bytes


@functools.cache
def catalogue() -> Catalogue:
    """The catalogue of this version."""
    raw = _raw()
    artifacts = {artifact["sha256"]: artifact for artifact in raw["artifacts"].values()}
    return Catalogue.model_validate({"artifacts": artifacts, "texts": raw["texts"]})


@functools.cache
def _raw() -> dict[str, Any]:
    """The data, each source with the fields of the artifact that it names."""
    file = resources.files("coordinator.text").joinpath("catalogue.toml")
    raw = tomllib.loads(file.read_text(encoding="utf-8"))
    for text in raw["texts"].values():
        for source in text["sources"]:
            artifact = raw["artifacts"][source.pop("artifact")]
            source |= {key: artifact[key] for key in ("index", "package", "version", "sha256")}
    return raw


_TEXT_KEYS = frozenset(Text.model_fields) - {"catalogue"}


def expanded(text: Mapping[str, Any]) -> dict[str, Any]:
    """A run file's table of a text, with what the catalogue says where it names an entry.

    What the table says itself, such as `max_bytes`, stays. A table that names no entry, an unknown
    one, or sources as well is returned as it is: `problem_of` says what is wrong with it.
    """
    entry = _raw()["texts"].get(text.get("catalogue"))
    if entry is None or "sources" in text:
        return dict(text)
    return {key: value for key, value in entry.items() if key in _TEXT_KEYS} | dict(text)


def problem_of(name: str) -> str | None:
    """What is wrong with `name` as the name of a text, with the names near it; None if nothing."""
    known = sorted(_raw()["texts"])
    if name in known:
        return None
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known)}"
    return f"{name!r} is not in the catalogue; {hint}"


def page() -> str:
    """The catalogue as Markdown tables, as docs/corpora.md shows it."""
    lines = []
    for role, title in _TITLES.items():
        lines += [f"### {title}", "", *_ROW_HEAD]
        lines += [
            _row(name, entry) for name, entry in catalogue().texts.items() if entry.role == role
        ]
        lines.append("")
    lines += ["### Whom to name", "", "| Text | Attribution |", "|---|---|"]
    lines += [f"| `{name}` | {entry.attribution} |" for name, entry in catalogue().texts.items()]
    return "\n".join(lines) + "\n"


_TITLES: dict[Role, str] = {
    "general": "General text",
    "trained": "Domains to train on",
    "held-out": "Domains that no expert trains on",
}
_ROW_HEAD = (
    "| Text | Register | Artifact | Licence | May be passed on | Bytes | Documents |",
    "|---|---|---|---|---|---:|---:|",
)


def _row(name: str, entry: Entry) -> str:
    artifacts = ", ".join(
        f"{source.index} {source.package} {source.version}" for source in entry.packages
    )
    allowed = "yes" if entry.redistribution else "no"
    return (
        f"| `{name}` | {entry.genre} | {artifacts} | {entry.licence} | {allowed} | "
        f"{entry.text_bytes:,} | {entry.documents:,} |"
    )
