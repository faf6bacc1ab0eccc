"""The api role: wiring and lifespan. Imports neither torch nor hivemind."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from coordinator.api.errors import RESPONSES, BodyLimit, install_error_handlers
from coordinator.api.routes import assignments, blobs, leasing, status, workers
from coordinator.api.routes.context import ApiContext
from coordinator.api.settings import ApiSettings
from coordinator.ledger import Ledger, queries
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
    context = ApiContext(ledger, identity, settings, now, now())

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        ticking = asyncio.create_task(_tick_forever(context))
        try:
            yield
        finally:
            ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ticking

    app = FastAPI(title="HDEE coordinator", version=SOFTWARE_VERSION, lifespan=lifespan)
    app.state.context = context
    app.add_middleware(BodyLimit)
    install_error_handlers(app)
    for module in (status, workers, leasing, assignments, blobs):
        app.include_router(module.router, responses=RESPONSES)
    return app


def tick(context: ApiContext) -> None:
    """Forgive time in which the api did not listen, beat, and let expire what has run out."""
    now = context.now()
    with context.ledger.begin() as connection:
        gap = queries.forgive_downtime(
            connection, now=now, tolerance_seconds=context.settings.heartbeat_seconds
        )
        queries.beat_role(connection, "api", now)
        expired = queries.expire_leases(connection, now)
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
            await asyncio.to_thread(tick, context)
        except SQLAlchemyError:
            log.exception("the ledger could not be written; trying again")
        await asyncio.sleep(pause)
