"""`hdee-worker check`: what stands between this machine and a run, and how to mend it.

Checks run in the order of `worker.checks.CHECKS`; each looks at one thing and may use what those
before it learnt.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from protocol.messages import RegisterAnswer, RunInfo
from shared.swarm.peer import Peer
from worker.client import CoordinatorClient
from worker.folder import WorkerFolder
from worker.settings import JoinSettings

log = logging.getLogger(__name__)

REST = "coordinator"
WAYS = ("http", "libp2p")
"""Checks of the ways that blobs come and go by. One of them is enough to take part."""

INDENT = 23


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one check found. `warning`: the worker can take part, but not as well as it might."""

    state: Literal["ok", "warning", "failure"]
    found: str
    fix: str = ""
    name: str = ""


@dataclass(kw_only=True)
class Scene:
    """What checks start from, and what they learn on the way; None: not known, or not to be had.

    `folder` is locked for us, so that no agent uses the worker's key meanwhile. `ahead_seconds` is
    how far our clock is ahead of the coordinator's; `torch` is what `worker.torch_look` told.
    """

    settings: JoinSettings
    client: CoordinatorClient
    folder: WorkerFolder | None = None
    why_no_folder: str = ""
    info: RunInfo | None = None
    ahead_seconds: float = 0.0
    registered: RegisterAnswer | None = None
    torch: dict[str, Any] | None = None
    peer: Peer | None = None

    async def close(self) -> None:
        """Ends the peer and the connections, and lets an agent use the folder."""
        if self.peer is not None:
            await self.peer.stop()
        await self.client.close()
        if self.folder is not None:
            self.folder.close_or_remove(remains=self.folder.has_met(self.settings.url))


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the report. It is left out where `applies` says that there is nothing to test."""

    name: str
    look: Callable[[Scene], Awaitable[Row]]
    applies: Callable[[Scene], bool] = lambda _scene: True


async def run_checks(checks: Sequence[Check], scene: Scene) -> list[Row]:
    """Runs the checks one after the other, and judges them together."""
    rows = []
    for check in checks:
        if check.applies(scene):
            row = await check.look(scene)
            log.info("check %s: %s: %s", check.name, row.state, row.found)
            rows.append(replace(row, name=check.name))
    return settle(rows)


def settle(rows: Sequence[Row]) -> list[Row]:
    """One way for blobs is enough: with it, the failure of the other is a warning. Pure."""
    one_works = any(row.name in WAYS and row.state == "ok" for row in rows)
    return [
        replace(row, state="warning")
        if one_works and row.name in WAYS and row.state == "failure"
        else row
        for row in rows
    ]


def exit_code(rows: Sequence[Row]) -> int:
    """0: this machine can take part. 1: it cannot. 3: the coordinator cannot even be reached."""
    failed = {row.name for row in rows if row.state == "failure"}
    if REST in failed:
        return 3
    return 1 if failed else 0


def as_text(rows: Sequence[Row]) -> str:
    """A line for each check, and one below it for what mends it."""
    lines = []
    for row in rows:
        lines.append(f"{row.state:<8} {row.name:<13} {row.found}")
        if row.fix:
            lines.append(f"{'':<{INDENT}}fix: {row.fix}")
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> str:
    """The same for programs: an object with `ok` and `rows`."""
    found = {"ok": exit_code(rows) == 0, "rows": [asdict(row) for row in rows]}
    return json.dumps(found, indent=2)
