"""Joining with real libp2p daemons: bootstrap peers that are dead, late, gone, in another DHT."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protocol.blobs import BlobRef
from protocol.records import BeaconRecord, beacon_key
from shared.clock import now
from shared.swarm.joining import Joining, by_peer

REF = BlobRef(digest="ab" * 32, size=123)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.swarm.joining.REJOIN_SECONDS", 0.3)
    monkeypatch.setattr("shared.swarm.joining.BACKOFF_SECONDS", 0.2)
    monkeypatch.setattr("shared.swarm.joining.MAX_BACKOFF_SECONDS", 0.5)
    monkeypatch.setattr("shared.swarm.peer.BEACON_SECONDS", 0.3)


def _is(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return condition()

    return holds


def _finds(peer: Any, owner: Any) -> Callable[[], Awaitable[bool]]:
    async def holds() -> bool:
        return [who for who, _ in await peer.providers(REF.digest)] == [owner.peer_id]

    return holds


async def _coordinator(swarm: Any, **changes: Any) -> Any:
    peer = await swarm.start("coordinator", **changes)
    await peer.announce_beacon()
    return peer


async def test_a_worker_starts_without_any_bootstrap_peer_and_joins_those_that_come(
    loopback_swarm: Any, free_ports: Any
) -> None:
    swarm = loopback_swarm
    [port] = free_ports(1)
    listen = f"/ip4/127.0.0.1/tcp/{port}"
    late = f"{listen}/p2p/{swarm.coordinator.peer_id}"
    nobody = f"/ip4/127.0.0.1/tcp/9/p2p/{swarm.identity('nobody').peer_id}"
    first = await swarm.start("first", bootstrap=[nobody, late])
    second = await swarm.start("second", bootstrap=[])
    assert first.healthy
    assert not first.joined
    await first.announce_blob(REF)
    assert await second.providers(REF.digest) == []

    coordinator = await _coordinator(swarm, listen=[listen], bootstrap=[])
    second.set_bootstrap([late])
    await swarm.until(_is(lambda: first.joined and second.joined))
    # What was said while nobody heard it is said again.
    await swarm.until(_finds(second, first))
    await swarm.until(_finds(coordinator, first))
    assert (first.restarts, second.restarts) == (0, 0)


async def test_workers_go_on_without_their_bootstrap_peer_and_meet_it_again(
    loopback_swarm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = loopback_swarm
    monkeypatch.setattr("shared.swarm.peer.BEACON_TTL_SECONDS", 3)
    coordinator = await _coordinator(swarm)
    listen = coordinator.maddrs[0].partition("/p2p/")[0]
    first, second = await swarm.start("first"), await swarm.start("second")
    assert await first.announce_blob(REF)
    await coordinator.stop()
    await swarm.until(_is(lambda: not first.joined and not second.joined))
    await swarm.until(_is(lambda: not first.lit and not second.lit))
    assert await _finds(second, first)()

    # With what the first knows, somebody new finds both.
    third = await swarm.start("third", bootstrap=[*coordinator.maddrs, *first.maddrs])
    assert await _finds(third, first)()

    await _coordinator(swarm, listen=[listen], bootstrap=[])
    await swarm.until(_is(lambda: first.joined and second.joined and third.joined))


async def test_a_split_dht_is_noticed_by_its_beacon_and_healed_by_other_bootstrap_peers(
    loopback_swarm: Any,
) -> None:
    swarm = loopback_swarm
    coordinator = await _coordinator(swarm)
    lost = await swarm.start("lost", bootstrap=[])
    follower = await swarm.start("follower", bootstrap=lost.maddrs)
    assert await lost.announce_blob(REF)
    assert await follower.providers(REF.digest)
    assert await follower.beacon() is None
    assert follower.open
    assert not follower.joined
    # A member can sign what it likes: under the beacon's key only the coordinator's counts.
    daemon, key = lost._watchdog.daemon, beacon_key("demo")
    forged = BeaconRecord(t=int(now())).model_dump(mode="json")
    for owner in (lost.peer_id, swarm.coordinator.peer_id):
        assert not await daemon.store(key, forged, owner=owner, expires_at=now() + 60)
    assert await follower.beacon() is None

    follower.set_bootstrap(coordinator.maddrs)
    await swarm.until(_is(lambda: follower.joined))
    # The halves are one: the lost one was met too.
    await swarm.until(_finds(coordinator, lost))


def test_peers_are_named_by_id_or_by_any_of_their_addresses() -> None:
    a, b = "12D3KooW" + "A" * 44, "12D3KooW" + "B" * 44
    first, second = f"/ip4/1.2.3.4/tcp/1/p2p/{a}", f"/ip6/::1/tcp/1/p2p/{a}"
    assert by_peer([first, b, second, b]) == {a: (first, second), b: ()}
    assert by_peer(["", "/ip4/1.2.3.4/tcp/1", f"{first}/p2p/Qm", "/p2p/" + a[:-1] + "0"]) == {}


async def test_new_bootstrap_peers_are_tried_at_once_and_known_ones_are_no_news() -> None:
    a, b = "12D3KooW" + "A" * 44, "12D3KooW" + "B" * 44
    joining = Joining([a], own=b, coordinator=a)
    joining.set_bootstrap([a])
    assert not joining._wake.is_set()
    joining.set_bootstrap([b])
    await joining.pause()
