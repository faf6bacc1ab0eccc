"""The bootstrap peers that a worker knows: those that REST named lately, kept on disk.

A worker that starts again while the coordinator's network role is away still finds the swarm.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from protocol.ids import Maddr, PeerId, RunId
from protocol.values import Amount, Value
from shared.files import write_atomic

log = logging.getLogger(__name__)

MAX_KNOWN = 8
KEPT_SECONDS = 7 * 86_400.0
"""A peer that nobody has named for so long may have become somebody else's computer."""

SAME_TIME_SECONDS = 86_400.0
MAX_FILE_BYTES = 64 * 1024


class Named(Value):
    """A bootstrap peer's multiaddress, and when it was named last, in seconds since 1970."""

    maddr: Maddr
    at: Amount


class Bootstrap(Value):
    """Whom to meet of one run. `client_mode`: nobody could dial this worker when it was last tried.

    The order is that of trying: what was named last stands first.
    """

    coordinator: PeerId
    run: RunId
    client_mode: bool = False
    peers: Annotated[tuple[Named, ...], Field(strict=False, max_length=MAX_KNOWN)] = ()

    @property
    def maddrs(self) -> tuple[str, ...]:
        """Their multiaddresses."""
        return tuple(named.maddr for named in self.peers)

    def learn(self, maddrs: Sequence[str], *, own: str, now: float) -> "Bootstrap":
        """The same with `maddrs` named now, without `own` peer id and what is named no longer.

        Times change once a day only, so that what says nothing new is not written again.
        """
        recent = {named.maddr: named for named in self.peers if now - named.at < SAME_TIME_SECONDS}
        new = [recent.get(maddr, Named(maddr=maddr, at=now)) for maddr in dict.fromkeys(maddrs)]
        old = [
            named
            for named in self.peers
            if named.maddr not in maddrs and now - named.at < KEPT_SECONDS
        ]
        known = [named for named in (*new, *old) if not named.maddr.endswith(f"/p2p/{own}")]
        return self.model_copy(update={"peers": tuple(known[:MAX_KNOWN])})


def load_bootstrap(path: Path, *, coordinator: str, run: str) -> Bootstrap:
    """What is known of the run; nothing if the file is missing, damaged, or of another run."""
    empty = Bootstrap(coordinator=coordinator, run=run)
    try:
        with path.open("rb") as file:
            found = Bootstrap.model_validate_json(file.read(MAX_FILE_BYTES))
    except FileNotFoundError:
        return empty
    except (OSError, ValidationError) as error:
        log.warning("%s is ignored, its bootstrap peers cannot be read: %s", path, error)
        return empty
    return found if (found.coordinator, found.run) == (coordinator, run) else empty


def save_bootstrap(path: Path, bootstrap: Bootstrap) -> None:
    """Keep it for the next life. Training does not depend on it: failing is only told."""
    try:
        write_atomic(path, bootstrap.model_dump_json(indent=2).encode())
    except OSError as error:
        log.warning("%s cannot be written, bootstrap peers are not kept: %s", path, error)
