"""Which blob came to whom, from whom and by which route: read from the logs of one swarm.

    python scripts/transfers.py demo

The folder holds a run in `run/` and each worker's folder beside it, as `make demo` leaves them.
"""

import argparse
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shared.identity import Identity

LINE = re.compile(
    r"^(?P<at>\S+) I \S+: (?P<what>fetched|uploaded|received) digest=(?P<digest>\S+) "
    r"bytes=(?P<size>\d+) (?:seconds=\S+ )?(?:worker=\S+ )?route=(?P<route>.*)$"
)
PEER = re.compile(r"12D3Koo\w+")


@dataclass(frozen=True)
class Transfer:
    """One line of a log. `what` is said from the side of `who`; sizes in bytes."""

    at: str
    who: str
    what: str
    digest: str
    num_bytes: int
    route: str


def read(folder: Path) -> list[Transfer]:
    """All transfers of the swarm in `folder`, by time."""
    names = names_of(folder)
    found = []
    for who, log in logs_of(folder):
        for line in log.read_text().splitlines():
            if match := LINE.match(line):
                route = PEER.sub(lambda peer: names.get(peer[0], peer[0][-6:]), match["route"])
                num_bytes = int(match["size"])
                found.append(
                    Transfer(match["at"], who, match["what"], match["digest"], num_bytes, route)
                )
    return sorted(found, key=lambda one: one.at)


def logs_of(folder: Path) -> list[tuple[str, Path]]:
    """Whose log is where."""
    workers = [(path.parent.name, path) for path in sorted(folder.glob("*/worker.log"))]
    return [("coordinator", folder / "run" / "state" / "logs" / "network.log"), *workers]


def names_of(folder: Path) -> dict[str, str]:
    """Peer ids to names."""
    keys = [(path.parent.name, path) for path in folder.glob("*/worker.key")]
    keys.append(("coordinator", folder / "run" / "keys" / "coordinator.key"))
    return {Identity.load(path).peer_id: name for name, path in keys}


def summary(transfers: list[Transfer]) -> Table:
    """Blobs and bytes by receiver and route."""
    table = Table("to or from", "route", "blobs", "MB", box=None, padding=(0, 3, 0, 3))
    blobs, sizes = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    for one in transfers:
        key = (one.who, one.what, one.route)
        blobs[key] += 1
        sizes[key] += one.num_bytes
    for key in sorted(blobs):
        who, what, route = key
        table.add_row(f"{who} {what}", route, str(blobs[key]), f"{sizes[key] / 1e6:.1f}")
    return table


def write(folder: Path, transfers: list[Transfer]) -> Path:
    """The transfers as lines in `folder`/transfers.log."""
    path = folder / "transfers.log"
    path.write_text(
        "".join(
            f"{one.at} {one.who:<12} {one.what:<8} {one.digest} {one.num_bytes:>10} bytes  "
            f"{one.route}\n"
            for one in transfers
        )
    )
    return path


def main() -> int:
    """Exit code 0 when there was something to show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    transfers = read(folder)
    print(write(folder, transfers).read_text(), end="")
    Console().print(summary(transfers))
    return 0 if transfers else 1


if __name__ == "__main__":
    sys.exit(main())
