"""Daemons that are killed, stopped, or told to run differently come back; none is given up on."""

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
import pytest

from protocol.records import HeadRecord
from shared.swarm.peer import SwarmUnavailable

HEAD = HeadRecord(s=40, h="ab" * 32, n=1234, f=3)
ASSIGNMENT = "a" + "0" * 16
DATA = b"weights" * 100


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.swarm.joining.REJOIN_SECONDS", 0.3)
    monkeypatch.setattr("shared.swarm.joining.BACKOFF_SECONDS", 0.2)


def _is(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return condition()

    return holds


def _fetches(swarm: Any, name: str, asker: Any, ref: Any) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        if not await asker.providers(ref.digest):
            return False
        return bool(await swarm.fetch(name, asker, ref) == DATA)

    return holds


async def test_a_killed_daemon_is_started_again_and_serves_and_announces(
    loopback_swarm: Any,
) -> None:
    swarm = loopback_swarm
    coordinator = await swarm.start("coordinator")
    owner = await swarm.start("owner")
    ref = swarm.store("owner").add_bytes(DATA)
    assert await owner.announce_blob(ref)
    before = owner.maddrs
    os.kill(owner.daemon_pid, signal.SIGKILL)
    await swarm.until(_is(lambda: not owner.healthy))
    assert not await owner.announce_head(ASSIGNMENT, HEAD)
    assert await owner.providers(ref.digest) == []
    await swarm.until(_is(lambda: owner.healthy))
    assert (owner.restarts, owner.maddrs) == (1, before)
    await swarm.until(_fetches(swarm, "coordinator", coordinator, ref))

    async def announced() -> bool:
        return bool(await coordinator.head(ASSIGNMENT, owner.peer_id) == HEAD)

    await swarm.until(announced)


async def test_a_stopped_daemon_is_noticed_and_replaced_on_either_side(
    loopback_swarm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.swarm.watchdog.PROBE_SECONDS", 0.2)
    monkeypatch.setattr("shared.swarm.daemon.CONTROL_SECONDS", 1.0)
    swarm = loopback_swarm
    coordinator = await swarm.start("coordinator")
    worker = await swarm.start("worker")
    ref = swarm.store("worker").add_bytes(DATA)
    assert await worker.announce_blob(ref)
    stopped = [peer.daemon_pid for peer in (coordinator, worker)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    await swarm.until(_is(lambda: coordinator.restarts == 1 and worker.restarts == 1))
    assert not any(psutil.pid_exists(pid) for pid in stopped)
    await swarm.until(_fetches(swarm, "coordinator", coordinator, ref))


async def test_a_peer_becomes_a_client_and_a_server_again_with_the_same_key_and_port(
    loopback_swarm: Any,
) -> None:
    swarm = loopback_swarm
    coordinator = await swarm.start("coordinator")
    worker = await swarm.start("worker")
    ref = swarm.store("worker").add_bytes(DATA)
    assert await worker.announce_blob(ref)
    before, pid = worker.maddrs, worker.daemon_pid
    worker.appear(announce=before, client_mode=False)
    assert (worker.healthy, worker.daemon_pid) == (True, pid)
    worker.appear(announce=(), client_mode=True)
    assert not worker.healthy
    await swarm.until(_is(lambda: worker.healthy))
    assert (worker.client_mode, worker.maddrs) == (True, before)
    await swarm.until(_fetches(swarm, "coordinator", coordinator, ref))
    public = "/ip4/192.0.2.1/tcp/4001"
    worker.appear(announce=[f"{public}/p2p/{worker.peer_id}"], client_mode=False)
    await swarm.until(_is(lambda: worker.restarts == 2 and worker.healthy))
    assert (worker.client_mode, worker.maddrs) == (False, (f"{public}/p2p/{worker.peer_id}",))


@pytest.mark.parametrize("damage", ["truncated", "missing", "another"])
async def test_a_damaged_key_file_is_named_and_left_as_it_is(
    loopback_swarm: Any, damage: str
) -> None:
    identity = loopback_swarm.identity("worker")
    if damage == "truncated":
        os.truncate(identity.path, 40)
    elif damage == "missing":
        identity.path.unlink()
    else:
        identity.path.write_bytes(loopback_swarm.identity("other").path.read_bytes())
    found = identity.path.read_bytes() if identity.path.exists() else None
    with pytest.raises(SwarmUnavailable, match=f"key file {identity.path}"):
        await loopback_swarm.start("somebody", identity=identity)
    assert (identity.path.read_bytes() if identity.path.exists() else None) == found


async def test_two_daemons_with_one_key_neither_hang_nor_crash(loopback_swarm: Any) -> None:
    swarm = loopback_swarm
    coordinator = await swarm.start("coordinator")
    twins = [await swarm.start("twin"), await swarm.start("twin")]
    ref = swarm.store("twin").add_bytes(DATA)
    for twin in twins:
        assert await twin.announce_blob(ref)
    assert await swarm.fetch("coordinator", coordinator, ref) == DATA
    asker = await swarm.start("asker")
    assert await swarm.fetch("asker", asker, ref) == DATA
    assert all(peer.healthy and not peer.restarts for peer in (coordinator, *twins))
    await twins[0].stop()
    swarm.store("asker").delete(ref.digest)
    await swarm.until(_fetches(swarm, "asker", asker, ref))
