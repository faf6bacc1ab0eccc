"""One worker as a process: its log, its screen, its signals, its control socket, and its agent."""

import asyncio
import contextlib
import os
import signal

import psutil  # type: ignore[import-untyped]

from protocol.capability import Capability
from shared import logs
from worker.agent import Agent
from worker.control.controls import AgentControls
from worker.control.server import serving
from worker.folder import WorkerFolder
from worker.live import LiveScreen, give_back_terminal, is_possible
from worker.screen import TextScreen
from worker.settings import JoinSettings

INTERRUPTED = 130
"""The exit code of a process that Ctrl-C ended at once."""


async def run_worker(settings: JoinSettings, *, measured: Capability | None = None) -> int:
    """Works until the run is finished or the volunteer stops it; the exit code.

    `measured` is what this machine can do, None: it is measured first.
    Raises WorkerError for what the volunteer has to mend.
    """
    folder = WorkerFolder(settings.folder)
    try:
        logs.configure(path=folder.root / "worker.log")
        live = LiveScreen() if is_possible() else None
        agent = Agent(settings, folder, live or TextScreen(settings.name), measured=measured)
        _heed_signals(agent)
        with live.showing(agent.board) if live else contextlib.nullcontext():
            async with serving(folder.root, AgentControls(agent, end=_end)) as problem:
                if problem:
                    agent.board.say(f"warning: no verb can reach this worker: {problem}")
                return await agent.run()
    finally:
        folder.close()


def _heed_signals(agent: Agent) -> None:
    """Once: stop in good order. Twice: at once."""
    interrupts = 0

    def interrupt() -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            _end()
        agent.board.say("stopping: finishing the step and writing a checkpoint (again: stop now)")
        agent.stop()

    def hang_up() -> None:
        agent.board.say("the terminal is closed: finishing the step and writing a checkpoint")
        agent.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    # Under nohup a closed terminal means nothing.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, hang_up)


def _end() -> None:
    """Ends this process and its children, also a trainer that is suspended: it would stay."""
    give_back_terminal()
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            child.kill()
    os._exit(INTERRUPTED)
