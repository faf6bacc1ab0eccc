"""The two ends of a transfer between real peers, each a process that says JSON lines.

    transfer_ends.py serve FOLDER HOST            serves the blob `down`, takes the blob `up`
    transfer_ends.py carry FOLDER HOST MADDR      fetches `down` while it pushes `up`, both again
                                                  and again until they are through

FOLDER holds the coordinator's key, which is `serve`'s own, a store for either end, and plan.json,
which says of both blobs what they are and how many bytes of each may flow a second.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from protocol.blobs import BlobRef
from protocol.values import Value
from shared.blobs import BlobStore
from shared.clock import now
from shared.exchange.exchange import Exchange, FetchFailed
from shared.exchange.push import push
from shared.exchange.rates import Bucket
from shared.exchange.serving import BlobServer
from shared.exchange.sources import SourceFailed, Tier
from shared.exchange.streams import StreamSource
from shared.identity import Identity, sign_certificate
from shared.swarm.peer import Peer

RUN = "partition"
PEER_PORT = 4001
AGAIN_SECONDS = 1.0


class Plan(Value):
    """Both blobs, and how many bytes of each may flow a second."""

    down: BlobRef
    up: BlobRef
    bytes_per_second: float


def say(event: str, **values: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


async def start(name: str, folder: Path, host: str, server: BlobServer, *bootstrap: str) -> Peer:
    coordinator = Identity.load_or_create(folder / "coordinator.key")
    identity = Identity.load_or_create(folder / f"{name}.key")
    return await Peer.start(
        identity=identity,
        certificate=sign_certificate(
            coordinator, peer=identity.peer_id, run=RUN, expires_at=int(now()) + 3600
        ),
        coordinator=coordinator.peer_id,
        run=RUN,
        listen=[f"/ip4/{host}/tcp/{PEER_PORT}"],
        bootstrap=bootstrap,
        server=server,
        client_mode=bool(bootstrap),
    )


async def serve(folder: Path, plan: Plan, host: str) -> None:
    server = BlobServer(
        BlobStore(folder / "coordinator"),
        lambda digest, _peer: digest == plan.down.digest,
        may_push=lambda digest, _peer: plan.up if digest == plan.up.digest else None,
    )
    peer = await start("coordinator", folder, host, server)
    say("serving", maddr=peer.maddrs[0])
    await asyncio.Event().wait()


async def carry(folder: Path, plan: Plan, host: str, maddr: str) -> None:
    store = BlobStore(folder / "worker")
    far_end = maddr.rpartition("/")[2]
    peer = await start(
        "worker", folder, host, BlobServer(store, lambda _digest, _peer: False), maddr
    )
    down, up = Bucket(plan.bytes_per_second), Bucket(plan.bytes_per_second)
    open_stream = peer.opener(far_end, [maddr])
    source = StreamSource(open_stream, peer=far_end, route="direct", down=down)
    exchange = Exchange(store, down=down)

    async def sources() -> list[StreamSource]:
        return [source]

    async def fetch() -> None:
        await exchange.fetch(plan.down, [Tier("direct", sources)])

    async def upload() -> None:
        await push(open_stream, plan.up, store, up=up)

    await asyncio.gather(persist("down", fetch), persist("up", upload))
    await peer.stop()


async def persist(what: str, attempt: Callable[[], Awaitable[None]]) -> None:
    """Try until it works; every failure is said."""
    while True:
        try:
            await attempt()
        except (FetchFailed, SourceFailed) as failure:
            say("failed", what=what, reason=failure.reason)
            await asyncio.sleep(AGAIN_SECONDS)
        else:
            say("done", what=what)
            return


async def main() -> None:
    ends = {"serve": serve, "carry": carry}
    _, end, folder, *rest = sys.argv
    plan = Plan.model_validate_json((Path(folder) / "plan.json").read_text())
    await ends[end](Path(folder), plan, *rest)


asyncio.run(main())
