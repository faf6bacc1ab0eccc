"""Is our DHT the run's? Decided from looks at the coordinator's beacon. Pure.

Where the coordinator answers over REST, but its beacon cannot be read in our DHT look after look,
we stand in a part that lost the rest, or our daemon is of no use although it runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["fine", "rejoin", "rebuild"]

DARK_TO_REJOIN = 2
DARK_TO_REBUILD = 5
MAX_LOOKS = 8
REBUILD_SECONDS = 900.0
"""A daemon is rebuilt for a missing beacon no more often than this: that ends its transfers."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look found.

    `lit`: a beacon that is not old is read in our DHT. `rest`: the coordinator answered over REST.
    `open`: plain TCP led to a bootstrap peer.
    """

    lit: bool
    rest: bool
    open: bool


def judge(looks: Sequence[Look], *, rebuilt_at: float | None, now: float) -> Verdict:
    """What to do after `looks`, the newest last; a rebuild for this reason was at `rebuilt_at`.

    A look while REST did not answer says nothing: a coordinator that is away has no beacon. And a
    new daemon is no help where not even plain TCP leads to a bootstrap peer.
    """
    dark = 0
    for look in reversed(looks):
        if look.lit:
            break
        dark += look.rest
    if dark < DARK_TO_REJOIN or not looks[-1].rest:
        return "fine"
    rested = rebuilt_at is None or now - rebuilt_at >= REBUILD_SECONDS
    return "rebuild" if dark >= DARK_TO_REBUILD and looks[-1].open and rested else "rejoin"
