"""The rounds: every method once in each, and training with and without its agent's serving."""

import random
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.transfer.figures import Slowdown, Summary, Transfer, slowdown, summarize
from benchmarks.transfer.methods import AGENT, FETCHER, FIRST, RAW, SECOND, WEB, Method
from benchmarks.transfer.orders import Loop, SideSettings
from benchmarks.transfer.processes import Meter, Process
from benchmarks.transfer.side import COORDINATOR
from shared.identity import Identity

TRAINER = "trainer"
LEAD_SECONDS = 1.0
"""By how much serving begins before, and ends after, the steps that are counted."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured. `up`: bytes a second that the agent may serve while its trainer runs."""

    num_bytes: int
    rounds: int
    methods: tuple[Method, ...]
    training_rounds: int
    training_seconds: float
    up: float
    loop: Loop


class Ground:
    """A folder with the file and the keys, and the processes, which end with the context."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan
        self._stack = ExitStack()
        self.processes: dict[str, Process] = {}
        self._file = folder / "file"
        with self._file.open("wb") as file:
            for _ in range(0, plan.num_bytes, 2**20):
                file.write(secrets.token_bytes(2**20))
        Identity.create(folder / COORDINATOR)

    def __enter__(self) -> "Ground":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, *names: str) -> None:
        """Start processes; the first peer of all is the one that later ones join."""
        started = [self._start(name) for name in names]
        for process in started:
            process.await_greeting()

    def _start(self, name: str) -> Process:
        first = self.processes.get(FIRST)
        given = SideSettings(
            name=name,
            folder=str(self._folder),
            file=str(self._file),
            loop=self._plan.loop,
            up=self._plan.up if name == AGENT else None,
            bootstrap=() if first is None else tuple(first.greeting["maddrs"]),
        )
        module, argument = "benchmarks.transfer.side", given.model_dump_json()
        if name == WEB:
            module = "benchmarks.transfer.web"
        if name == TRAINER:
            module, argument = "benchmarks.transfer.training", str(self._folder)
        process = Process(module, argument, name=name, log=self._folder / f"{name}.log")
        self._stack.callback(process.stop)
        self.processes[name] = process
        return process


def measure_transfers(ground: Ground, plan: Plan, say: Say) -> list[Summary]:
    """Each method once a round, in a random order, after a round that does not count."""
    senders = {name for method in plan.methods for name in method.senders}
    ground.start(FIRST)
    ground.start(FETCHER, *sorted(senders - {FIRST}))
    ref = ground.processes[FIRST].ask(order="hold")
    if SECOND in senders:
        ground.processes[SECOND].ask(order="hold")
    found: dict[str, list[Transfer]] = {method.name: [] for method in plan.methods}
    order, draw = list(plan.methods), random.Random(1)
    for number in range(plan.rounds + 1):
        for method in order:
            transfer = _transfer(ground, method, ref)
            if number:
                found[method.name].append(transfer)
            rate = plan.num_bytes / 1e6 / transfer.seconds
            say(f"round {number} of {plan.rounds}: {method.title}: {rate:.0f} MB/s")
        draw.shuffle(order)
    return [
        summarize(
            method.name, method.title, found[method.name], found[RAW.name], size=plan.num_bytes
        )
        for method in plan.methods
    ]


def _transfer(ground: Ground, method: Method, ref: dict[str, Any]) -> Transfer:
    fetcher = ground.processes[FETCHER]
    fetcher.ask(order="settle", ref=ref)
    senders = [ground.processes[name] for name in method.senders]
    meters = {
        f"{role} {kind}": [
            Meter(process.pids()[kind]) for process in them if kind in process.pids()
        ]
        for role, them in (("sender", senders), ("fetcher", [fetcher]))
        for kind in ("python", "p2pd")
    }
    answer = ground.processes[method.asked].ask(
        order=method.order,
        servers=[ground.processes[name].greeting for name in method.others],
        ref=ref,
    )
    return Transfer(
        seconds=answer["seconds"],
        written_seconds=answer["written_seconds"],
        cpu_seconds={
            part: sum(meter.cpu_seconds() for meter in them) for part, them in meters.items()
        },
        python_bytes=meters["fetcher python"][0].grown_bytes(),
        p2pd_bytes=meters["fetcher p2pd"][0].grown_bytes(),
    )


def measure_slowdown(ground: Ground, plan: Plan, say: Say) -> Slowdown:
    """Training beside an agent that rests, and beside one that serves, in turns.

    All run on this machine, the client that is served and its daemon too.
    """
    ground.start(AGENT, TRAINER)
    agent, trainer = ground.processes[AGENT], ground.processes[TRAINER]
    fetcher = ground.processes[FETCHER]
    ref = agent.ask(order="hold")
    trainer.ask(seconds=plan.training_seconds)
    pairs, num_bytes, cpu_seconds, seconds = [], 0, 0.0, 0.0
    for number in range(plan.training_rounds):
        speeds: dict[bool, float] = {}
        for serving in (number % 2 == 0, number % 2 == 1):
            if not serving:
                speeds[serving] = trainer.ask(seconds=plan.training_seconds)["steps_per_second"]
                continue
            fetcher.ask(order="settle", ref=ref)
            meters = [Meter(pid) for pid in agent.pids().values()]
            span = plan.training_seconds + 2 * LEAD_SECONDS
            fetcher.give({"order": "sip", "servers": [agent.greeting], "ref": ref, "seconds": span})
            time.sleep(LEAD_SECONDS)
            speeds[serving] = trainer.ask(seconds=plan.training_seconds)["steps_per_second"]
            num_bytes += fetcher.answer()["num_bytes"]
            cpu_seconds += sum(meter.cpu_seconds() for meter in meters)
            seconds += span
        pairs.append((speeds[False], speeds[True]))
        say(
            f"training {number + 1} of {plan.training_rounds}: {speeds[False]:.1f} steps/s, "
            f"{speeds[True]:.1f} while serving"
        )
    return slowdown(pairs, served=num_bytes / seconds, agent_cpu_share=cpu_seconds / seconds)
