"""What no peer can send is wanted, and comes by upload."""

import asyncio
import contextlib
import os
import signal
import socket
from typing import Any

import httpx
import pytest
import uvicorn

from coordinator.ledger import queries
from coordinator.network.blob_app import create_blob_app
from coordinator.urls import sign_url
from protocol.blobs import BlobRef
from shared.exchange.over_http import upload_over_http
from shared.exchange.rates import Bucket
from tests.integration.collector.place import Place, digests_of

SECRET = b"s" * 32


@contextlib.asynccontextmanager
async def blobs_over_http(place: Place) -> Any:
    """The network role's HTTP side on a real port; yields how to sign a URL for the worker."""

    def may_upload(digest: str) -> BlobRef | None:
        with place.ledger.read() as connection:
            return queries.may_upload(connection, digest)

    app = create_blob_app(
        store=place.store,
        secret=SECRET,
        may_read=lambda _digest, _peer: False,
        may_upload=may_upload,
        on_complete=lambda _ref, _peer: None,
        now=place.clock,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve([listener]))
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def sign(digest: str) -> str:
        return sign_url(
            base,
            digest=digest,
            purpose="put",
            peer=place.worker,
            expires_at=int(place.clock()) + 600,
            secret=SECRET,
        )

    try:
        yield sign
    finally:
        server.should_exit = True
        await serving
        listener.close()


async def test_what_no_peer_can_send_is_wanted_all_at_once_and_comes_by_upload(
    place: Place,
) -> None:
    ref, manifest = place.training(5)
    files = digests_of(ref, manifest) - {ref.digest}
    async with blobs_over_http(place) as sign, httpx.AsyncClient() as client:
        await place.until(lambda: place.wanted() == {ref.digest})
        await upload_over_http(client, sign(ref.digest), ref, place.theirs, up=Bucket())
        await place.until(lambda: place.wanted() == files)
        for file in manifest.files:
            url = sign(file.blob.digest)
            await upload_over_http(client, url, file.blob, place.theirs, up=Bucket())
        assert await place.until_decided(ref) == ("durable", "")
    assert place.wanted() == set()


async def test_nothing_is_wanted_of_a_checkpoint_that_a_newer_one_replaced(place: Place) -> None:
    older, _ = place.training(5)
    await place.until(lambda: place.wanted() == {older.digest})
    newer, _ = place.training(10)
    assert place.wanted() == set()
    with place.ledger.read() as connection:
        assert queries.may_upload(connection, older.digest) is None
    await place.until(lambda: place.wanted() == {newer.digest})


# A killed daemon's sockets are left to the garbage collector by hivemind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_provider_killed_halfway_is_asked_to_upload_and_completes_it_when_back(
    place: Place,
) -> None:
    await place.connect()
    ref, manifest = place.training(5)
    optimizer = manifest.blob("optimizer.safetensors").digest
    killed: list[int] = []

    def kill_once(digest: str) -> None:
        if digest == optimizer and not killed:
            killed.append(place.worker_peer.daemon_pid)
            os.kill(killed[0], signal.SIGKILL)

    place.on_read = kill_once
    await place.until(lambda: optimizer in place.wanted())
    assert killed
    assert place.decided(ref)[0] == "announced"
    assert place.store.has(manifest.blob("model.safetensors").digest)
    assert await place.until_decided(ref) == ("durable", "")
    assert place.worker_peer.restarts == 1
    assert place.wanted() == set()
