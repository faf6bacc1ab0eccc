"""From a run file to its results on this machine: keys, lock, text, session."""

import asyncio
import os
import signal
from contextlib import closing

from coordinator.database import open_ledger
from coordinator.folders import RunFolders
from coordinator.init import make_keys
from coordinator.local.occupancy import occupied
from coordinator.local.screen import Screen
from coordinator.local.session import Outcome, Session, Settings
from coordinator.roles import RoleContext, prepare
from coordinator.runfile import RunFile
from coordinator.text.prepared import PrepareError, read_prepared
from shared import logs
from shared.clock import now


def train(run: RunFile, *, settings: Settings, screen: Screen) -> Outcome:
    """Takes the run to its results, or as far as it goes; Ctrl-C stops it in good order.

    Raises FolderInUse, InitError, PrepareError, SourceError, LedgerError.
    """
    folders = RunFolders(run.folder)
    folders.create()
    with occupied(folders, by="hdee-coordinator train-local", shared=False, now=now()):
        logs.configure(path=folders.logs / "local.log")
        for path in make_keys(folders):
            screen.say(f"wrote {path}")
        context = RoleContext(
            run=run, folders=folders, supervised=False, tls_cert=None, tls_key=None
        )
        prepare.run(context, say=screen.say)
        prepared = read_prepared(folders.prepared)
        if prepared is None:
            raise PrepareError(f"{folders.prepared} is gone: prepare the text again")
        with closing(open_ledger(run, folders, None)) as ledger:
            place = (run, folders, prepared.prepared, ledger)
            return asyncio.run(_run(Session(*place, settings=settings, screen=screen), screen))


async def _run(session: Session, screen: Screen) -> Outcome:
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            # The trainers notice that their standard input ends.
            os._exit(1)
        screen.say("stopping: the trainers finish their step and write a checkpoint")
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return await session.run(stopping)
