"""The network role: the DHT's bootstrap peer, the collector, and blobs over libp2p and HTTP."""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from coordinator.connections import GuardedHttp
from coordinator.folders import RunFolders
from coordinator.ledger import Ledger, LedgerError, queries
from coordinator.network.blob_app import create_blob_app
from coordinator.network.collector import Collector
from coordinator.network.disposal import sweep
from coordinator.runfile import RunFile
from coordinator.serving import listening
from coordinator.text.prepared import Prepared
from coordinator.urls import URL_SECRET_PURPOSE
from protocol.blobs import BlobRef
from protocol.certificates import SignedCertificate
from shared.blobs import BlobStore
from shared.clock import now
from shared.exchange.exchange import Exchange
from shared.exchange.rates import Bucket, Rates
from shared.exchange.serving import BlobServer, Limits
from shared.identity import Identity, sign_certificate
from shared.logs import facts
from shared.swarm.peer import Peer, SwarmUnavailable

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
BEAT_SECONDS = 2.0
CERTIFICATE_SECONDS = 3600
PEER_RETRY_SECONDS = 5.0
SWEEP_SECONDS = 3600.0

RESERVE_BYTES = 256 * 2**20
"""Of the disk, which uploads leave to the ledger."""

LIMITS = Limits(
    sending=32,
    sending_per_peer=4,
    receiving=16,
    receiving_per_peer=4,
    asking=256,
    asking_per_peer=8,
)
"""Streams at once: more than a worker's, because everybody may turn to this peer."""


class NetworkRole:
    """Everything that carries bytes. Holds no state that the ledger and the store do not."""

    def __init__(
        self, run: RunFile, folders: RunFolders, prepared: Prepared, ledger: Ledger
    ) -> None:
        self.run = run
        self.prepared = prepared
        self.ledger = ledger
        self.identity = Identity.load(folders.coordinator_key)
        self.store = BlobStore(folders.blobs, reserve_bytes=RESERVE_BYTES)
        self.peer: Peer | None = None
        self._rates = Rates(
            up=Bucket(run.listen.upload_bytes_per_second),
            down=Bucket(run.listen.download_bytes_per_second),
        )
        exchange = Exchange(self.store, down=self._rates.down)
        self.collector = Collector(
            ledger=ledger, exchange=exchange, peer=lambda: self.peer, now=now
        )
        self._server = BlobServer(
            self.store,
            self._may_read,
            may_push=self._may_push,
            on_pushed=partial(_received, "push"),
            rates=self._rates,
            limits=LIMITS,
        )
        self._announced: set[str] = set()
        self._certificate_until = 0.0
        self._published = False
        self._scheme = "http"

    async def serve(
        self, stop: asyncio.Event, *, tls_cert: Path | None = None, tls_key: Path | None = None
    ) -> None:
        """Runs until `stop` is set; with a certificate the blobs' HTTP side speaks TLS.

        Raises ServeError where it cannot listen.
        """
        server = self._http_server(tls_cert, tls_key)
        listener = listening(self.run.listen.api_host, self.run.listen.network_port)
        self._scheme = "https" if tls_cert else "http"
        tasks = [
            asyncio.create_task(server.serve([listener])),
            asyncio.create_task(self._keep_peer(stop)),
            asyncio.create_task(self._collect(stop)),
            asyncio.create_task(self._sweep(stop)),
        ]
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        stop.set()
        await self.collector.stop()
        outcomes = await asyncio.gather(*tasks, waiting, return_exceptions=True)
        listener.close()
        if self.peer is not None:
            await self.peer.stop()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _http_server(self, tls_cert: Path | None, tls_key: Path | None) -> uvicorn.Server:
        app = create_blob_app(
            store=self.store,
            secret=self.identity.derive_secret(URL_SECRET_PURPOSE),
            may_read=self._may_read,
            may_upload=self._may_upload,
            on_complete=partial(_received, "http"),
            now=now,
            rates=self._rates,
        )
        config = uvicorn.Config(
            app,
            log_config=None,
            http=GuardedHttp,
            log_level="warning",
            ssl_certfile=tls_cert,
            ssl_keyfile=tls_key,
        )
        return uvicorn.Server(config)

    async def _keep_peer(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self._tend_peer()
            except (LedgerError, SQLAlchemyError, OSError):
                log.exception("the peer could not be tended; trying again")
            await _pause(stop, PEER_RETRY_SECONDS)

    async def _tend_peer(self) -> None:
        if self.peer is None:
            await self._start_peer()
        if not self._published:
            self._publish()
        if now() > self._certificate_until - CERTIFICATE_SECONDS / 2 and self.peer is not None:
            self.peer.renew_certificate(self._sign_own_certificate())
        await self._announce(self._public_blobs())

    async def _start_peer(self) -> None:
        listen = self.run.listen
        address = f"/ip4/{listen.api_host}/tcp/{listen.libp2p_port}"
        announce = (
            (f"/dns4/{listen.public_host}/tcp/{listen.libp2p_port}",) if listen.public_host else ()
        )
        try:
            self.peer = await Peer.start(
                identity=self.identity,
                certificate=self._sign_own_certificate(),
                coordinator=self.identity.peer_id,
                run=self.run.run.name,
                listen=[address],
                announce=announce,
                bootstrap=(),
                server=self._server,
            )
        except SwarmUnavailable as error:
            log.warning("no DHT for now, workers are served over HTTP: %s", error)
        else:
            log.info("serving the DHT %s", facts(at=self.peer.maddrs))
            await self.peer.announce_beacon()
        self._published = False

    def _publish(self) -> None:
        """Tells the ledger where this role listens."""
        listen = self.run.listen
        host = listen.public_host or listen.api_host
        with self.ledger.begin() as connection:
            queries.set_network(
                connection,
                maddrs=() if self.peer is None else self.peer.maddrs,
                blob_url=f"{self._scheme}://{host}:{listen.network_port}",
                now=now(),
            )
        self._published = True

    def _sign_own_certificate(self) -> SignedCertificate:
        self._certificate_until = now() + CERTIFICATE_SECONDS
        return sign_certificate(
            self.identity,
            peer=self.identity.peer_id,
            run=self.run.run.name,
            expires_at=int(self._certificate_until),
        )

    def _public_blobs(self) -> list[BlobRef]:
        shards = [shard.blob for shard in self.prepared.shards if shard.split in ("train", "dev")]
        with self.ledger.read() as connection:
            accepted = queries.accepted(connection).values()
        experts = [file.blob for row in accepted for file in row.manifest.files]
        return [*shards, *experts]

    async def _announce(self, refs: Iterable[BlobRef]) -> None:
        for ref in refs:
            if self.peer is None or not self.peer.healthy:
                return
            if ref.digest not in self._announced and self.store.has(ref.digest):
                await self.peer.announce_blob(ref)
                self._announced.add(ref.digest)

    async def _collect(self, stop: asyncio.Event) -> None:
        beaten = 0.0
        while not stop.is_set():
            try:
                await self.collector.collect()
                if now() - beaten > BEAT_SECONDS:
                    beaten = now()
                    with self.ledger.begin() as connection:
                        queries.beat_role(connection, "network", beaten)
            except (LedgerError, SQLAlchemyError, OSError):
                log.exception("the ledger or the store could not be written; trying again")
            await _pause(stop, POLL_SECONDS)

    async def _sweep(self, stop: asyncio.Event) -> None:
        keep = {self.prepared.tokenizer.digest, *(one.blob.digest for one in self.prepared.shards)}
        while not stop.is_set():
            try:
                gone = await asyncio.to_thread(sweep, self.ledger, self.store, keep=keep, now=now())
                if gone:
                    log.info("swept blobs that nothing names %s", facts(count=len(gone)))
            except (LedgerError, SQLAlchemyError, OSError):
                log.exception("blobs could not be swept; trying again later")
            await _pause(stop, SWEEP_SECONDS)

    def _may_read(self, digest: str, peer: str) -> bool:
        with self.ledger.read() as connection:
            return queries.may_read(connection, digest, peer)

    def _may_upload(self, digest: str) -> BlobRef | None:
        with self.ledger.read() as connection:
            return queries.may_upload(connection, digest)

    def _may_push(self, digest: str, peer: str) -> BlobRef | None:
        with self.ledger.read() as connection:
            return queries.may_upload(connection, digest, worker=peer)


def _received(route: str, ref: BlobRef, peer: str) -> None:
    log.info("received %s", facts(digest=ref.digest, bytes=ref.size, worker=peer, route=route))


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
