"""A worker's peer in the swarm: started as soon as that works, then tended.

Nothing here is needed to take part, HTTP carries everything: so nothing here raises for what the
network does, and whatever fails is tried again.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Sequence

from protocol.blobs import BlobRef
from protocol.certificates import SignedCertificate
from protocol.messages import RunInfo
from protocol.records import MAX_KEYS_PER_OWNER, HeadRecord, head_key, provider_key
from shared.clock import now
from shared.exchange.serving import BlobServer
from shared.logs import facts
from shared.swarm.peer import Peer, SwarmUnavailable
from worker.bootstrap import Bootstrap, load_bootstrap, save_bootstrap
from worker.client import CoordinatorClient
from worker.errors import CoordinatorUnreachable, Refused
from worker.folder import WorkerFolder
from worker.reachability import Reachability, ask
from worker.settings import JoinSettings
from worker.splits import MAX_LOOKS, Look, judge
from worker.tasks import log_failure

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
PEER_RETRY_SECONDS = 30.0
REFRESH_SECONDS = 600.0
RETEST_SECONDS = {"unknown": 120.0, "unreachable": 600.0, "reachable": 1800.0}


class Presence:
    """One worker's peer and what is known of it. `start`, then `tend` beside it, then `stop`."""

    def __init__(
        self,
        *,
        settings: JoinSettings,
        folder: WorkerFolder,
        client: CoordinatorClient,
        server: BlobServer,
        say: Callable[[str], None],
    ) -> None:
        self.peer: Peer | None = None
        self.reachability: Reachability | None = None
        self._settings = settings
        self._identity = folder.identity
        self._path = folder.root / "bootstrap.json"
        self._client = client
        self._server = server
        self._say = say
        self._told: dict[str, BlobRef | HeadRecord] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._looks: deque[Look] = deque(maxlen=MAX_LOOKS)
        self._rebuilt_at: float | None = None
        self._refreshed_at = self._tested_at = -float("inf")
        self._tested_life: tuple[int, tuple[str, ...]] | None = None

    async def start(
        self, info: RunInfo, *, certificate: SignedCertificate, bootstrap: tuple[str, ...]
    ) -> None:
        """Joins the DHT of the run, or leaves it to `tend`. `bootstrap` is what REST named."""
        self._info, self._certificate = info, certificate
        self._known = load_bootstrap(self._path, coordinator=info.coordinator, run=info.run)
        self._learn(bootstrap)
        self._refreshed_at = _time()
        await self._start_peer()

    async def tend(self) -> None:
        """Runs until it is cancelled; after `start`."""
        while not self._settings.http_only:
            try:
                await self._look()
            except Exception:
                log.exception("the peer could not be tended; trying again")
            pause = PEER_RETRY_SECONDS if self.peer is None else LOOK_SECONDS
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))

    def hold(self, certificate: SignedCertificate) -> None:
        """Signs what it says with `certificate` from now on."""
        self._certificate = certificate
        if self.peer is not None:
            self.peer.renew_certificate(certificate)

    @property
    def maddrs(self) -> tuple[str, ...]:
        """Where others can dial the peer; none while nobody can, or while there is none."""
        peer, found = self.peer, self.reachability
        if peer is None or peer.client_mode or (found and found.state == "unreachable"):
            return ()
        if found is None:
            return peer.maddrs
        return tuple(f"{maddr}/p2p/{peer.peer_id}" for maddr in found.announce)

    def publish(
        self, refs: Sequence[BlobRef], *, head: tuple[str, HeadRecord] | None = None
    ) -> None:
        """Names blobs, and the newest checkpoint of an assignment, in the DHT; does not wait."""
        told: dict[str, BlobRef | HeadRecord] = {provider_key(ref.digest): ref for ref in refs}
        if head is not None:
            told[head_key(head[0])] = head[1]
        for key, what in told.items():
            self._told.pop(key, None)
            self._told[key] = what
        while len(self._told) > MAX_KEYS_PER_OWNER:
            del self._told[next(iter(self._told))]
        self._announce(told)

    def forget(self, keys: Collection[str]) -> None:
        """Stops naming what stands under these keys of `protocol.records`."""
        for key in keys:
            self._told.pop(key, None)
            if self.peer is not None:
                self.peer.forget(key)

    async def stop(self) -> None:
        """Leaves the DHT. Cancel `tend` before."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.peer is not None:
            await self.peer.stop()
            self.peer = None

    async def _start_peer(self) -> None:
        if self._settings.http_only:
            return
        try:
            self.peer = await Peer.start(
                identity=self._identity,
                certificate=self._certificate,
                coordinator=self._info.coordinator,
                run=self._info.run,
                listen=self._settings.listen,
                announce=self._settings.announce,
                bootstrap=self._known.maddrs,
                server=self._server,
                client_mode=self._known.client_mode,
            )
        except SwarmUnavailable as error:
            log.warning("taking part over HTTP alone for now: %s", error)
            return
        peer = self.peer
        log.info("a peer runs %s", facts(peer=peer.peer_id, at=peer.maddrs, joined=peer.joined))
        self._announce(dict(self._told))

    async def _look(self) -> None:
        """One round: the peer, the bootstrap peers, the beacon, and who can dial us."""
        if self.peer is None:
            await self._refresh()
            await self._start_peer()
        if self.peer is None:
            return
        await self._retest(self.peer)
        lit = self.peer.lit
        rest = False
        if not lit or _time() - self._refreshed_at >= REFRESH_SECONDS:
            rest = await self._refresh()
        self._looks.append(Look(lit=lit, rest=rest, open=self.peer.open))
        self._act(self.peer)

    def _act(self, peer: Peer) -> None:
        verdict = judge(self._looks, rebuilt_at=self._rebuilt_at, now=_time())
        if verdict == "rejoin":
            peer.rejoin()
        elif verdict == "rebuild" and not self._server.num_streams:
            self._rebuilt_at = _time()
            peer.rebuild("the coordinator answers, but its beacon is not in our DHT")

    async def _refresh(self) -> bool:
        """Learns from REST whom to join; False if the coordinator did not answer."""
        try:
            info = await self._client.run_info()
        except (CoordinatorUnreachable, Refused) as error:
            log.debug("bootstrap peers were not refreshed: %s", error)
            return False
        self._refreshed_at = _time()
        if (info.coordinator, info.run) == (self._info.coordinator, self._info.run):
            self._learn(info.bootstrap)
        return True

    def _learn(self, maddrs: Sequence[str]) -> None:
        self._keep(self._known.learn(maddrs, own=self._identity.peer_id, now=now()))
        if self.peer is not None:
            self.peer.set_bootstrap(self._known.maddrs)

    def _keep(self, known: Bootstrap) -> None:
        if known != self._known:
            self._known = known
            save_bootstrap(self._path, known)

    async def _retest(self, peer: Peer) -> None:
        """Lets the coordinator try to dial us, when it is time or the peer has moved."""
        life = (peer.restarts, peer.listening)
        state = self.reachability.state if self.reachability else "unknown"
        age = _time() - self._tested_at
        if not peer.healthy or (life == self._tested_life and age < RETEST_SECONDS[state]):
            return
        self._tested_life, self._tested_at = life, _time()
        found = await ask(self._client, peer.listening, announce=self._settings.announce)
        before, self.reachability = self.reachability, found
        if before is None or (before.state, before.words) != (found.state, found.words):
            self._say(". ".join(part for part in (found.words, found.fix) if part))
        if found.state != "unknown":
            self._appear(peer, found)

    def _appear(self, peer: Peer, found: Reachability) -> None:
        """Takes part as what we are; not while that would cut off who is being served."""
        client_mode = found.state == "unreachable"
        self._keep(self._known.model_copy(update={"client_mode": client_mode}))
        if self._server.num_streams:
            self._tested_life = None
            return
        peer.appear(announce=found.announce, client_mode=client_mode)

    def _announce(self, told: dict[str, BlobRef | HeadRecord]) -> None:
        if self.peer is None:
            return
        task = asyncio.create_task(_announce_all(self.peer, told))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(log_failure)


async def _announce_all(peer: Peer, told: dict[str, BlobRef | HeadRecord]) -> None:
    for key, what in told.items():
        if isinstance(what, BlobRef):
            await peer.announce_blob(what)
        else:
            await peer.announce_head(key.rpartition("/")[2], what)


def _time() -> float:
    return asyncio.get_running_loop().time()
