"""How a process of the benchmark is told what to do: a JSON line in, a JSON line out.

The first line that it says is a greeting; standard input that ends, ends the process.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import asdict
from typing import Any, Literal

import uvloop

from benchmarks.transfer.bare import Taken
from protocol.values import Value

Loop = Literal["asyncio", "uvloop"]
Order = Callable[..., Awaitable[Taken | dict[str, Any] | None]]

ORDER_SECONDS = 300.0


class SideSettings(Value):
    """What a process is told at its start: its name, the folder of all, the file to send.

    `loop` is its event loop, `up` a limit in bytes a second; `bootstrap` are the peers to join.
    """

    name: str
    folder: str
    file: str
    loop: Loop
    up: float | None = None
    bootstrap: tuple[str, ...] = ()


def settings() -> SideSettings:
    """Those that this process was started with."""
    return SideSettings.model_validate_json(sys.argv[1])


def say(values: Mapping[str, Any]) -> None:
    """One line to the parent."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def run(main: Coroutine[Any, Any, None], loop: Loop) -> None:
    """As asyncio.run, on the event loop that is asked for."""
    if loop == "uvloop":
        uvloop.run(main)
    else:
        asyncio.run(main)


async def obey(orders: Mapping[str, Order]) -> None:
    """Do what the parent says, one order after the other, until it says no more."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        async with asyncio.timeout(ORDER_SECONDS):
            answer = await orders[order.pop("order")](**order)
        say(asdict(answer) if isinstance(answer, Taken) else answer or {})
