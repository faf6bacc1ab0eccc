"""What a request for work would get now, asked without asking for work."""

from typing import Annotated, Literal

from pydantic import Field

from protocol.blobs import BlobRef
from protocol.manifests import CheckpointManifest
from protocol.messages import Parent, Text
from protocol.specs import ExpertSpec
from protocol.values import Amount, Count, Items, Number, Value

MAX_LACKS = 5

Prospect = Literal["now", "later", "never"]


class Lack(Value):
    """A requirement of some work that the asking machine does not meet.

    `needed` and `held` are numbers of `unit`; None where the requirement is not a quantity.
    """

    description: Text
    requirement: Annotated[str, Field(max_length=64)]
    words: Text
    needed: Number | None
    held: Number | None
    unit: Annotated[str, Field(max_length=16)]


class PreviewedWork(Value):
    """What would be offered: the fields of an offer that are known without making one.

    `memory_bytes` is what training is expected to take at most on the asking device, as far as
    workers measured it; None: the coordinator does not say.
    """

    spec: ExpertSpec
    shard: BlobRef
    parent: Parent | None
    resume: CheckpointManifest | None
    checkpoint_seconds: Amount
    reason: Text
    memory_bytes: Count | None = None


class Preview(Value):
    """POST /v1/assignments/preview, with the body of a request for work. Nothing is promised.

    `prospect`: "now": `work` would be offered; "later": this machine can be of use, but not now, as
    `reason` says; "never": no work that is known fits it, or none will come. `unfinished` counts
    the assignments that were looked at, those that others do included. `lacks` say, the smallest
    first, what keeps the machine from some of them.
    """

    prospect: Prospect
    work: PreviewedWork | None
    reason: Text
    unfinished: Count
    lacks: Items[Lack]
