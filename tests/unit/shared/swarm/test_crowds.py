"""How many records stand under one key, however many owners publish there."""

import random
from collections.abc import Iterator

import msgpack
import pytest
from hivemind.dht.node import Blacklist
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer
from hypothesis import given
from hypothesis import strategies as st

from protocol.records import MAX_RECORD_BYTES, TTL_SECONDS
from shared.swarm.crowds import MAX_LEFTOVERS, MAX_OWNERS
from shared.swarm.guards import RequestGuard, prepare_hivemind

prepare_hivemind()

KEY = DHTID(7)
ROUND_SECONDS = TTL_SECONDS // 3
NEVER = 1e12


class Time:
    """What hivemind's storages take for the time, in seconds."""

    now = 0.0


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    for module in ("utils.timed_storage", "dht.node"):
        monkeypatch.setattr(f"hivemind.{module}.get_dht_time", lambda: time.now)
    return time


def _owners(storage: DHTLocalStorage) -> set[str]:
    held = storage.get(KEY)
    return set() if held is None else {owner for owner, _ in held.value.items()}


def _answer(storage: DHTLocalStorage) -> bytes:
    return bytes(MSGPackSerializer.dumps(storage.get(KEY).value))


def _found(storages: list[DHTLocalStorage]) -> set[str]:
    """Whom a reader finds that asks every storage and puts the answers together."""
    first, *others = [MSGPackSerializer.loads(_answer(one)) for one in storages if _owners(one)]
    for other in others:
        for owner, record in other.items():
            first.store(owner, record.value, record.expiration_time)
    return {owner for owner, _ in first.items()}


@given(stores=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50)), max_size=60))
def test_who_is_new_is_in_and_takes_the_place_of_one_other_if_it_is_full(
    stores: list[tuple[int, int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.swarm.crowds.MAX_OWNERS", 4)
        crowd = DictionaryDHTValue()
        held: dict[int, float] = {}
        for owner, ahead in stores:
            before, expires_at = set(held), NEVER + ahead
            stored = crowd.store(owner, b"record", expires_at)
            assert stored == (expires_at > held.get(owner, 0.0))
            after = {one: entry.expiration_time for one, entry in crowd.items()}
            assert after[owner] == max(expires_at, held.get(owner, 0.0))
            gone = before - set(after)
            assert len(gone) == (len(before) == 4 and owner not in before)
            assert {**held, owner: after[owner]} == {**after, **{one: held[one] for one in gone}}
            held = after


def test_an_older_record_does_not_end_a_newer_one(time: Time) -> None:
    crowd = DictionaryDHTValue()
    assert crowd.store("owner", b"new", 300.0)
    assert not crowd.store("owner", b"old", 200.0)
    time.now = 250.0
    assert [(owner, entry.value) for owner, entry in crowd.items()] == [("owner", b"new")]


def test_records_that_were_replaced_leave_next_to_nothing_behind(time: Time) -> None:
    storage = DHTLocalStorage()
    for number in range(100 * MAX_OWNERS):
        owner = f"{number % (2 * MAX_OWNERS):052}"
        assert storage.store_subkey(KEY, owner, b"in turn", 300.0 + number)
    crowd = storage.get(KEY).value
    for number in range(100 * MAX_OWNERS):
        assert crowd.store("owner", b"renewed", 100.0 + number / 100)
    most = 2 * (MAX_OWNERS + 1) + MAX_LEFTOVERS
    assert len(crowd.expiration_heap) <= most
    assert len(storage.expiration_heap) <= most
    assert len(crowd) == MAX_OWNERS
    time.now = 250.0
    assert "owner" not in crowd
    assert len(crowd) == MAX_OWNERS - 1
    time.now = 300.0 + 100 * MAX_OWNERS
    assert not list(crowd.items())
    assert storage.get(KEY) is None


def test_peers_that_do_not_answer_are_still_avoided(time: Time) -> None:
    blacklist = Blacklist(base_time=5.0, backoff_rate=2.0)
    blacklist.register_failure("peer")
    assert "peer" in blacklist
    time.now = 6.0
    assert "peer" not in blacklist


async def _is_believed(answer: bytes) -> bool:
    result = dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=answer, expiration_time=1.0)
    guard = RequestGuard(lambda: 0.0)
    return await guard.validate_response(dht_pb2.FindResponse(results=[result]), None)


async def test_the_largest_answer_is_one_that_is_believed() -> None:
    storage = DHTLocalStorage()
    for number in range(2 * MAX_OWNERS):
        storage.store_subkey(KEY, f"{number:052}", b"x" * MAX_RECORD_BYTES, NEVER)
    assert len(_owners(storage)) == MAX_OWNERS
    assert await _is_believed(_answer(storage))
    assert not await _is_believed(2 * _answer(storage))


class Crowd:
    """Peers that publish again and again at the five nodes next to the key."""

    def __init__(self, time: Time, random_: random.Random) -> None:
        self.time, self.random = time, random_
        self.replicas = [DHTLocalStorage() for _ in range(5)]

    def publish(self, owner: str) -> None:
        for replica in self.replicas:
            assert replica.store_subkey(KEY, owner, b"x" * 700, self.time.now + TTL_SECONDS)
            assert owner in (found := _owners(replica))
            assert len(found) <= MAX_OWNERS

    def publish_for_a_round(self, peers: list[str]) -> Iterator[str]:
        """Each of `peers` once, at any time within a round; yields who just did."""
        began = self.time.now
        for at, owner in sorted((self.random.uniform(0.0, ROUND_SECONDS), one) for one in peers):
            self.time.now = began + at
            self.publish(owner)
            yield owner
        self.time.now = began + ROUND_SECONDS


def test_two_thousand_peers_that_start_at_once_are_found_and_take_turns(
    time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_ = random.Random(20261123)
    monkeypatch.setattr("shared.swarm.crowds.random", random_)
    crowd, peers = Crowd(time, random_), [f"{number:052}" for number in range(2000)]
    met: set[str] = set()
    for owner in peers:
        crowd.publish(owner)
    for _ in range(5):
        for number, _ in enumerate(crowd.publish_for_a_round(peers)):
            if number % 100 == 0:
                met |= _found(crowd.replicas)
    # A fixed choice of peers would have to serve all the others.
    assert len(met) > len(peers) / 2
    few = peers[:40]
    for _ in range(4):
        assert set(crowd.publish_for_a_round(few)) == set(few)
    assert _found(crowd.replicas) == set(few)


def test_what_a_peer_says_of_the_length_of_its_answer_is_not_believed() -> None:
    records = [[f"{number:052}", b"x", NEVER + number] for number in range(3 * MAX_OWNERS)]
    for length, latest in (("long", "late"), (1, NEVER), (None, None), (-1, float("nan"))):
        raw = MSGPackSerializer.dumps([length, latest, records])
        found = DictionaryDHTValue.unpackb(raw)
        assert len(found) == MAX_OWNERS
        assert NEVER <= found.latest_expiration_time < NEVER + len(records)
        assert found.store("another", b"x", NEVER)
        assert "another" in found
        assert len(found) == MAX_OWNERS


def _decoded(raw: bytes) -> object:
    try:
        return MSGPackSerializer.loads(raw)
    except TypeError:
        return None


@pytest.mark.parametrize("seed", range(20))
def test_what_can_be_decoded_once_can_be_decoded_again(seed: int) -> None:
    """A validator decodes a payload to see that its readers can."""
    records: list[list[object]] = [[number, b"", seed] for number in range(2 * MAX_OWNERS)]
    records[seed][0] = ["no key of a dictionary"]
    raw = msgpack.packb(msgpack.ExtType(0x50, msgpack.packb([None, 0.0, records])))
    first, *others = [_decoded(raw) for _ in range(20)]
    assert [repr(other) for other in others] == [repr(first)] * len(others)
