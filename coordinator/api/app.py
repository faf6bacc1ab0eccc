"""The api role: wiring and lifespan. Imports neither torch nor hivemind."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from coordinator.api.direct import DirectRoutes
from coordinator.api.errors import BodyLimit, install_error_handlers
from coordinator.api.fleet import Fleet
from coordinator.api.reachability import Dialler
from coordinator.api.routes import (
    admin,
    assignments,
    blobs,
    leasing,
    owndata,
    preview,
    reachability,
    status,
    why,
    workers,
)
from coordinator.api.routes.context import ApiContext
from coordinator.api.settings import ApiSettings
from coordinator.api.versions import VersionCheck
from coordinator.ledger import Ledger, LedgerError, queries
from coordinator.ledger.writer import GroupWriter
from protocol.errors import ErrorBody
from shared.identity import Identity
from shared.version import SOFTWARE_VERSION

__all__ = ["ApiSettings", "create_app", "tick"]

MAX_TICK_SECONDS = 1.0
TICKS_A_HEARTBEAT = 4
"""A gap of a heartbeat between ticks counts as downtime, so there must be several in one."""

log = logging.getLogger(__name__)


def create_app(
    *, ledger: Ledger, identity: Identity, settings: ApiSettings, now: Callable[[], float]
) -> FastAPI:
    """The REST interface over an existing ledger. While it is served, leases run out."""
    writer = GroupWriter(ledger)
    context = ApiContext(
        ledger=ledger,
        writer=writer,
        fleet=Fleet(settings),
        identity=identity,
        settings=settings,
        now=now,
    )
    writer.on_failure(context.forget)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with writer:
            ticking = asyncio.create_task(_tick_forever(context))
            try:
                yield
            finally:
                ticking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await ticking

    app = FastAPI(
        title="HDEE coordinator",
        version=SOFTWARE_VERSION,
        lifespan=lifespan,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.state.context = context
    app.state.dialler = Dialler()
    app.add_middleware(BodyLimit)
    install_error_handlers(app)
    for module in (
        assignments,
        workers,
        reachability,
        leasing,
        preview,
        blobs,
        owndata,
        status,
        why,
        admin,
    ):
        app.include_router(module.router)
    busy = [route for module in (workers, leasing, assignments) for route in module.router.routes]
    app.add_middleware(DirectRoutes, owner=app, routes=busy, context=context)
    app.add_middleware(VersionCheck)
    return app


def tick(connection: Connection, context: ApiContext) -> None:
    """Forgive time in which the api did not listen, beat, and let expire what has run out."""
    now = context.now()
    with context.listening(connection, now) as gap:
        queries.beat_role(connection, "api", now)
        expired = queries.expire_leases(connection, now)
        queries.give_up_training(connection, now)
        queries.cancel_idle_backups(connection, now=now)
        queries.forget_answers(connection, now)
        queries.forget_nonces(connection, now)
    if gap:
        log.warning("was silent for %.1f s: every lease was extended by that", gap)
    for assignment in expired:
        log.info(
            "%s of %s by %s ran out",
            assignment.state,
            assignment.assignment,
            assignment.worker,
        )


async def _tick_forever(context: ApiContext) -> None:
    pause = min(MAX_TICK_SECONDS, context.settings.heartbeat_seconds / TICKS_A_HEARTBEAT)
    while True:
        try:
            await context.writer.write(lambda connection: tick(connection, context))
            # Apart, and after those who wait: at ten thousand workers it takes some milliseconds.
            await context.writer.write(
                lambda connection: _look_around(connection, context), urgent=False
            )
        except (SQLAlchemyError, LedgerError):
            log.exception("the ledger could not be written; trying again")
        except Exception:
            # Without ticks no lease runs out any more, and nothing would tell that they ended.
            log.exception("a tick failed; trying again")
        await asyncio.sleep(pause)


def _look_around(connection: Connection, context: ApiContext) -> None:
    try:
        context.look_around(connection, context.now())
    except Exception:
        # The index may have followed in part what it cannot follow.
        context.fleet.reset()
        raise
