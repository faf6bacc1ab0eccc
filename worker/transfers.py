"""How blobs come to this worker: from peers first, else from the coordinator over HTTP."""

import asyncio
import itertools
import logging
import random

from protocol.blobs import BlobRef
from shared.blobstore import BlobStore
from shared.http_blobs import TransferFailed, UnknownBlob, fetch_over_http
from shared.retry import backoff_seconds
from shared.swarm.peer import FetchFailed, Peer
from worker.client import CoordinatorClient
from worker.errors import CoordinatorUnreachable

log = logging.getLogger(__name__)

PEER_FETCH_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 50_000
"""Peers that are slower are left for HTTP; what arrived is kept."""

PATIENCE_SECONDS = 120.0
"""For how long a blob is tried again that no route brings: roles of the coordinator may restart."""


async def fetch_blob(
    ref: BlobRef,
    client: CoordinatorClient,
    store: BlobStore,
    *,
    peer: Peer | None,
    coordinator: str,
) -> str:
    """Brings a blob into `store`, whatever arrived before; returns the route that it took.

    Raises CoordinatorUnreachable if for PATIENCE_SECONDS no route works, or at once if the
    coordinator knows of no such blob.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + PATIENCE_SECONDS
    for attempt in itertools.count():
        route = await _fetch_from_peers(ref, store, peer=peer, coordinator=coordinator)
        if route is not None:
            return route
        try:
            url = f"{client.url}/v1/blobs/{ref.digest}"
            await fetch_over_http(client.http, url, ref, store, headers=client.headers)
        except TransferFailed as failure:
            wait = backoff_seconds(attempt, base=1.0, cap=30.0, random=random.random())
            if isinstance(failure, UnknownBlob) or loop.time() + wait > give_up_at:
                raise CoordinatorUnreachable(
                    f"blob {ref.digest[:12]}: no route works; the last said: {failure.reason}"
                ) from failure
            log.warning("fetching %s again in %.1f s: %s", ref.digest[:12], wait, failure)
            await asyncio.sleep(wait)
        else:
            return "http"
    raise AssertionError("the loop returns or raises")


async def _fetch_from_peers(
    ref: BlobRef, store: BlobStore, *, peer: Peer | None, coordinator: str
) -> str | None:
    """Brings a blob into `store` over libp2p; returns the route, None if no peer could send it."""
    if peer is None or not peer.healthy:
        return None
    try:
        async with asyncio.timeout(PEER_FETCH_SECONDS + ref.size / SLOWEST_BYTES_PER_SECOND):
            provider = await peer.fetch_blob(ref, store, providers=[coordinator])
    except (FetchFailed, TimeoutError) as failure:
        log.warning("no peer could send %s: %s", ref.digest[:12], failure)
        return None
    return f"libp2p from {provider}"
