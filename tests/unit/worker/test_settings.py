"""Flags are checked before anything starts."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.settings import (
    MAX_STAY_SECONDS,
    BadSetting,
    JoinSettings,
    default_folder,
    parse_bytes,
    parse_duration,
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
