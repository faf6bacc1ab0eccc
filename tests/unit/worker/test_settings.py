"""Flags are checked before anything starts."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.exchange.rates import SLOWEST_RATE
from shared.maddrs import tcp_address
from worker.settings import (
    MAX_STAY_SECONDS,
    BadSetting,
    JoinSettings,
    default_folder,
    parse_announce,
    parse_bytes,
    parse_checkpoint_every,
    parse_duration,
    parse_listen,
    parse_rate,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("700MB", 700_000_000), ("1.5 GB", 1_500_000_000), ("2g", 2_000_000_000), ("4096", 4096)],
)
def test_sizes_are_read_with_their_unit(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "many", "-1GB", "1.5.5MB", "12 parsecs", "B", "nan"])
def test_a_size_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(BadSetting, match="700MB"):
        parse_bytes(text)


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_bad_setting(text):
    with contextlib.suppress(BadSetting):
        assert parse_bytes(text) >= 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8h", 28_800), ("90m", 5400), ("1h30m", 5400), ("2 d", 172_800), ("45S", 45), ("1.5h", 5400)],
)
def test_a_stay_is_read_with_its_units(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "h", "-8h", "8h!", "8 hours", "0h", "0.5s", "1e9h"])
def test_a_stay_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(BadSetting, match="such as 8h, 90m"):
        parse_duration(text)


def test_the_local_cadence_is_read_with_its_unit():
    assert parse_checkpoint_every("30s") == 30.0


@pytest.mark.parametrize("text", ["", "30", "0.5s", "2h", "often"])
def test_a_local_cadence_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(BadSetting, match=r"--checkpoint-every .* such as 30s or 2m"):
        parse_checkpoint_every(text)


@given(st.text("0123456789.dhms ", max_size=30))
def test_any_text_is_a_stay_or_a_bad_setting(text):
    with contextlib.suppress(BadSetting):
        assert 1.0 <= parse_duration(text) <= MAX_STAY_SECONDS


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost:1", "https://a.example"])
def test_loopback_and_https_need_no_flag(url, tmp_path):
    assert JoinSettings(url=url, folder=tmp_path).url == url


def test_plain_http_to_another_machine_needs_insecure(tmp_path):
    with pytest.raises(BadSetting, match="--insecure"):
        JoinSettings(url="http://10.1.2.3:8700", folder=tmp_path)
    assert JoinSettings(url="http://10.1.2.3:8700", folder=tmp_path, insecure=True).insecure


@pytest.mark.parametrize("url", ["", "ftp://x", "localhost:8700", "http://"])
def test_an_address_that_is_none_is_refused_with_an_example(url, tmp_path):
    with pytest.raises(BadSetting, match="http://host:port"):
        JoinSettings(url=url, folder=tmp_path)


def test_no_threads_at_all_are_refused(tmp_path):
    with pytest.raises(BadSetting, match="--threads 0"):
        JoinSettings(url="http://127.0.0.1:1", folder=tmp_path, num_threads=0)


def test_each_coordinator_has_its_own_folder():
    first, second = default_folder("http://127.0.0.1:1"), default_folder("http://127.0.0.1:2")
    assert first != second
    assert Path.home() in first.parents


@pytest.mark.parametrize(
    ("text", "maddr"),
    [
        ("203.0.113.7:4001", "/ip4/203.0.113.7/tcp/4001"),
        ("[2001:db8::7]:4001", "/ip6/2001:db8::7/tcp/4001"),
        ("[::ffff:203.0.113.7]:4001", "/ip4/203.0.113.7/tcp/4001"),
        ("my.example.org:65535", "/dns/my.example.org/tcp/65535"),
    ],
)
def test_an_address_to_announce_becomes_a_multiaddress(text, maddr):
    assert parse_announce(text) == maddr


@pytest.mark.parametrize(
    "text",
    [
        *("", "4001", "203.0.113.7", "203.0.113.7:", "203.0.113.7:0", "203.0.113.7:65536", ":4001"),
        *("2001:db8::7:4001", "[203.0.113.7]:4001", "0.0.0.0:4001", "300.1.1.1:4001", "a b:4001"),
        *("/ip4/203.0.113.7/tcp/4001", "my.example.org:http", "a/tcp/1/p2p/x:4001"),
    ],
)
def test_an_address_that_nobody_can_dial_is_refused_with_an_example(text):
    with pytest.raises(BadSetting, match=r"--announce .* such as 203\.0\.113\.7:4001"):
        parse_announce(text)


@given(st.text(max_size=40))
def test_any_text_is_an_address_to_announce_or_a_bad_setting(text):
    with contextlib.suppress(BadSetting):
        assert tcp_address(parse_announce(text)).port


@pytest.mark.parametrize("text", ["/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/4001", "/ip4/10.0.0.9/tcp/1"])
def test_an_address_to_listen_at_is_taken_as_it_is(text):
    assert parse_listen(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "4001", "0.0.0.0:4001", "/ip4/0.0.0.0", "/ip4/0.0.0.0/udp/4001/quic-v1", "/dns/a/tcp/1"],
)
def test_an_address_that_no_peer_can_listen_at_is_refused_with_an_example(text):
    with pytest.raises(BadSetting, match=r"--listen .* such as /ip4/0\.0\.0\.0/tcp/4001"):
        parse_listen(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("2MB", 2e6), ("500 KB/s", 5e5), ("1.5GB", 1.5e9), ("40000", 4e4)]
)
def test_a_rate_is_bytes_a_second(text, expected):
    assert parse_rate("--upload", text) == expected


@pytest.mark.parametrize("text", ["", "2", "0", "-2MB", "fast", "2MB/h", "9KB"])
def test_a_rate_that_is_none_or_too_low_for_any_transfer_is_refused_by_its_flag(text):
    with pytest.raises(BadSetting, match=r"--download .* such as 2MB; at least 33KB"):
        parse_rate("--download", text)


@given(st.text("0123456789.KMGTB/s ", max_size=40))
def test_any_text_is_a_rate_or_a_bad_setting(text):
    with contextlib.suppress(BadSetting):
        assert parse_rate("--upload", text) >= SLOWEST_RATE


def test_without_libp2p_there_is_nothing_to_announce(tmp_path):
    with pytest.raises(BadSetting, match="--announce with --http-only"):
        JoinSettings(
            url="http://127.0.0.1:1", folder=tmp_path, http_only=True, announce=("/dns/a/tcp/1",)
        )
