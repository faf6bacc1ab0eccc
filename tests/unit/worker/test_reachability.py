"""What the coordinator found, judged: the state, what to announce, and words that help."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import Dialled, ReachabilityAnswer
from shared.maddrs import tcp_address
from worker.reachability import MAX_ANNOUNCED, MAX_SHOWN, UNTIL_THEN, judge, printable

PEER = "12D3KooWS3qNoTxRGuYoDCFBeuu1UpGN8vUk8kBCj3xrDG8VMLpf"
AT_HOME = (f"/ip4/192.168.1.5/tcp/4001/p2p/{PEER}", f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}")
IN_PUBLIC = (f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER}", f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}")


def told(
    outcome: str, *maddrs: str, observed: str = "203.0.113.7", detail: str = ""
) -> ReachabilityAnswer:
    dialled = [Dialled(maddr=maddr, outcome=outcome, detail=detail) for maddr in maddrs]
    return ReachabilityAnswer(observed=observed, dialled=tuple(dialled))


def test_a_worker_that_was_dialled_announces_where_it_was_seen_and_where_it_stands():
    found = judge(told("reachable", AT_HOME[0]), AT_HOME, ())
    assert found.state == "reachable"
    assert found.announce == ("/ip4/203.0.113.7/tcp/4001", "/ip4/192.168.1.5/tcp/4001")
    assert found.words == "others can dial this worker at port 4001 of 203.0.113.7"
    assert found.fix == ""


def test_what_its_owner_announces_is_announced_as_it_was_written():
    announce = ("/dns/my.example.org/tcp/4001",)
    found = judge(told("reachable", *announce), AT_HOME, announce)
    assert (found.state, found.announce) == ("reachable", announce)


@pytest.mark.parametrize("outcome", ["refused", "timed_out", "no_route", "not_libp2p"])
def test_a_worker_that_nobody_can_dial_announces_nothing_and_hears_what_to_do(outcome):
    found = judge(told(outcome, AT_HOME[0]), AT_HOME, ())
    assert (found.state, found.announce) == ("unreachable", ())
    assert "port 4001 of 203.0.113.7" in found.words
    assert "forward TCP port 4001" in found.fix
    assert "--listen /ip4/0.0.0.0/tcp/4001" in found.fix
    assert "--announce 203.0.113.7:PORT" in found.fix
    assert found.fix.endswith(UNTIL_THEN)


def test_a_machine_with_the_address_itself_is_told_of_its_firewall_not_of_a_router():
    found = judge(told("timed_out", IN_PUBLIC[0]), IN_PUBLIC, ())
    assert "firewall admit TCP port 4001" in found.fix
    assert "router" not in found.fix


def test_a_worker_that_listens_for_itself_alone_is_told_so():
    listen = (f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}",)
    found = judge(told("refused", *listen), listen, ())
    assert found.fix.startswith(
        "it listens for this machine alone: start it with --listen /ip4/0.0.0.0/tcp/4001"
    )


def test_a_forwarded_port_that_does_not_arrive_is_named_with_both_its_ends():
    announce = ("/dns/my.example.org/tcp/5001",)
    found = judge(told("refused", *announce), AT_HOME, announce)
    assert "port 5001 of 203.0.113.7" in found.words
    assert "port 5001 of your router to port 4001 of this machine" in found.fix


def test_one_port_of_several_is_enough():
    listen = (*AT_HOME, f"/ip4/192.168.1.5/tcp/4002/p2p/{PEER}")
    dialled = (
        Dialled(maddr=AT_HOME[0], outcome="refused"),
        Dialled(maddr=listen[2], outcome="reachable"),
    )
    found = judge(ReachabilityAnswer(observed="203.0.113.7", dialled=dialled), listen, ())
    assert found.state == "reachable"
    assert found.announce[0] == "/ip4/203.0.113.7/tcp/4002"


def test_an_announced_address_that_is_not_the_observed_one_was_not_tested():
    announce = ("/ip4/198.51.100.1/tcp/4001",)
    for outcome in ("refused", "reachable"):
        found = judge(told(outcome, *announce), AT_HOME, announce)
        assert (found.state, found.announce) == ("unknown", announce)
        assert "198.51.100.1" in found.words
        assert "203.0.113.7" in found.words


def test_a_worker_seen_over_ipv6_that_listens_on_ipv4_alone_hears_of_the_other_version():
    why = "is no IPv6 address, as the one you ask from"
    found = judge(told("not_dialled", AT_HOME[0], observed="2001:db8::7", detail=why), AT_HOME, ())
    assert found.state == "unknown"
    assert why in found.words
    assert "--listen /ip6/::/tcp/4001" in found.fix


def test_an_ipv6_worker_is_told_how_ipv6_is_written():
    listen = (f"/ip6/fd00::5/tcp/4001/p2p/{PEER}",)
    found = judge(told("timed_out", *listen, observed="2001:db8::7"), listen, ())
    assert "--announce [2001:db8::7]:PORT" in found.fix


def test_a_swarm_on_one_machine_announces_loopback():
    listen = (f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}",)
    found = judge(told("reachable", *listen, observed="127.0.0.1"), listen, ())
    assert found.announce == ("/ip4/127.0.0.1/tcp/4001",)


def test_what_was_not_asked_for_proves_nothing():
    found = judge(told("reachable", "/ip4/203.0.113.7/tcp/22"), AT_HOME, ())
    assert found.state == "unknown"
    assert "/ip4/203.0.113.7/tcp/22" not in found.announce


def test_without_an_observed_address_nothing_is_known():
    found = judge(told("reachable", AT_HOME[0], observed="example.org"), AT_HOME, ())
    assert found.state == "unknown"
    assert found.announce == ("/ip4/192.168.1.5/tcp/4001",)


def test_an_announced_address_that_is_none_is_replaced_by_the_one_that_was_seen():
    nowhere, other = "/ip4/0.0.0.0/tcp/1", "/ip4/203.0.113.7/tcp/2"
    found = judge(told("reachable", nowhere), AT_HOME, (nowhere, other))
    assert found.state == "reachable"
    assert nowhere not in found.announce
    assert "/ip4/203.0.113.7/tcp/1" in found.announce


OUTCOMES = st.sampled_from(
    ["reachable", "refused", "timed_out", "no_route", "not_libp2p", "not_dialled"]
)
MADDRS = st.builds(
    "/{}/tcp/{}".format,
    st.sampled_from(["ip4/203.0.113.7", "ip4/10.0.0.9", "ip4/127.0.0.1", "ip4/0.0.0.0"])
    | st.sampled_from(["ip6/2001:db8::7", "ip6/::1", "dns/my.example.org", "unix/a"]),
    st.integers(0, 5),
)
DETAILS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
"""What a message may hold: no NUL, which a database does not take, and no half of a pair."""


@given(
    listen=st.lists(MADDRS, max_size=6),
    announce=st.lists(MADDRS, max_size=3),
    dialled=st.lists(
        st.builds(Dialled, maddr=MADDRS, outcome=OUTCOMES, detail=DETAILS), max_size=9
    ),
    observed=st.sampled_from(["203.0.113.7", "127.0.0.1", "::1", "2001:db8::7", "", "nowhere"]),
)
def test_every_answer_is_judged_and_only_what_can_be_dialled_is_announced(
    listen, announce, dialled, observed
):
    found = judge(ReachabilityAnswer(observed=observed, dialled=tuple(dialled)), listen, announce)
    assert len(found.announce) <= MAX_ANNOUNCED
    assert (found.announce == ()) or found.state != "unreachable"
    assert found.announce or found.state != "reachable"
    assert (found.words + found.fix).isprintable()
    for maddr in found.announce:
        address = tcp_address(maddr)
        assert address.port
        assert address.ip is None or not address.ip.is_unspecified


@given(st.text())
def test_what_a_stranger_wrote_is_one_short_line(text):
    assert printable(text).isprintable()
    assert len(printable(text)) <= MAX_SHOWN


def test_a_stranger_cannot_write_to_the_terminal_or_pretend_a_second_line():
    assert printable("ok\n\x1b[2Jreachable\r\u202eno") == "ok [2Jreachable no"
