"""How blobs come to this worker and leave it, and by which routes.

Down: other peers who have it, the coordinator's copy over libp2p, the coordinator over HTTP. Up:
the coordinator fetches what it can; what it asks for is pushed over libp2p, else sent over HTTP.
"""

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from protocol.blobs import BlobRef
from protocol.messages import BlobUrl
from shared.blobs import BlobStore
from shared.exchange.exchange import Exchange, FetchFailed, OnProgress
from shared.exchange.over_http import HttpSource, UrlExpired, check_same_host, upload_over_http
from shared.exchange.push import push
from shared.exchange.rates import Rates
from shared.exchange.sources import Source, SourceFailed, Tier
from shared.exchange.streams import StreamSource
from shared.logs import facts
from shared.retry import backoff_seconds
from shared.swarm.peer import Peer
from worker.client import CoordinatorClient
from worker.errors import CoordinatorUnreachable
from worker.screen import describe_transfer, megabytes

log = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_PROVIDERS = 16
"""Providers from the DHT that one fetch tries."""

PATIENCE_SECONDS = 120.0
"""For how long a blob is tried again of which no route brings anything: roles may restart."""

PROGRESS_SECONDS = 5.0
"""A transfer that takes longer says how far it is, so often."""

LINE_SECONDS = 0.5
"""How often the line about a transfer is made anew."""


class Transfers:
    """Everything that one worker fetches and uploads.

    `coordinator` is the peer id that it trusts, and the multiaddresses where that one listens.
    """

    def __init__(
        self,
        store: BlobStore,
        client: CoordinatorClient,
        *,
        rates: Rates,
        peer: Callable[[], Peer | None],
        coordinator: Callable[[], tuple[str, Sequence[str]]],
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._client = client
        self._peer = peer
        self._coordinator = coordinator
        self._say = say
        self._rates = rates
        self._exchange = Exchange(store, down=rates.down)
        self._lines: dict[str, str] = {}

    @property
    def line(self) -> str:
        """What is fetched or sent now, in words: the transfer that began last."""
        return next(reversed(self._lines.values()), "")

    async def fetch(self, ref: BlobRef) -> str:
        """Brings a blob into the store, whatever arrived before; returns the route that it took.

        Raises CoordinatorUnreachable if for PATIENCE_SECONDS no route brings anything, or at once
        if the coordinator knows of no such blob.
        """
        with self._shown(ref, f"fetching {ref.digest[:12]}: {megabytes(ref.size)}"):
            return await self._fetch(ref)

    async def _fetch(self, ref: BlobRef) -> str:
        loop = asyncio.get_running_loop()
        give_up_at, tried = loop.time() + PATIENCE_SECONDS, 0
        tell = self._telling_progress()

        def on_bytes(blob: BlobRef, num_bytes: int) -> None:
            nonlocal give_up_at, tried
            give_up_at, tried = loop.time() + PATIENCE_SECONDS, 0
            tell(blob, num_bytes)

        for _ in itertools.count():
            try:
                tiers = self._tiers(ref)
                return await self._exchange.fetch(ref, tiers, on_progress=on_bytes)
            except FetchFailed as failure:
                wait = backoff_seconds(tried, base=1.0, cap=30.0, random=random.random())
                if failure.is_unknown or loop.time() + wait > give_up_at:
                    raise CoordinatorUnreachable(
                        f"blob {ref.digest[:12]}: no route works: {failure.reason}"
                    ) from failure
                log.warning("fetching %s again in %.1f s: %s", ref.digest[:12], wait, failure)
                tried += 1
                await asyncio.sleep(wait)
        raise AssertionError("the loop returns or raises")

    async def upload(
        self,
        ref: BlobRef,
        *,
        ask_url: Callable[[], Awaitable[BlobUrl]],
    ) -> None:
        """Brings a blob that the coordinator wants to it: by a push, or else over HTTP.

        Both go on where the other stopped. Raises SourceFailed and what `ask_url` raises.
        """
        loop = asyncio.get_running_loop()
        started, route = loop.time(), "push"
        with self._shown(ref, f"sending {ref.digest[:12]}: {megabytes(ref.size)}"):
            if not await self._pushed(ref):
                route = "http"
                await self._send_over_http(ref, ask_url)
        log.info(
            "uploaded %s",
            facts(digest=ref.digest, bytes=ref.size, seconds=loop.time() - started, route=route),
        )

    async def _send_over_http(
        self, ref: BlobRef, ask_url: Callable[[], Awaitable[BlobUrl]]
    ) -> None:
        """A URL is good for a minute: on a slow line it takes several, one after the other."""
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            target = await ask_url()
            check_same_host(self._client.url, target.url)
            http, up = self._client.http, self._rates.up
            try:
                await upload_over_http(http, target.url, ref, self._store, up=up)
            except UrlExpired:
                if loop.time() < asked + target.expires_in / 2:
                    raise
            else:
                return

    async def _pushed(self, ref: BlobRef) -> bool:
        peer = self._peer()
        if peer is None or not peer.joined:
            return False
        try:
            await push(peer.opener(*self._coordinator()), ref, self._store, up=self._rates.up)
        except SourceFailed as failure:
            log.warning("push of %s failed, HTTP is next: %s", ref.digest[:12], failure)
            return False
        return True

    def _telling_progress(self) -> OnProgress:
        """Says how far a transfer is and how long it will take, if it takes long."""
        loop = asyncio.get_running_loop()
        started = said = shown = loop.time()
        first: int | None = None

        def on_progress(ref: BlobRef, num_bytes: int) -> None:
            nonlocal said, shown, first
            first = num_bytes if first is None else first
            at = loop.time()
            if at - shown < LINE_SECONDS:
                return
            shown = at
            line = describe_transfer(ref, num_bytes, (num_bytes - first) / (at - started))
            if ref.digest in self._lines:
                self._lines[ref.digest] = line
            if at - said >= PROGRESS_SECONDS:
                said = at
                self._say(line)

        return on_progress

    @contextlib.contextmanager
    def _shown(self, ref: BlobRef, line: str) -> Iterator[None]:
        self._lines[ref.digest] = line
        try:
            yield
        finally:
            self._lines.pop(ref.digest, None)

    def _tiers(self, ref: BlobRef) -> list[Tier]:
        coordinator, maddrs = self._coordinator()

        async def others() -> list[Source]:
            peer = self._peer()
            if peer is None or not peer.joined:
                return []
            # Who names no address cannot be dialled.
            found = [
                (name, record)
                for name, record in await peer.providers(ref.digest)
                if record.m and name not in (coordinator, peer.peer_id)
            ]
            random.shuffle(found)
            return [
                StreamSource(
                    peer.opener(name, record.m), peer=name, route="peer", down=self._rates.down
                )
                for name, record in found[:MAX_PROVIDERS]
            ]

        async def retained() -> list[Source]:
            peer = self._peer()
            if peer is None or not peer.joined:
                return []
            opener = peer.opener(coordinator, maddrs)
            return [StreamSource(opener, peer=coordinator, route="retained", down=self._rates.down)]

        async def http() -> list[Source]:
            client = self._client
            url = f"{client.url}/v1/blobs/{ref.digest}"
            down = self._rates.down
            return [HttpSource(client.http, url, headers=lambda: client.headers, down=down)]

        return [Tier("peer", others), Tier("retained", retained), Tier("http", http)]
