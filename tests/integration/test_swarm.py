"""Peers with real libp2p daemons: announcing, finding, fetching, denying, leaving."""

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
from protocol.records import HeadRecord, head_key, provider_key
from shared.exchange.exchange import FetchFailed
from shared.swarm.process import DaemonSettings

DATA = random.Random(7).randbytes(5000)
HEAD = HeadRecord(s=40, h="ab" * 32, n=1234, f=3)
ASSIGNMENT = "a" + "0" * 16


async def test_a_blob_is_announced_found_and_fetched(loopback_swarm: Any) -> None:
    await loopback_swarm.start("coordinator")
    owner = await loopback_swarm.start("owner")
    asker = await loopback_swarm.start("asker")
    ref = loopback_swarm.store("owner").add_bytes(DATA)
    assert await owner.announce_blob(ref)
    [(peer, record)] = await asker.providers(ref.digest)
    assert (peer, record.m, record.n) == (owner.peer_id, owner.maddrs, len(DATA))
    assert await loopback_swarm.fetch("asker", asker, ref) == DATA


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
    ref = loopback_swarm.store("owner").add_bytes(DATA)
    broken = loopback_swarm.store("owner").add_bytes(b"broken")
    reasons = set()
    for asked in (ref, BlobRef(digest="0" * 64, size=1000), broken):
        assert await owner.announce_blob(asked)
        with pytest.raises(FetchFailed) as failed:
            await loopback_swarm.fetch("asker", asker, asked)
        reasons.add(failed.value.reason.replace(asked.digest, "D"))
    [reason] = reasons
    assert "does not have it for us" in reason
    allowed.add((ref.digest, asker.peer_id))
    assert await loopback_swarm.fetch("asker", asker, ref) == DATA


def _is(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return condition()

    return holds


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


async def test_a_peer_that_cannot_be_dialled_announces_fetches_and_serves(
    loopback_swarm: Any,
) -> None:
    coordinator = await loopback_swarm.start("coordinator")
    hidden = await loopback_swarm.start("hidden", listen=[], client_mode=True)
    assert hidden.maddrs == ()
    public = loopback_swarm.store("coordinator").add_bytes(b"shard")
    mine = loopback_swarm.store("hidden").add_bytes(DATA)
    assert await coordinator.announce_blob(public)
    assert await hidden.announce_blob(mine)
    assert await loopback_swarm.fetch("hidden", hidden, public) == b"shard"
    # Over the connection that the hidden peer holds open to the coordinator.
    assert await loopback_swarm.fetch("coordinator", coordinator, mine) == DATA


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


async def test_what_no_node_took_is_said_again_soon(loopback_swarm: Any) -> None:
    coordinator = await loopback_swarm.start("coordinator")
    worker = await loopback_swarm.start("worker", client_mode=True)
    os.kill(coordinator.daemon_pid, signal.SIGSTOP)
    assert not await worker.announce_blob(BlobRef(digest="cd" * 32, size=5))
    # What was on its way to that daemon dies with it; its watchdog starts another one.
    os.kill(coordinator.daemon_pid, signal.SIGKILL)

    async def told() -> bool:
        return bool(await coordinator.providers("cd" * 32))

    await loopback_swarm.until(told)


async def test_stopping_leaves_no_process_and_no_task(loopback_swarm: Any) -> None:
    before, tasks = _daemons(), asyncio.all_tasks()
    await loopback_swarm.start("coordinator")
    worker = await loopback_swarm.start("worker")
    os.kill(worker.daemon_pid, signal.SIGSTOP)
    async with asyncio.timeout(60):
        await loopback_swarm.stop()
    assert not worker.healthy
    # One of an earlier test may end meanwhile; what counts is that none is left of this one.
    await loopback_swarm.until(_is(lambda: _daemons() <= before))
    await loopback_swarm.until(_is(lambda: asyncio.all_tasks() <= tasks))
    loopback_swarm.peers.clear()


async def test_a_start_that_is_given_up_leaves_no_process_and_no_task(loopback_swarm: Any) -> None:
    before, tasks, asked = _daemons(), asyncio.all_tasks(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        silent = f"/ip4/127.0.0.1/tcp/{port}/p2p/{loopback_swarm.identity('silent').peer_id}"
        start = asyncio.create_task(loopback_swarm.start("worker", bootstrap=[silent]))
        async with asyncio.timeout(60):
            await asked.wait()
        assert _daemons() - before
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
    await loopback_swarm.until(_is(lambda: _daemons() <= before))
    await loopback_swarm.until(_is(lambda: asyncio.all_tasks() <= tasks))


def _daemons() -> set[int]:
    return {child.pid for child in psutil.Process().children() if child.name() == "p2pd"}


def test_a_restart_keeps_the_ports_that_were_given(tmp_path: Path) -> None:
    settings = DaemonSettings(
        identity_path=str(tmp_path),
        peer_id="",
        listen=("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0", "/ip4/0.0.0.0/tcp/7000"),
        announce=(),
        client_mode=False,
    )
    maddrs = ("/ip6/::1/tcp/6001/p2p/X", "/ip4/127.0.0.1/tcp/6000/p2p/X")
    assert settings.pinned(maddrs).listen == (
        "/ip4/0.0.0.0/tcp/6000",
        "/ip6/::/tcp/6001",
        "/ip4/0.0.0.0/tcp/7000",
    )
    assert settings.pinned(()) == settings
