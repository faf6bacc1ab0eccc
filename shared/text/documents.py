"""Files to documents: what one document is, which are kept, and which split each belongs to."""

import ast
import hashlib
import hmac
import html
import json
import re
import warnings
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field

from protocol.blobs import Split
from shared.text.errors import PrepareError

TEST_FRACTION, GATE_FRACTION, DEV_FRACTION = 0.08, 0.06, 0.06

_BLOCK_END = re.compile(r"<(?:br|/p|/li|/div|/tr|/h[1-6])\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")


class DocumentError(PrepareError):
    """A file does not have the form that its document rule expects."""


def documents_of(rule: str, data: bytes) -> Iterator[str]:
    """The documents in a file's UTF-8 `data` by `rule` (see `Source` of the run file).

    Line ends become newlines; documents lose blank lines around them, and blank ones are left out.
    Raises UnicodeDecodeError for other encodings and DocumentError for what has not the form that
    the rule reads.
    """
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    kind, _, argument = rule.partition(":")
    for document in _RULES[kind](text, argument):
        kept = document.strip("\n").rstrip()
        if kept and not kept.isspace():
            yield kept


def _whole(text: str, _argument: str) -> Iterator[str]:
    yield text


def _split(text: str, argument: str) -> Iterator[str]:
    starts = [match.start() for match in re.finditer(argument, text)]
    for start, end in zip([0, *starts], [*starts, len(text)], strict=True):
        yield text[start:end]


def _match(text: str, argument: str) -> Iterator[str]:
    for match in re.finditer(argument, text):
        yield "\n".join(group for group in match.groups() or (match[0],) if group)


def _docstrings(text: str, _argument: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DocumentError(f"not Python: {error}") from error
    pending: deque[ast.AST] = deque([tree])
    while pending:
        node = pending.popleft()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        pending.extend(_statements_in(node))


def _statements_in(node: ast.AST) -> Iterator[ast.AST]:
    """The statements right below `node`; expressions hold no docstrings, and are most of a tree."""
    for name in node._fields:
        children = getattr(node, name)
        if isinstance(children, list):
            for child in children:
                if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
                    yield child


def _paragraphs(text: str, argument: str) -> Iterator[str]:
    limit = int(argument)
    packed = ""
    for paragraph in _BLANK_LINES.split(text):
        joined = f"{packed}\n\n{paragraph}" if packed else paragraph
        if packed and len(joined) > limit:
            yield packed
            joined = paragraph
        packed = joined
    yield packed


def _json_pointer(text: str, argument: str) -> Iterator[str]:
    names = [part.replace("~1", "/").replace("~0", "~") for part in argument[1:].split("/")]
    found = [_parse_json(text)]
    for name in names:
        found = [child for node in found for child in _children(node, name)]
    return (node for node in found if isinstance(node, str))


def _children(node: object, name: str) -> list[object]:
    if isinstance(node, dict):
        if name == "*":
            return list(node.values())
        return [node[name]] if name in node else []
    if isinstance(node, list):
        if name == "*":
            return node
        return [node[int(name)]] if name.isdecimal() and int(name) < len(node) else []
    return []


def _json_text(text: str, argument: str) -> Iterator[str]:
    yield "\n".join(_without_markup(leaf) for leaf in _leaves(_parse_json(text), argument))


def _json_each(text: str, argument: str) -> Iterator[str]:
    return (_without_markup(leaf) for leaf in _leaves(_parse_json(text), argument))


def _json_lines(text: str, argument: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = _parse_json(line, where=f"line {number}: ")
        found = row.get(argument) if isinstance(row, dict) else None
        if not isinstance(found, str):
            raise DocumentError(f"line {number}: expected an object with text under {argument!r}")
        yield found


def _leaves(node: object, key: str) -> Iterator[str]:
    pending: list[tuple[object, bool]] = [(node, False)]
    while pending:
        item, wanted = pending.pop()
        if isinstance(item, dict):
            pending += [(value, name == key) for name, value in reversed(item.items())]
        elif isinstance(item, list):
            pending += [(value, wanted) for value in reversed(item)]
        elif wanted and isinstance(item, str):
            yield item


def _without_markup(text: str) -> str:
    plain = html.unescape(_TAG.sub("", _BLOCK_END.sub("\n", text)))
    return "\n".join(" ".join(line.split()) for line in plain.split("\n") if line.strip())


def _parse_json(text: str, *, where: str = "") -> object:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DocumentError(f"{where}not JSON: {error}") from error


_RULES: dict[str, Callable[[str, str], Iterator[str]]] = {
    "file": _whole,
    "split": _split,
    "json": _json_pointer,
    "json-text": _json_text,
    "json-each": _json_each,
    "jsonl": _json_lines,
    "match": _match,
    "docstrings": _docstrings,
    "paragraphs": _paragraphs,
}


@dataclass(frozen=True)
class Document:
    """A text, its length in UTF-8 bytes, and the SHA-256 of those bytes. Ordered by digest."""

    digest: bytes
    text: str = field(compare=False)
    num_bytes: int = field(compare=False)

    def __lt__(self, other: "Document") -> bool:
        return self.digest < other.digest


class Collection:
    """Keeps the documents of one text: distinct, within limits, in digest order up to `max_bytes`.

    What is kept depends on the documents alone, not on the order in which they come, and no more
    than `max_bytes` and one document are held at a time. `seen` are digests that other texts of the
    run have claimed.
    """

    def __init__(
        self, *, min_chars: int, max_chars: int, max_bytes: int, seen: Set[bytes] = frozenset()
    ) -> None:
        self._limits = (min_chars, max_chars)
        self._max_bytes = max_bytes
        self._seen = seen
        self._ceiling = b"\xff" * 33
        self._kept: list[Document] = []
        self._digests: set[bytes] = set()
        self.num_bytes = 0
        self.left_out = {"too short": 0, "too long": 0, "duplicate": 0, "over max_bytes": 0}

    @property
    def documents(self) -> list[Document]:
        """What is kept so far, in digest order."""
        return self._kept

    def add(self, texts: Iterable[str]) -> None:
        """Consider `texts`. Raises UnicodeEncodeError for a text with lone surrogates."""
        for text in texts:
            reason = self._consider(text)
            if reason:
                self.left_out[reason] += 1

    def _consider(self, text: str) -> str | None:
        if len(text) < self._limits[0]:
            return "too short"
        if len(text) > self._limits[1]:
            return "too long"
        data = text.encode("utf-8")
        digest = hashlib.sha256(data).digest()
        if digest in self._digests or digest in self._seen:
            return "duplicate"
        if digest >= self._ceiling:
            return "over max_bytes"
        insort(self._kept, Document(digest=digest, text=text, num_bytes=len(data)))
        self._digests.add(digest)
        self.num_bytes += len(data)
        while self.num_bytes > self._max_bytes:
            dropped = self._kept.pop()
            self._digests.remove(dropped.digest)
            self._ceiling = dropped.digest
            self.num_bytes -= dropped.num_bytes
            self.left_out["over max_bytes"] += 1
        return None


def split_documents(
    documents: Sequence[Document], *, split_key: bytes | None
) -> dict[Split, list[Document]]:
    """Each document's split; within a split they keep their order.

    Gate and test are the documents that come first by HMAC-SHA256 of their digest with `split_key`,
    so that without the key nobody can tell which they are; dev comes first of the others by a
    public digest. With no key there is no gate and no test.
    """
    splits: dict[bytes, Split] = {}
    if split_key is not None:
        keyed = sorted(documents, key=lambda document: _keyed_digest(document.digest, split_key))
        num_test = round(TEST_FRACTION * len(keyed))
        num_gate = round(GATE_FRACTION * len(keyed))
        splits |= {document.digest: "test" for document in keyed[:num_test]}
        splits |= {document.digest: "gate" for document in keyed[num_test:][:num_gate]}
    others = [document for document in documents if document.digest not in splits]
    others.sort(key=lambda document: hashlib.sha256(b"hdee-dev|" + document.digest).digest())
    num_dev = round(DEV_FRACTION * len(documents))
    splits |= {document.digest: "dev" for document in others[:num_dev]}
    names: tuple[Split, ...] = ("train", "dev", "gate", "test")
    return {
        name: [document for document in documents if splits.get(document.digest, "train") == name]
        for name in (names[:2] if split_key is None else names)
    }


def _keyed_digest(digest: bytes, split_key: bytes) -> bytes:
    return hmac.digest(split_key, digest, "sha256")
