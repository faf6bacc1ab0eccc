"""The api role's process: uvicorn around `coordinator.api.app`. Neither torch nor hivemind."""

import gc
import signal
import sys

import uvicorn

from coordinator.api.app import ApiSettings, create_app
from coordinator.api.tokens import TOKEN_KEY_PURPOSE
from coordinator.connections import GuardedHttp
from coordinator.roles import RoleContext
from coordinator.serving import listening
from coordinator.urls import URL_SECRET_PURPOSE
from shared.clock import now
from shared.identity import Identity
from shared.orphan import watch_parent

SWITCH_SECONDS = 0.0005
GC_THRESHOLDS = (20_000, 20, 1_000)
KEEP_ALIVE_SECONDS = 75
"""An idle connection is kept for so long: a worker's next heartbeat need not shake hands again."""


def run(context: RoleContext) -> None:
    """Serves until it is asked to end."""
    run_file = context.run
    identity = Identity.load(context.folders.coordinator_key)
    ledger = context.open_ledger()
    settings = ApiSettings(
        run=run_file.run.name,
        heartbeat_seconds=run_file.timing.heartbeat_seconds,
        checkpoint_seconds=run_file.timing.checkpoint_seconds,
        enrolment=run_file.enrolment,
        trust=run_file.trust,
        url_secret=identity.derive_secret(URL_SECRET_PURPOSE),
        token_key=identity.derive_secret(TOKEN_KEY_PURPOSE),
        admin_token=context.folders.admin_token.read_text().strip(),
        max_attempts=run_file.timing.max_attempts,
    )
    # The writer's thread and the event loop share one interpreter: with the default of 5 ms a
    # request would wait that long whenever the other one computes.
    sys.setswitchinterval(SWITCH_SECONDS)
    # A full collection looks at every worker and assignment of the index and stops all requests
    # for some hundred milliseconds; few of our objects form cycles.
    gc.set_threshold(*GC_THRESHOLDS)
    config = uvicorn.Config(
        create_app(ledger=ledger, identity=identity, settings=settings, now=now),
        log_config=None,
        http=GuardedHttp,
        loop="uvloop",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # From which address a worker asks to be dialled: a proxy on this machine tells, or one that
        # FORWARDED_ALLOW_IPS names.
        proxy_headers=True,
        access_log=False,
        log_level="warning",
        ssl_certfile=context.tls_cert,
        ssl_keyfile=context.tls_key,
    )
    server = uvicorn.Server(config)
    listen = run_file.listen

    def stop() -> None:
        server.should_exit = True

    # uvicorn raises the signal that ended it once more: with the default action we would die of it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop())
    if context.supervised:
        watch_parent(stop)
    try:
        with listening(listen.api_host, listen.api_port) as listener:
            server.run(sockets=[listener])
    finally:
        ledger.close()
