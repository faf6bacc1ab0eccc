"""What a coordinator answers, read by a worker that may be older than it. Pure."""

from collections.abc import Iterator
from typing import TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from protocol import PROTOCOL_VERSION
from protocol.certificates import Certificate
from protocol.manifests import CheckpointManifest
from protocol.receipts import Receipt
from protocol.specs import ExpertSpec
from shared.version import SOFTWARE_VERSION
from worker.errors import WorkerError

Answer = TypeVar("Answer", bound=BaseModel)

NAMED_BY_DIGEST = (ExpertSpec, CheckpointManifest, Certificate, Receipt)
"""Digests or signatures cover these: one with a field left out would be another value."""


class Outdated(WorkerError):
    """The coordinator asks for something that this version of the software knows nothing of."""

    exit_code = 4


def read_answer(content: bytes, kind: type[Answer]) -> Answer:
    """The answer in a response's body. Fields that this version does not know are left out.

    Raises ValidationError for what is no such answer, Outdated where an unknown field must not be
    left out.
    """
    answer = kind.model_validate_json(content, extra="ignore")
    unknown = next(_unknown(answer, from_json(content), named=None), None)
    if unknown is not None:
        raise Outdated(
            f"the coordinator sent {unknown}, which protocol {PROTOCOL_VERSION} does not know: "
            f"install a newer hdee: pip install --upgrade hdee (this is {SOFTWARE_VERSION})"
        )
    return answer


def _unknown(value: object, raw: object, *, named: str | None) -> Iterator[str]:
    """Fields of `raw` that are missing in `value`, in what a digest or a signature covers."""
    if isinstance(value, BaseModel) and isinstance(raw, dict):
        covered = type(value).__name__ if isinstance(value, NAMED_BY_DIGEST) else named
        fields = type(value).model_fields
        if covered is not None:
            yield from (f"{covered} with {name}" for name in sorted(raw.keys() - fields.keys()))
        for name in fields.keys() & raw.keys():
            yield from _unknown(getattr(value, name), raw[name], named=covered)
    elif isinstance(value, tuple | list) and isinstance(raw, list):
        for one, its in zip(value, raw, strict=False):
            yield from _unknown(one, its, named=named)
