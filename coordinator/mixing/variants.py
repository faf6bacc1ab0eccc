"""Which mixtures are compared: every combination of levers that differs from all others. Pure."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from protocol.values import Items, Value
from shared.mixing.evidence import PAIRS
from shared.mixing.ingredients import MixingError
from shared.mixing.recipe import Part, Recipe, make_recipe, unknown_key_words

MAX_VARIANTS = 200
_MAX_BYTES = 1_000_000

RouterName = Annotated[str, Field(pattern=r"^[a-z]+(/[a-z]+)?$", max_length=40)]
SelectionName = Annotated[str, Field(pattern=r"^(soft|top-[1-9][0-9]{0,3}|top-p0?\.[0-9]+)$")]
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_TOP_P = re.compile(r"top-p(.*)")


class Levers(Value):
    """What is varied. `routers` are kinds, each alone or as `kind/source`: `linear/ridge`.

    `selections`: `soft`, `top-1`, `top-p0.6`. `decays`, `sharpness`, `saturations` and `pairs` are
    the prefix router's, and vary nothing else. `owned`: `auto` or lists of parts. With an anchor
    the seed is an expert, too. `variants` are recipes by name; where there are any, nothing is
    varied beside them unless `routers` are named.
    """

    routers: Annotated[Items[RouterName], Field(min_length=1)] = (
        "prefix",
        "gateless",
        "linear/ridge",
    )
    selections: Annotated[Items[SelectionName], Field(min_length=1)] = ("soft", "top-1")
    decays: Annotated[Items[float], Field(min_length=1)] = (0.98, 1.0)
    sharpness: Annotated[Items[float], Field(min_length=1)] = (1.0,)
    saturations: Annotated[Items[float], Field(min_length=1)] = (0.5,)
    pairs: Annotated[Items[int], Field(min_length=1)] = (PAIRS,)
    anchors: Annotated[Items[bool], Field(min_length=1)] = (False, True)
    shared_from: Annotated[Items[Literal["seed", "average", "posterior"]], Field(min_length=1)] = (
        "seed",
    )
    owned: Annotated[Items[Literal["auto"] | Items[Part]], Field(min_length=1)] = ("auto",)
    rng_seed: Annotated[int, Field(ge=0)] = 0
    variants: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)

    @property
    def varies(self) -> bool:
        """Whether combinations are made."""
        return not self.variants or "routers" in self.model_fields_set


@dataclass(frozen=True)
class Variant:
    """One mixture of the experts: what it is called in tables, and its recipe."""

    name: str
    recipe: Recipe


def read_levers(path: Path) -> Levers:
    """The levers in a TOML file. Raises MixingError naming file, key and value."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise MixingError(f"{path}: expected at most {_MAX_BYTES} bytes")
        return Levers.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise MixingError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        item = error.errors()[0]
        key = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            words = unknown_key_words(item["loc"], Levers)
            raise MixingError(f"{path}: {key}: {words}") from error
        raise MixingError(f"{path}: {key} = {item['input']!r:.80}: {item['msg']}") from error
    except ValueError as error:
        raise MixingError(f"{path}: no TOML: {error}") from error


def variants_of(levers: Levers, shares: Mapping[str, float]) -> tuple[Variant, ...]:
    """Every combination once, whose differences show in its name; levers that vary nothing there
    are left out.

    `shares` are the experts' mean posterior, for what is shared by it. Raises MixingError for a
    router, a selection or a number that no recipe has, and for more than MAX_VARIANTS.
    """
    found = {name: _named(name, values, shares) for name, values in levers.variants.items()}
    for values, name in _combinations(levers, shares) if levers.varies else ():
        found.setdefault(name, make_recipe(values))
    if len(found) > MAX_VARIANTS:
        raise MixingError(
            f"levers: {len(found)} variants, expected at most {MAX_VARIANTS}: leave values out"
        )
    return tuple(Variant(name, recipe) for name, recipe in found.items())


def recipe_toml(recipe: Mapping[str, Any]) -> str:
    """The file of a recipe, given as its JSON: what `read_recipe` reads."""
    tables = {name: value for name, value in recipe.items() if isinstance(value, dict) and value}
    lines = [f"{name} = {json.dumps(value)}" for name, value in _plain(recipe)]
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{_key(key)} = {json.dumps(value)}" for key, value in _plain(table)]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name)


def _plain(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is no table and not None, which TOML does not have."""
    yield from ((k, v) for k, v in values.items() if v is not None and not isinstance(v, dict))


def _named(name: str, values: Mapping[str, Any], shares: Mapping[str, float]) -> Recipe:
    known = {"shares": dict(shares)} if values.get("shared_from") == "posterior" else {}
    try:
        return make_recipe({**known, **values})
    except MixingError as error:
        raise MixingError(f"variants.{name}: {error}") from error


def _combinations(
    levers: Levers, shares: Mapping[str, float]
) -> Iterator[tuple[dict[str, Any], str]]:
    for owned, shared_from, anchor, router in product(
        levers.owned, levers.shared_from, levers.anchors, levers.routers
    ):
        outside: dict[str, Any] = {"owned": owned, "shared_from": shared_from, "anchor": anchor}
        if shared_from == "posterior":
            outside["shares"] = dict(shares)
        words = [
            *_owned_words(owned),
            *([] if shared_from == "seed" else [f"shared {shared_from}"]),
        ]
        for settings, setting_words in _routers(levers, router):
            name = " ".join([router, *setting_words, *words]) + ("+seed" if anchor else "")
            yield {**outside, "router": settings}, name


def _routers(levers: Levers, router: str) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The settings of one router, and the words that tell them apart."""
    kind, _, source = router.partition("/")
    base: dict[str, Any] = {"kind": kind, **({"source": source} if source else {})}
    if source == "noisy":
        base["rng_seed"] = levers.rng_seed
    if kind == "gateless":
        yield base, []
        return
    tempers: list[tuple[dict[str, Any], list[str]]] = [({}, [])]
    if kind == "prefix":
        tempers = list(_tempers(levers))
    for selection, (temper, words) in product(levers.selections, tempers):
        yield {**base, **_selection(selection), **temper}, [selection, *words]


def _tempers(levers: Levers) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The prefix router's settings, and words for those that there are several of."""
    axes = {
        "sharpness": (levers.sharpness, "x"),
        "saturation": (levers.saturations, "saturation "),
        "pairs": (levers.pairs, "pairs "),
        "decay": (levers.decays, "decay "),
    }
    for values in product(*(some for some, _ in axes.values())):
        words = [
            f"{word}{value:g}"
            for value, (some, word) in zip(values, axes.values(), strict=True)
            if len(set(some)) > 1
        ]
        yield dict(zip(axes, values, strict=True)), words


def _selection(name: str) -> dict[str, Any]:
    if name == "soft":
        return {"selection": "soft"}
    if mass := _TOP_P.fullmatch(name):
        return {"selection": "top_p", "top_p": float(mass[1])}
    return {"selection": "top_k", "top_k": int(name.removeprefix("top-"))}


def _owned_words(owned: object) -> list[str]:
    if owned == "auto":
        return []
    parts = list(owned) if isinstance(owned, tuple) else []
    return ["own " + ("+".join(parts) if parts else "ffn")]
