"""The base of every value that crosses a wire, and bounded numbers for its fields."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

MAX_INTEGER = 2**53
"""Largest integer that every JSON reader keeps exact."""

Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Positive = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]

Item = TypeVar("Item")
Items = Annotated[tuple[Item, ...], Field(strict=False, max_length=4096)]
"""A bounded tuple. Not strict, because JSON has no tuples; its items stay strict."""


class Value(BaseModel):
    """A frozen value. Unknown fields and silently converted types are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
