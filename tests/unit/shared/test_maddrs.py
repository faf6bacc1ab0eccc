"""Multiaddresses: what is let through is a TCP listener, and nothing else is."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.maddrs import NotTcp, is_name, plain_ip, tcp_address, tcp_maddr

PEER = "12D3KooWS3qNoTxRGuYoDCFBeuu1UpGN8vUk8kBCj3xrDG8VMLpf"


@pytest.mark.parametrize(
    ("maddr", "host", "port", "family"),
    [
        ("/ip4/203.0.113.7/tcp/4001", "203.0.113.7", 4001, 4),
        (f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER}", "203.0.113.7", 4001, 4),
        ("/ip6/2001:db8::7/tcp/1", "2001:db8::7", 1, 6),
        ("/dns/my.example.org/tcp/65535", "my.example.org", 65535, None),
        ("/dns4/my.example.org/tcp/80", "my.example.org", 80, 4),
        ("/dns6/localhost/tcp/80", "localhost", 80, 6),
        ("/ip4/0.0.0.0/tcp/0", "0.0.0.0", 0, 4),
    ],
)
def test_a_tcp_listener_is_taken_apart(maddr, host, port, family):
    address = tcp_address(maddr)
    assert (address.host, address.port, address.family) == (host, port, family)


@pytest.mark.parametrize(
    "maddr",
    [
        "",
        "/",
        "/ip4",
        "/ip4/203.0.113.7",
        "/ip4/203.0.113.7/tcp",
        "/ip4/203.0.113.7/tcp/",
        "/ip4/203.0.113.7/tcp/-1",
        "/ip4/203.0.113.7/tcp/65536",
        "/ip4/203.0.113.7/tcp/٤",
        "/ip4/203.0.113.7/tcp/80\n",
        "/ip4/203.0.113.7/tcp/80\nHost: x/tcp/80",
        "/ip4/203.0.113.7/udp/4001/quic-v1",
        "/ip4/203.0.113.7/tcp/4001/ws",
        f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER}/p2p-circuit",
        f"/p2p/{PEER}",
        "/ip4/2001:db8::7/tcp/1",
        "/ip6/203.0.113.7/tcp/1",
        "/ip4/300.0.113.7/tcp/1",
        "/dns/203.0.113.7/tcp/1",
        "/dns/ /tcp/1",
        "/dnsaddr/my.example.org/tcp/1",
        "/unix/run/secret.sock",
        "ip4/203.0.113.7/tcp/1",
    ],
)
def test_whatever_is_no_tcp_listener_is_refused_with_the_reason(maddr):
    with pytest.raises(NotTcp, match=r"^(begins|is reached|has no|goes on|names no)"):
        tcp_address(maddr)


@given(st.text() | st.from_regex(r"/(ip4|dns)/[^/]*/tcp/[^/]*(/.*)?", fullmatch=True))
def test_any_text_is_a_listener_or_refused(text):
    with contextlib.suppress(NotTcp):
        address = tcp_address(text)
        assert 0 <= address.port <= 65_535
        assert address.host.isprintable()
        assert "/" not in address.host


@given(st.ip_addresses().filter(lambda ip: ip.version == 4 or not ip.ipv4_mapped))
def test_an_address_that_is_put_together_is_taken_apart_to_the_same(ip):
    maddr = tcp_maddr(str(ip), 4001)
    assert tcp_address(maddr).ip == ip
    assert tcp_address(f"{maddr}/p2p/{PEER}").maddr == maddr


def test_an_ipv4_address_in_ipv6_clothes_is_an_ipv4_address():
    assert str(plain_ip("::ffff:203.0.113.7")) == "203.0.113.7"
    assert plain_ip("203.0.113.7:80") is None


@pytest.mark.parametrize("text", ["a", "a.b-c.example", "a.example.", "_dnsaddr.a.example", "a1"])
def test_what_can_be_looked_up_is_a_name(text):
    assert is_name(text)


@pytest.mark.parametrize(
    "text",
    ["", "10.1", "203.0.113.7", "-a", "a..b", "a" * 64, "a b", "ä.example", "a.example\n"],
)
def test_what_cannot_be_looked_up_is_no_name(text):
    assert not is_name(text)
