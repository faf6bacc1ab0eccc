"""When readers hold every connection that they may have: writes go on, one more reader waits."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from coordinator.ledger import Ledger, LedgerBusy, postgres, sqlite
from coordinator.ledger.tables import nonces
from protocol.errors import ErrorCode
from protocol.messages import WorkerHeartbeat
from shared.identity import Identity
from worker.client import CoordinatorClient
from worker.errors import CoordinatorBusy, Refused

KINDS = {"sqlite": sqlite, "postgresql": postgres}


@pytest.fixture
def ledger(
    backend: str,
    prepared_database: str,
    open_ledger: Callable[[str], Ledger],
    monkeypatch: pytest.MonkeyPatch,
) -> Ledger:
    """An empty ledger on either database, whose readers wait only briefly for a connection."""
    monkeypatch.setattr(KINDS[backend], "READER_WAIT_SECONDS", 0.05)
    return open_ledger(prepared_database)


@pytest.fixture
def crowd(backend: str, ledger: Ledger) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """While it is entered, readers hold all connections of `ledger` that readers may have."""

    @contextlib.contextmanager
    def read() -> Iterator[None]:
        with contextlib.ExitStack() as readers:
            for _ in range(KINDS[backend].MOST_READERS):
                connection = readers.enter_context(ledger.read())
                assert connection.execute(text("SELECT 1")).scalar() == 1
            yield

    return read


def test_readers_take_no_connection_from_a_writer_and_one_more_is_told_to_wait(
    ledger: Ledger, crowd: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    with crowd():
        with pytest.raises(LedgerBusy, match="connections are in use"), ledger.read():
            pass
        with ledger.begin() as connection:
            connection.execute(nonces.insert(), {"nonce": "a", "expires_at": 1.0})
    with ledger.read() as reader:
        assert [row.nonce for row in reader.execute(nonces.select())] == ["a"]


async def test_a_heartbeat_is_written_while_readers_are_told_that_the_api_is_busy(
    api: Any,
    make: Any,
    coordinator_identity: Identity,
    crowd: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    client = CoordinatorClient("http://coordinator", coordinator_identity)
    client.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=api.app))
    info = await client.run_info()
    await client.register(info, make.capability(), name="", invite=None, maddrs=())
    beat = WorkerHeartbeat(capability=make.capability(), maddrs=())
    with crowd():
        await client.heartbeat(beat)
        with pytest.raises(CoordinatorBusy) as caught:
            await client.domains()
        seen = await api.http.get("/v1/domains")
        ready = await api.http.get("/readyz")
    assert isinstance(caught.value.__cause__, Refused)
    assert caught.value.__cause__.code is ErrorCode.BUSY
    assert caught.value.retry_after_seconds is not None
    assert seen.headers["Retry-After"] == "2"
    assert ready.status_code == 503
    assert await client.domains()
    await client.http.aclose()
