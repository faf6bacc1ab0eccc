"""The network role's process: an event loop around `coordinator.network.serve`."""

import asyncio
import signal

from coordinator.network.serve import NetworkRole
from coordinator.roles import RoleContext
from coordinator.text.prepared import PrepareError, read_prepared
from shared.orphan import watch_parent


def run(context: RoleContext) -> None:
    """Serves until it is asked to end."""
    folders = context.folders
    prepared = read_prepared(folders.prepared)
    if prepared is None:
        raise PrepareError(f"{folders.prepared} is missing: prepare the text first")
    ledger = context.open_ledger()

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        if context.supervised:

            def stop_from_thread() -> None:
                loop.call_soon_threadsafe(stop.set)

            watch_parent(stop_from_thread)
        role = NetworkRole(context.run, folders, prepared.prepared, ledger)
        await role.serve(stop, tls_cert=context.tls_cert, tls_key=context.tls_key)

    try:
        asyncio.run(serve())
    finally:
        ledger.close()
