"""What is wrong with a run file, in words that name the key, its value and what was expected."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

MAX_SHOWN = 80
MAX_SHOWN_BOUND = 1_000_000
"""Bounds beyond are those of the machine, not of what makes sense."""


class RunFileError(ValueError):
    """The run file cannot be used. `problems` holds one line for each thing to mend."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        self.path = path
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  ".join([f"{path}: {count}", *problems]))


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each problem that pydantic found in a TOML for `model`."""
    known = dict(_keys(model.model_json_schema(by_alias=True)))
    return [line for item in error.errors() for line in _lines(dict(item), known)]


def _lines(item: dict[str, Any], known: dict[str, dict[str, Any]]) -> list[str]:
    key = _key_path(item["loc"])
    if item["type"] == "extra_forbidden":
        return [f"{key}: unknown key; {_nearest(key, sorted(known))}"]
    if item["type"] == "missing":
        words = _described(known.get(_plain(key), {}))
        return [f"{key}: missing{f', expected {words}' if words else ''}"]
    message = str(item["msg"]).removeprefix("Value error, ")
    if not key:
        return message.split("\n")
    value = repr(item["input"])
    shown = value if len(value) <= MAX_SHOWN else value[:MAX_SHOWN] + "..."
    return [f"{key} = {shown}: {_expected(message)}"]


def _expected(message: str) -> str:
    for opening in ("Input should be ", "String should "):
        if message.startswith(opening):
            return "expected " + message.removeprefix(opening)
    return message


def _described(schema: dict[str, Any]) -> str:
    """What a value has to be, in words; empty for what is no number, text or choice."""
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    kinds = {"integer": "a whole number", "number": "a number", "string": "text"}
    bounds = (
        ("exclusiveMinimum", "above"),
        ("minimum", "from"),
        ("exclusiveMaximum", "below"),
        ("maximum", "up to"),
    )
    found = [
        f"{word} {schema[name]:g}"
        for name, word in bounds
        if name in schema and abs(schema[name]) < MAX_SHOWN_BOUND
    ]
    return " ".join([kinds.get(schema.get("type", ""), ""), *found]).strip()


def _plain(key: str) -> str:
    """A key path without the numbers of its lists."""
    return ".".join(part.split("[")[0] for part in key.split("."))


def _key_path(loc: tuple[int | str, ...]) -> str:
    """`domains.python.sources[0].path`; names in angle brackets are pydantic's, not the file's."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not _is_internal(part):
            path += f".{part}" if path else part
    return path


def _is_internal(part: str) -> bool:
    return part.startswith(("<", "literal[", "tuple[", "constrained-", "[key]"))


def _nearest(key: str, known: list[str]) -> str:
    section, _, name = key.rpartition(".")
    plain = _plain(section)
    siblings = [path.rpartition(".")[2] for path in known if _same_section(path, plain)]
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    elsewhere = [path for path in known if path.rpartition(".")[2] == name]
    if elsewhere:
        return f"{name} belongs in [{elsewhere[0].rpartition('.')[0]}]"
    return f"expected one of {', '.join(sorted(set(siblings)))}"


def _same_section(path: str, section: str) -> bool:
    wanted = section.split(".") if section else []
    parts = path.split(".")[:-1]
    return len(parts) == len(wanted) and all(
        part in (want, "NAME") for part, want in zip(parts, wanted, strict=True)
    )


def _keys(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key paths of a JSON schema, `NAME` standing for a name that the file chooses, with theirs."""
    definitions = schema.get("$defs", {})

    def walk(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if "$ref" in node:
            node = definitions[node["$ref"].rpartition("/")[2]]
        for choice in (*node.get("oneOf", ()), *node.get("anyOf", ())):
            yield from walk(choice, prefix)
        if isinstance(node.get("items"), dict):
            yield from walk(node["items"], prefix)
        for name, child in node.get("properties", {}).items():
            path = f"{prefix}.{name}" if prefix else name
            yield path, definitions.get(child.get("$ref", "").rpartition("/")[2], child)
            yield from walk(child, path)
        for named in node.get("patternProperties", {}).values():
            yield from walk(named, f"{prefix}.NAME")

    return walk(schema, "")
