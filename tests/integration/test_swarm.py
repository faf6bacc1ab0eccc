"""Peers with real libp2p daemons: finding, fetching, denying, surviving."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from protocol.blobs import BlobRef
from protocol.digests import PIECE_BYTES
from protocol.records import HeadRecord, head_key, provider_key
from shared.swarm.daemon import DaemonSettings, by_peer
from shared.swarm.peer import FetchFailed, SwarmUnavailable

DATA = random.Random(7).randbytes(2 * PIECE_BYTES + 99)
HEAD = HeadRecord(s=40, h="ab" * 32, n=1234, f=3)
ASSIGNMENT = "a" + "0" * 16


async def test_a_blob_is_announced_found_and_fetched(loopback_swarm: Any) -> None:
    coordinator = await loopback_swarm.start("coordinator")
    owner = await loopback_swarm.start("owner")
    asker = await loopback_swarm.start("asker")
    ref = loopback_swarm.store("owner").add_bytes(DATA)
    assert await owner.announce_blob(ref)
    [(peer, record)] = await asker.providers(ref.digest)
    assert (peer, record.m, record.n) == (owner.peer_id, owner.maddrs, len(DATA))
    store = loopback_swarm.store("asker")
    assert await asker.fetch_blob(ref, store) == owner.peer_id
    assert store.read(ref, max_bytes=len(DATA)) == DATA
    assert await asker.fetch_blob(ref, store) == asker.peer_id
    assert await coordinator.fetch_blob(
        ref, loopback_swarm.store("coordinator"), providers=[owner.peer_id]
    )


async def test_the_newest_head_replaces_the_older(loopback_swarm: Any) -> None:
    coordinator = await loopback_swarm.start("coordinator")
    worker = await loopback_swarm.start("worker")
    assert await worker.announce_head(ASSIGNMENT, HEAD)
    assert await coordinator.head(ASSIGNMENT, worker.peer_id) == HEAD
    newer = HEAD.model_copy(update={"s": 80})
    assert await worker.announce_head(ASSIGNMENT, newer)
    assert await coordinator.head(ASSIGNMENT, worker.peer_id) == newer
    assert await coordinator.head(ASSIGNMENT, coordinator.peer_id) is None


async def test_who_has_no_certificate_of_this_run_cannot_store(loopback_swarm: Any) -> None:
    coordinator = await loopback_swarm.start("coordinator")
    ref = BlobRef(digest="cd" * 32, size=5)
    peer_id = loopback_swarm.identity("stranger").peer_id
    own = loopback_swarm.identity("stranger")
    stranger = await loopback_swarm.start("stranger")
    certificate = loopback_swarm.certificate
    for bad in (
        certificate(peer_id, seconds=-60),
        certificate(peer_id, run="other"),
        certificate(coordinator.peer_id),
        certificate(peer_id).model_copy(update={"signature": own.sign(b"anything")}),
    ):
        stranger.renew_certificate(bad)
        assert not await stranger.announce_blob(ref)
    assert await coordinator.providers(ref.digest) == []
    stranger.renew_certificate(certificate(peer_id))
    assert await stranger.announce_blob(ref)
    assert [peer for peer, _ in await coordinator.providers(ref.digest)] == [peer_id]


async def test_a_denied_and_an_unknown_blob_look_the_same(loopback_swarm: Any) -> None:
    allowed: set[tuple[str, str]] = set()

    def may_read(digest: str, peer: str) -> bool:
        if digest == broken.digest:
            raise RuntimeError("the ledger is away")
        return (digest, peer) in allowed

    owner = await loopback_swarm.start("owner", may_read=may_read)
    asker = await loopback_swarm.start("asker")
    ref = loopback_swarm.store("owner").add_bytes(DATA[:1000])
    broken = loopback_swarm.store("owner").add_bytes(b"broken")
    store = loopback_swarm.store("asker")
    unknown = BlobRef(digest="0" * 64, size=1000)
    reasons = set()
    for asked in (ref, unknown, broken):
        with pytest.raises(FetchFailed) as failed:
            await asker.fetch_blob(asked, store, providers=owner.maddrs)
        reasons.add(failed.value.reason.replace(asked.digest, "D"))
    assert reasons == {f"blob D: {owner.peer_id}: the provider does not have it for us"}
    allowed.add((ref.digest, asker.peer_id))
    assert await asker.fetch_blob(ref, store, providers=owner.maddrs) == owner.peer_id


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
async def test_a_provider_of_wrong_bytes_is_dropped_and_the_next_one_used(
    loopback_swarm: Any, damage: str
) -> None:
    liar = await loopback_swarm.start("liar")
    honest = await loopback_swarm.start("honest")
    asker = await loopback_swarm.start("asker")
    ref = loopback_swarm.store("liar").add_bytes(DATA)
    loopback_swarm.store("honest").add_bytes(DATA)
    path = loopback_swarm.store("liar").path(ref.digest)
    if damage == "flipped":
        path.write_bytes(
            DATA[:PIECE_BYTES] + bytes([DATA[PIECE_BYTES] ^ 1]) + DATA[PIECE_BYTES + 1 :]
        )
    else:
        os.truncate(path, len(DATA) - 1)
    store = loopback_swarm.store("asker")
    providers = [*liar.maddrs, *honest.maddrs]
    assert await asker.fetch_blob(ref, store, providers=providers) == honest.peer_id
    assert store.read(ref, max_bytes=len(DATA)) == DATA
    store.delete(ref.digest)
    with pytest.raises(FetchFailed, match="no providers"):
        await asker.fetch_blob(ref, store, providers=liar.maddrs)


async def test_a_killed_daemon_is_started_again_and_serves_and_announces(
    loopback_swarm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = await loopback_swarm.start("coordinator")
    owner = await loopback_swarm.start("owner")
    ref = loopback_swarm.store("owner").add_bytes(DATA[:1000])
    assert await owner.announce_blob(ref)
    before = owner.maddrs
    os.kill(owner.daemon_pid, signal.SIGKILL)
    await loopback_swarm.until(_is(lambda: not owner.healthy))
    assert not await owner.announce_head(ASSIGNMENT, HEAD)
    assert await owner.providers(ref.digest) == []
    await loopback_swarm.until(_is(lambda: owner.healthy))
    assert (owner.restarts, owner.maddrs) == (1, before)
    store = loopback_swarm.store("coordinator")
    assert await coordinator.fetch_blob(ref, store) == owner.peer_id

    async def announced() -> bool:
        return await coordinator.head(ASSIGNMENT, owner.peer_id) == HEAD

    await loopback_swarm.until(announced)


def _is(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return condition()

    return holds


async def test_the_swarm_meets_again_after_the_bootstrap_peer_was_killed(
    loopback_swarm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.swarm.peer.REJOIN_SECONDS", 0.3)
    coordinator = await loopback_swarm.start("coordinator")
    owner = await loopback_swarm.start("owner")
    ref = loopback_swarm.store("owner").add_bytes(b"shard")
    assert await owner.announce_blob(ref)
    os.kill(coordinator.daemon_pid, signal.SIGKILL)
    await loopback_swarm.until(_is(lambda: coordinator.restarts == 1 and coordinator.healthy))
    late = await loopback_swarm.start("late")

    async def found() -> bool:
        return bool(await late.providers(ref.digest))

    await loopback_swarm.until(found)
    assert await late.fetch_blob(ref, loopback_swarm.store("late")) == owner.peer_id


async def test_a_daemon_that_died_while_the_coordinator_was_away_comes_back_with_it(
    loopback_swarm: Any,
) -> None:
    coordinator = await loopback_swarm.start("coordinator")
    worker = await loopback_swarm.start("worker")
    listen = coordinator.maddrs[0].partition("/p2p/")[0]
    ref = loopback_swarm.store("worker").add_bytes(b"weights")
    assert await worker.announce_blob(ref)
    await coordinator.stop()
    os.kill(worker.daemon_pid, signal.SIGKILL)
    await loopback_swarm.until(_is(lambda: not worker.healthy))
    with pytest.raises(FetchFailed):
        await worker.fetch_blob(BlobRef(digest="0" * 64, size=1), loopback_swarm.store("worker"))
    again = await loopback_swarm.start("coordinator", listen=[listen], bootstrap=[])
    assert again.maddrs == coordinator.maddrs

    async def announced() -> bool:
        return bool(await again.providers(ref.digest))

    await loopback_swarm.until(announced)
    assert worker.restarts == 1
    assert await again.fetch_blob(ref, loopback_swarm.store("coordinator")) == worker.peer_id


STOCK_READER = """
import asyncio, json, sys
from hivemind.dht.node import DHTNode

async def main(bootstrap, key):
    node = await DHTNode.create(initial_peers=[bootstrap], startup_timeout=60)
    found = await asyncio.wait_for(node.get(key, latest=True), 20)
    [(owner, entry)] = found.value.items()
    payload, signature, certificate = entry.value
    await asyncio.wait_for(node.shutdown(), 10)
    print(json.dumps([owner, list(payload), len(signature), json.loads(certificate)]))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_stock_hivemind_node_reads_our_records_knowing_the_bootstrap_only(
    loopback_swarm: Any,
) -> None:
    coordinator = await loopback_swarm.start("coordinator")
    owner = await loopback_swarm.start("owner")
    ref = BlobRef(digest="ef" * 32, size=77)
    assert await owner.announce_blob(ref)
    reader = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        STOCK_READER,
        coordinator.maddrs[0],
        provider_key(ref.digest),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(reader.communicate(), 50)
    assert reader.returncode == 0, errors.decode()
    who, payload, signature_bytes, certificate = json.loads(output.splitlines()[-1])
    assert who == owner.peer_id
    assert b"\xa1n\x4d" in bytes(payload)
    assert signature_bytes == 64
    assert certificate["certificate"]["peer"] == owner.peer_id


async def test_a_dead_bootstrap_peer_is_a_swarm_unavailable(loopback_swarm: Any) -> None:
    nobody = f"/ip4/127.0.0.1/tcp/9/p2p/{loopback_swarm.coordinator.peer_id}"
    before = _daemons()
    with pytest.raises(SwarmUnavailable, match="bootstrap"):
        await loopback_swarm.start("worker", bootstrap=[nobody])
    # One of an earlier test may end meanwhile; what counts is that none is left of this one.
    await loopback_swarm.until(_is(lambda: _daemons() <= before))


async def test_one_living_bootstrap_peer_among_dead_ones_is_enough(loopback_swarm: Any) -> None:
    coordinator = await loopback_swarm.start("coordinator")
    nobody = f"/ip4/127.0.0.1/tcp/9/p2p/{loopback_swarm.identity('nobody').peer_id}"
    worker = await loopback_swarm.start("worker", bootstrap=[nobody, *coordinator.maddrs])
    assert await worker.announce_head(ASSIGNMENT, HEAD)
    assert await coordinator.head(ASSIGNMENT, worker.peer_id) == HEAD


async def test_a_peer_that_cannot_be_dialled_announces_fetches_and_serves(
    loopback_swarm: Any,
) -> None:
    coordinator = await loopback_swarm.start("coordinator")
    hidden = await loopback_swarm.start("hidden", listen=[], client_mode=True)
    assert hidden.maddrs == ()
    public = loopback_swarm.store("coordinator").add_bytes(b"shard")
    mine = loopback_swarm.store("hidden").add_bytes(DATA[:5000])
    assert await coordinator.announce_blob(public)
    assert await hidden.announce_blob(mine)
    assert await hidden.fetch_blob(public, loopback_swarm.store("hidden")) == coordinator.peer_id
    # Over the connection that the hidden peer holds open to the coordinator.
    store = loopback_swarm.store("coordinator")
    assert await coordinator.fetch_blob(mine, store) == hidden.peer_id


async def test_what_is_forgotten_is_not_published_again(
    loopback_swarm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.swarm.peer.TTL_SECONDS", 1)
    monkeypatch.setattr("shared.swarm.peer.REPUBLISH_SECONDS", 0.3)
    coordinator = await loopback_swarm.start("coordinator")
    worker = await loopback_swarm.start("worker")
    kept, gone = BlobRef(digest="1" * 64, size=1), BlobRef(digest="2" * 64, size=2)
    assert await worker.announce_blob(kept)
    assert await worker.announce_blob(gone)
    assert await worker.announce_head(ASSIGNMENT, HEAD)
    worker.forget(provider_key(gone.digest))
    worker.forget(head_key(ASSIGNMENT))

    async def expired() -> bool:
        providers = await coordinator.providers(gone.digest)
        return not providers and await coordinator.head(ASSIGNMENT, worker.peer_id) is None

    async def renewed() -> bool:
        providers = await coordinator.providers(kept.digest)
        return [peer for peer, _ in providers] == [worker.peer_id]

    # Each record expires at its own time, and a republication may be late on a busy machine.
    await loopback_swarm.until(expired)
    await loopback_swarm.until(renewed)


async def test_stopping_leaves_no_process_and_no_task(loopback_swarm: Any) -> None:
    before, tasks = _daemons(), asyncio.all_tasks()
    await loopback_swarm.start("coordinator")
    worker = await loopback_swarm.start("worker")
    os.kill(worker.daemon_pid, signal.SIGSTOP)
    async with asyncio.timeout(25):
        await loopback_swarm.stop()
    assert not worker.healthy
    # One of an earlier test may end meanwhile; what counts is that none is left of this one.
    await loopback_swarm.until(_is(lambda: _daemons() <= before))
    await loopback_swarm.until(_is(lambda: asyncio.all_tasks() <= tasks))
    loopback_swarm.peers.clear()


def _daemons() -> set[int]:
    return {child.pid for child in psutil.Process().children() if child.name() == "p2pd"}


def test_peers_are_named_by_id_or_by_any_of_their_addresses() -> None:
    first, second = "/ip4/1.2.3.4/tcp/1/p2p/A", "/ip6/::1/tcp/1/p2p/A"
    assert by_peer([first, "B", second, "B"]) == {"A": (first, second), "B": ()}


def test_a_restart_keeps_the_ports_that_were_given(tmp_path: Path) -> None:
    settings = DaemonSettings(
        identity_path=str(tmp_path),
        peer_id="",
        listen=("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0", "/ip4/0.0.0.0/tcp/7000"),
        announce=(),
        bootstrap=(),
        client_mode=False,
    )
    maddrs = ("/ip6/::1/tcp/6001/p2p/X", "/ip4/127.0.0.1/tcp/6000/p2p/X")
    assert settings.pinned(maddrs).listen == (
        "/ip4/0.0.0.0/tcp/6000",
        "/ip6/::/tcp/6001",
        "/ip4/0.0.0.0/tcp/7000",
    )
    assert settings.pinned(()) == settings
