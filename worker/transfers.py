"""How blobs come to this worker: from peers first, else from the coordinator over HTTP."""

import asyncio
import logging

from protocol.blobs import BlobRef
from shared.blobstore import BlobStore
from shared.http_blobs import TransferFailed, fetch_over_http
from shared.swarm.peer import FetchFailed, Peer
from worker.client import CoordinatorClient
from worker.errors import CoordinatorUnreachable

log = logging.getLogger(__name__)

PEER_FETCH_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 50_000
"""Peers that are slower are left for HTTP; what arrived is kept."""


async def fetch_from_peers(
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


async def fetch_from_coordinator(ref: BlobRef, store: BlobStore, client: CoordinatorClient) -> str:
    """Brings a blob into `store` over HTTP; returns the route. Raises CoordinatorUnreachable."""
    url = f"{client.url}/v1/blobs/{ref.digest}"
    try:
        await fetch_over_http(client.http, url, ref, store, headers=client.headers)
    except TransferFailed as failure:
        raise CoordinatorUnreachable(
            f"blob {ref.digest[:12]}: no route works; the last said: {failure.reason}"
        ) from failure
    return "http"
