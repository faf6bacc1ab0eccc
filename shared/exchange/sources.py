"""Where a blob can be read from: what all sources have in common, and in which ways they fail."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from protocol.blobs import BlobRef, PieceList

Route = Literal["direct", "peer", "retained", "http"]
"""direct: from the holder who named it; peer: from another provider; retained: from the coordinator
over libp2p; http: from the coordinator's network role."""

Read = Callable[[int], Awaitable[bytearray]]
"""The next bytes of a range, at most so many and never none, to be kept and changed by the caller;
SourceFailed if they do not come."""


class SourceFailed(Exception):
    """A source gave no usable answer; `reason` says why. Another may."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SourceBusy(SourceFailed):
    """The source has too much to do: the same question may be answered a little later."""


class UnknownBlob(SourceFailed):
    """There is no such blob, or none that we may read: to ask again is of no use."""


class WrongBytes(SourceFailed):
    """A source sent what does not answer to the digest: do not ask it again for this blob."""


class Source(Protocol):
    """One place that a blob can be read from, by ranges."""

    @property
    def route(self) -> Route:
        """By what kind of way its bytes come."""

    @property
    def name(self) -> str:
        """Who it is, for logs and for remembering who sent wrong bytes."""

    async def pieces(self, ref: BlobRef) -> PieceList:
        """The piece list of the blob. Raises SourceFailed; the caller checks what it answers to."""

    def opened(self, ref: BlobRef, offset: int, length: int) -> AbstractAsyncContextManager[Read]:
        """Ask for `length` bytes from `offset`. Raises SourceFailed."""


@dataclass(frozen=True)
class Tier:
    """Sources of one route. They are looked for only once it is their turn.

    `may_be_slow`: the next tier would hardly be faster, so only failures lead there.
    """

    route: Route
    find: Callable[[], Awaitable[Sequence[Source]]]
    may_be_slow: bool = False
