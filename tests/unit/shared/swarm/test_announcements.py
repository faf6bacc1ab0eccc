"""What a peer says in the DHT, and what it believes there."""

import logging

import pytest

from protocol.records import HeadRecord, ProviderRecord
from shared.swarm.announcements import Announcements, believable

HEAD = HeadRecord(s=40, h="ab" * 32, n=1234, f=3)


def test_what_was_said_longest_ago_gives_way_and_that_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = Announcements(max_keys=2)
    with caplog.at_level(logging.INFO):
        for key in ("a", "b", "a", "c", "d"):
            said.put(key, HEAD)
    assert said.keys == ("c", "d")
    assert [record.getMessage() for record in caplog.records] == [
        "announcing b no longer: a peer has at most 2 records"
    ]


def test_a_provider_names_at_most_four_addresses_of_now() -> None:
    said = Announcements(max_keys=2)
    said.put("a", ProviderRecord(m=(), n=7))
    maddrs = [f"/ip4/192.0.2.{number}/tcp/1" for number in range(6)]
    assert said.payload("a", maddrs) == {"m": maddrs[:4], "n": 7}
    said.put("b", HEAD)
    assert said.payload("b", maddrs) == HEAD.model_dump(mode="json")
    said.drop("a")
    assert said.payload("a", maddrs) is None


def test_only_what_is_well_formed_and_still_holds_is_believed() -> None:
    good = HEAD.model_dump(mode="json")
    found: dict[object, tuple[object, float]] = {
        "owner": (good, 11.0),
        "late": (good, 10.0),
        "odd": ({"s": -1}, 11.0),
        "none": (None, 11.0),
        7: (good, 11.0),
    }
    assert believable(found, HeadRecord, now=10.0) == {"owner": HEAD}
