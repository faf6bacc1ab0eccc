"""What hostile peers send to a node of ours: it refuses, stays up and goes on serving."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import P2P, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer

from protocol.blobs import BlobRef
from protocol.records import (
    MAX_KEYS_OF_COORDINATOR,
    MAX_KEYS_PER_OWNER,
    MAX_RECORD_BYTES,
    MAX_TTL_SECONDS,
    TTL_SECONDS,
    provider_key,
)
from shared.clock import now
from shared.swarm.guards import RequestGuard, SignedRecordValidator, prepare_hivemind
from shared.swarm.peer import Peer

REF = BlobRef(digest="ab" * 32, size=123)
KEY = DHTID.generate(source=provider_key(REF.digest)).to_bytes()


def _validator(swarm: Any, name: str, **changes: Any) -> SignedRecordValidator:
    identity = swarm.identity(name)
    certificate = swarm.certificate(identity.peer_id, **changes)
    return SignedRecordValidator(
        identity, certificate, coordinator=swarm.coordinator.peer_id, run="demo", now=now
    )


def _record(owner: str, *, ttl: float = TTL_SECONDS, **changes: Any) -> DHTRecord:
    facts = {
        "key": KEY,
        "subkey": MSGPackSerializer.dumps(owner),
        "value": MSGPackSerializer.dumps({"m": [], "n": 123}),
        "expiration_time": now() + ttl,
    }
    return DHTRecord(**(facts | changes))


def _signed(validator: SignedRecordValidator, record: DHTRecord) -> DHTRecord:
    return DHTRecord(
        record.key, record.subkey, validator.sign_value(record), record.expiration_time
    )


@pytest.fixture
def member(loopback_swarm: Any) -> tuple[SignedRecordValidator, str]:
    return _validator(loopback_swarm, "member"), loopback_swarm.identity("member").peer_id


def test_a_member_s_own_record_is_accepted_and_stripped_to_its_payload(
    member: tuple[SignedRecordValidator, str],
) -> None:
    validator, owner = member
    record = _record(owner)
    signed = _signed(validator, record)
    assert validator.validate(signed)
    assert validator.validate(signed)
    assert validator.strip_value(signed) == record.value


@pytest.mark.parametrize(
    "spoiled",
    [
        {"ttl": -3600},
        {"ttl": MAX_TTL_SECONDS + 3600},
        {"ttl": float("inf")},
        {"ttl": float("nan")},
        {"value": b"\xc1"},
        {"value": b"\xdf\xff\xff\xff\xff"},
        {"value": b"x" * (MAX_RECORD_BYTES + 1)},
        {"subkey": MSGPackSerializer.dumps(None)},
        {"subkey": b""},
        {"subkey": b"\xc1"},
        {"subkey": MSGPackSerializer.dumps(["owner"])},
        {"subkey": MSGPackSerializer.dumps("owner")},
    ],
    ids=lambda spoiled: "-".join(f"{name}={value!r:.20}" for name, value in spoiled.items()),
)
def test_a_signed_record_that_is_wrong_in_itself_is_refused(
    member: tuple[SignedRecordValidator, str], spoiled: dict[str, Any]
) -> None:
    validator, owner = member
    assert not validator.validate(_signed(validator, _record(owner, **spoiled)))


def test_a_record_is_refused_under_any_other_key_owner_or_expiry(
    member: tuple[SignedRecordValidator, str], loopback_swarm: Any
) -> None:
    validator, owner = member
    signed = _signed(validator, _record(owner))
    foreign = MSGPackSerializer.dumps(loopback_swarm.identity("other").peer_id)
    padded = b"\xda" + len(owner).to_bytes(2, "big") + owner.encode()
    for moved in (
        DHTRecord(b"\1" * 20, signed.subkey, signed.value, signed.expiration_time),
        DHTRecord(signed.key, foreign, signed.value, signed.expiration_time),
        DHTRecord(signed.key, padded, signed.value, signed.expiration_time),
        DHTRecord(signed.key, signed.subkey, signed.value, signed.expiration_time + 1),
        DHTRecord(signed.key, signed.subkey, signed.value[:-1], signed.expiration_time),
        DHTRecord(signed.key, signed.subkey, b"", signed.expiration_time),
    ):
        assert not validator.validate(moved)
    assert MSGPackSerializer.loads(padded) == owner


def test_a_record_needs_a_living_certificate_of_this_run_by_this_coordinator(
    member: tuple[SignedRecordValidator, str], loopback_swarm: Any
) -> None:
    validator, owner = member
    for changes in ({"seconds": -60}, {"run": "other"}, {"seconds": TTL_SECONDS - 10}):
        spoiled = _signed(_validator(loopback_swarm, "member", **changes), _record(owner))
        assert not validator.validate(spoiled)
    forger = _validator(loopback_swarm, "forger")
    assert not validator.validate(_signed(forger, _record(owner)))
    forger.certificate = validator.certificate
    assert not validator.validate(_signed(forger, _record(owner)))
    payload, signature, _ = MSGPackSerializer.loads(validator.sign_value(_record(owner)))
    for certificate in (b"", b"{}", b"\xff", None, 5):
        value = MSGPackSerializer.dumps([payload, signature, certificate])
        assert not validator.validate(_record(owner, value=value))


def _key(number: int) -> bytes:
    return number.to_bytes(20, "big")


def test_an_owner_has_so_many_living_keys_and_others_still_have_theirs(loopback_swarm: Any) -> None:
    time = now()
    member, other = (loopback_swarm.identity(name).peer_id for name in ("member", "other"))
    signers = {name: _validator(loopback_swarm, name) for name in ("member", "other")}
    reader = SignedRecordValidator(
        loopback_swarm.identity("reader"),
        loopback_swarm.certificate(member),
        coordinator=loopback_swarm.coordinator.peer_id,
        run="demo",
        now=lambda: time,
    )

    def stores(name: str, owner: str, number: int) -> bool:
        record = _record(owner, key=_key(number), expiration_time=time + TTL_SECONDS)
        return reader.validate(_signed(signers[name], record))

    assert all(stores("member", member, number) for number in range(MAX_KEYS_PER_OWNER))
    assert not stores("member", member, MAX_KEYS_PER_OWNER)
    assert stores("member", member, 0)
    assert stores("other", other, MAX_KEYS_PER_OWNER)
    time += TTL_SECONDS + 11
    assert stores("member", member, MAX_KEYS_PER_OWNER)


def test_the_coordinator_has_more_keys_than_a_member(loopback_swarm: Any) -> None:
    identity = loopback_swarm.coordinator
    validator = SignedRecordValidator(
        identity,
        loopback_swarm.certificate(identity.peer_id),
        coordinator=identity.peer_id,
        run="demo",
        now=now,
    )
    stored = [
        validator.validate(_signed(validator, _record(identity.peer_id, key=_key(number))))
        for number in range(MAX_KEYS_OF_COORDINATOR + 1)
    ]
    assert stored == [True] * MAX_KEYS_OF_COORDINATOR + [False]


async def test_a_node_s_storage_and_cache_are_bounded(loopback_swarm: Any) -> None:
    peer = await loopback_swarm.start("peer")
    protocol = peer._watchdog._daemon._node.protocol
    protocol.storage.maxsize, full = 3, protocol.storage.maxsize
    for number in range(9):
        protocol.storage.store_subkey(DHTID(number), "owner", b"x", now() + 60 + number)
    assert [int(key) for key, _ in protocol.storage.items()] == [6, 7, 8]
    assert full == 20_000
    assert protocol.cache.maxsize == 1024


def _nested(levels: int) -> bytes:
    data = msgpack.packb(1)
    for _ in range(levels):
        data = msgpack.packb(msgpack.ExtType(0x40, data))
    return bytes(data)


def test_nested_extensions_are_refused_by_depth_and_by_kind() -> None:
    prepare_hivemind()
    prepare_hivemind()
    assert MSGPackSerializer.loads(MSGPackSerializer.dumps(((1, 2), 3))) == ((1, 2), 3)
    for data in (_nested(5), _nested(400), msgpack.packb(msgpack.ExtType(0x51, b""))):
        with pytest.raises(ValueError, match="refused"):
            MSGPackSerializer.loads(data)
    assert MSGPackSerializer.loads(MSGPackSerializer.dumps((1,))) == (1,)


async def test_an_answer_that_outlives_every_record_is_not_believed() -> None:
    guard = RequestGuard(now)
    result = dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, expiration_time=now() + 60)
    assert await guard.validate_response(dht_pb2.FindResponse(results=[result]), None)
    for expires in (float("inf"), float("nan"), now() + 2 * MAX_TTL_SECONDS):
        result.expiration_time = expires
        assert not await guard.validate_response(dht_pb2.FindResponse(results=[result]), None)
    assert not await guard.validate_request(dht_pb2.FindRequest(keys=[b"short"]))
    assert not await guard.validate_request(object())


class Attacker:
    """A stock hivemind node, with no certificate and no guards of ours, and its victim."""

    def __init__(self, victim: Peer, p2p: P2P, node: DHTNode) -> None:
        self.victim, self.p2p, self.node = victim, p2p, node
        self.target = PeerID.from_base58(victim.peer_id)

    async def store(self, **fields: Any) -> Any:
        """Send a raw store request; None if it was refused as a whole."""
        request = dht_pb2.StoreRequest(**fields)
        stub = self.node.protocol.get_stub(self.target)
        try:
            return await asyncio.wait_for(stub.rpc_store(request, timeout=10), 15)
        except Exception:  # noqa: BLE001 - a refusal arrives as whatever hivemind makes of it
            return None


@pytest.fixture
async def attacker(loopback_swarm: Any) -> AsyncIterator[Attacker]:
    victim = await loopback_swarm.start("victim")
    p2p = await P2P.create(initial_peers=victim.maddrs, startup_timeout=60)
    node = await DHTNode.create(p2p=p2p, initial_peers=victim.maddrs)
    yield Attacker(victim, p2p, node)
    await node.shutdown()
    await p2p.shutdown()


async def test_hostile_requests_leave_the_node_serving(
    attacker: Attacker, loopback_swarm: Any
) -> None:
    expires = now() + 60
    one: dict[str, Any] = {"keys": [KEY], "expiration_time": [expires], "in_cache": [False]}
    owner = loopback_swarm.identity("member").peer_id
    plain = MSGPackSerializer.dumps({"m": [], "n": 1})
    tag, regular = MSGPackSerializer.dumps(owner), MSGPackSerializer.dumps(None)

    assert await attacker.store(**one, subkeys=[b""], values=[_nested(400)]) is None
    many = 40_000
    assert (
        await attacker.store(
            keys=[KEY] * many,
            subkeys=[regular] * many,
            values=[b"x"] * many,
            expiration_time=[expires] * many,
            in_cache=[False] * many,
        )
        is None
    )
    assert await attacker.store(**one, subkeys=[regular], values=[b"x" * 2_000_000]) is None
    assert await attacker.store(**one, subkeys=[tag] * 2, values=[plain]) is None
    for subkey, value in ((tag, plain), (regular, plain), (tag, b"\xc1"), (regular, b"\xc1")):
        answer = await attacker.store(**one, subkeys=[subkey], values=[value])
        assert list(answer.store_ok) == [False]
    forger = _validator(loopback_swarm, "forger")
    forged = forger.sign_value(_record(owner, expiration_time=expires))
    answer = await attacker.store(**one, subkeys=[tag], values=[forged])
    assert list(answer.store_ok) == [False]

    victim = attacker.victim
    assert await victim.providers(REF.digest) == []
    assert victim.healthy
    member = await loopback_swarm.start("member")
    assert await member.announce_blob(REF)
    assert [peer for peer, _ in await victim.providers(REF.digest)] == [owner]


async def test_a_member_s_40_000_junk_records_leave_the_node_answering(
    attacker: Attacker, loopback_swarm: Any
) -> None:
    victim, batch, expires = attacker.victim, 128, now() + TTL_SECONDS
    honest = await loopback_swarm.start("honest")
    assert await honest.announce_blob(REF)
    validator = _validator(loopback_swarm, "member")
    owner = loopback_swarm.identity("member").peer_id
    forged_owner = loopback_swarm.identity("forged").peer_id
    facts = {"expiration_time": expires}
    signed = [
        _signed(validator, _record(owner, key=_key(number), **facts))
        for number in range(MAX_KEYS_PER_OWNER + batch)
    ]
    # Beyond the limit what it signs does not matter any more; nor what it says of somebody else.
    foreign = MSGPackSerializer.dumps(forged_owner)
    junk = [
        DHTRecord(_key(number), foreign if number % 2 else one.subkey, one.value, expires)
        for number in range(len(signed), 40_000)
        for one in (signed[number % len(signed)],)
    ]
    records = signed + junk

    async def send() -> int:
        stored = 0
        for start in range(0, len(records), batch):
            part = records[start : start + batch]
            answer = await attacker.store(
                keys=[one.key for one in part],
                subkeys=[one.subkey for one in part],
                values=[one.value for one in part],
                expiration_time=[one.expiration_time for one in part],
                in_cache=[False] * len(part),
            )
            stored += sum(answer.store_ok)
        return stored

    flood = asyncio.create_task(send())
    waits, loop = [], asyncio.get_running_loop()
    while not flood.done():
        asked_at = loop.time()
        for peer in (victim, honest):
            assert [who for who, _ in await peer.providers(REF.digest)] == [honest.peer_id]
        waits.append(loop.time() - asked_at)
        await asyncio.sleep(0.05)
    assert await flood == MAX_KEYS_PER_OWNER
    assert max(waits) < 5.0, waits
    storage = victim._watchdog._daemon._node.protocol.storage
    assert len(storage) <= MAX_KEYS_PER_OWNER + 1
    assert (victim.healthy, victim.restarts) == (True, 0)


async def test_what_a_stock_node_serves_of_its_own_is_not_believed(
    attacker: Attacker, loopback_swarm: Any
) -> None:
    key = provider_key(REF.digest)
    undecodable = DHTID.generate(source=key)
    attacker.node.protocol.storage.store(undecodable, b"\xc1", now() + 60)
    assert await attacker.victim.providers(REF.digest) == []
    for value, owner in ((b"\xc1", "x"), (MSGPackSerializer.dumps({"m": [], "n": 1}), "y")):
        attacker.node.protocol.storage.store_subkey(undecodable, owner, value, now() + 90)
    assert await attacker.victim.providers(REF.digest) == []
    member = await loopback_swarm.start("member")
    assert await member.announce_blob(REF)
    assert [peer for peer, _ in await attacker.victim.providers(REF.digest)] == [member.peer_id]


async def test_how_long_a_stock_node_says_its_answer_is_does_not_end_a_search(
    attacker: Attacker, loopback_swarm: Any
) -> None:
    member = await loopback_swarm.start("member")
    asker = await loopback_swarm.start("asker")
    assert await member.announce_blob(REF)
    held: Any = DictionaryDHTValue()
    held.frozen, held.maxsize = True, "long"
    key = DHTID.generate(source=provider_key(REF.digest))
    attacker.node.protocol.storage.store(key, held, now() + MAX_TTL_SECONDS)
    assert attacker.node.protocol.storage.get(key).value is held
    assert [peer for peer, _ in await asker.providers(REF.digest)] == [member.peer_id]
