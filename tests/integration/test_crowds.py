"""A blob that very many peers announce is found, over real libp2p daemons."""

import secrets
from pathlib import Path
from typing import Any

import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID
from hivemind.utils import MSGPackSerializer

from protocol.blobs import BlobRef
from protocol.records import TTL_SECONDS, ProviderRecord, provider_key
from shared.clock import now
from shared.identity import Identity
from shared.swarm.crowds import MAX_OWNERS
from shared.swarm.guards import SignedRecordValidator

REF = BlobRef(digest="ab" * 32, size=123)
KEY = DHTID.generate(source=provider_key(REF.digest))
CROWD = 1200
BATCH = 100


async def _announce(swarm: Any, sender: Any, target: str, members: list[Identity]) -> list[bool]:
    """Store at `target` what `members` would publish; True for each record that it took."""
    owners, values, expires_at = [], [], now() + TTL_SECONDS
    for number, member in enumerate(members):
        maddrs = [
            f"/ip4/192.0.2.1/tcp/{10_000 + number + at}/p2p/{member.peer_id}" for at in (0, 1)
        ]
        payload = ProviderRecord(m=tuple(maddrs), n=REF.size).model_dump(mode="json")
        subkey = MSGPackSerializer.dumps(member.peer_id)
        record = DHTRecord(KEY.to_bytes(), subkey, MSGPackSerializer.dumps(payload), expires_at)
        signer = SignedRecordValidator(
            member,
            swarm.certificate(member.peer_id),
            coordinator=swarm.coordinator.peer_id,
            run="demo",
            now=now,
        )
        owners.append(member.peer_id)
        values.append(signer.sign_value(record))
    stored = await sender._watchdog._daemon._node.protocol.call_store(
        PeerID.from_base58(target), [KEY] * len(owners), values, expires_at, subkeys=owners
    )
    return list(stored)


async def test_a_blob_of_more_providers_than_an_answer_has_room_for_is_found(
    loopback_swarm: Any,
) -> None:
    coordinator = await loopback_swarm.start("coordinator")
    sender = await loopback_swarm.start("sender", client_mode=True)
    asker = await loopback_swarm.start("asker")
    members = [Identity(Path("unused"), secrets.token_bytes(32)) for _ in range(CROWD)]
    for start in range(0, CROWD, BATCH):
        part = members[start : start + BATCH]
        assert all(await _announce(loopback_swarm, sender, coordinator.peer_id, part))
    found = {who for who, _ in await asker.providers(REF.digest)}
    assert len(found) == MAX_OWNERS
    assert found < {member.peer_id for member in members}
    # Not full for good: who comes late is found by all.
    assert await asker.announce_blob(REF)
    assert asker.peer_id in {who for who, _ in await coordinator.providers(REF.digest)}


async def test_two_of_five_are_found_at_a_time_and_others_take_the_place_of_who_leaves(
    loopback_swarm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.swarm.crowds.MAX_OWNERS", 2)
    monkeypatch.setattr("shared.swarm.peer.TTL_SECONDS", 3)
    monkeypatch.setattr("shared.swarm.peer.REPUBLISH_SECONDS", 0.5)
    coordinator = await loopback_swarm.start("coordinator")
    peers = [
        await loopback_swarm.start(f"peer{number}", client_mode=number > 2) for number in range(5)
    ]
    for peer in peers:
        assert await peer.announce_blob(REF)
    met: set[str] = set()

    async def found() -> set[str]:
        names = {who for who, _ in await coordinator.providers(REF.digest)}
        assert len(names) <= 2
        met.update(names)
        return names

    async def all_are_met() -> bool:
        await found()
        return met == {peer.peer_id for peer in peers}

    async def only_those_who_stay() -> bool:
        return await found() == {peers[0].peer_id, peers[4].peer_id}

    await loopback_swarm.until(all_are_met)
    for peer in peers[1:4]:
        await peer.stop()
    await loopback_swarm.until(only_those_who_stay)
