"""The api role's process: uvicorn around `coordinator.app`. Neither torch nor hivemind."""

import uvicorn

from coordinator.app import ApiSettings, create_app
from coordinator.ledger import Ledger
from coordinator.roles import RoleContext
from coordinator.urls import URL_SECRET_PURPOSE
from shared.clock import now
from shared.identity import Identity
from shared.orphan import watch_parent


def run(context: RoleContext) -> None:
    """Serves until it is asked to end."""
    run_file = context.run
    identity = Identity.load(context.folders.coordinator_key)
    ledger = Ledger(context.folders.ledger_url)
    settings = ApiSettings(
        run=run_file.run.name,
        heartbeat_seconds=run_file.timing.heartbeat_seconds,
        checkpoint_seconds=run_file.timing.checkpoint_seconds,
        enrolment=run_file.enrolment,
        trust=run_file.trust,
        url_secret=identity.derive_secret(URL_SECRET_PURPOSE),
    )
    config = uvicorn.Config(
        create_app(ledger=ledger, identity=identity, settings=settings, now=now),
        host=run_file.listen.api_host,
        port=run_file.listen.api_port,
        log_level="warning",
        ssl_certfile=context.tls_cert,
        ssl_keyfile=context.tls_key,
    )
    server = uvicorn.Server(config)

    def stop() -> None:
        server.should_exit = True

    if context.supervised:
        watch_parent(stop)
    try:
        server.run()
    finally:
        ledger.close()
