"""Bootstrap peers on disk: bounded, of one run, and never in the way."""

from pathlib import Path

import pytest

from worker.bootstrap import KEPT_SECONDS, MAX_KNOWN, Bootstrap, load_bootstrap, save_bootstrap

COORDINATOR = "12D3KooW" + "A" * 44
OWN = "12D3KooW" + "B" * 44
EMPTY = Bootstrap(coordinator=COORDINATOR, run="demo")


def _maddr(number: int, peer: str = COORDINATOR) -> str:
    return f"/ip4/192.0.2.{number}/tcp/4001/p2p/{peer}"


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.json"
    assert load_bootstrap(path, coordinator=COORDINATOR, run="demo") == EMPTY
    known = EMPTY.learn([_maddr(1), _maddr(2)], own=OWN, now=5.0)
    save_bootstrap(path, known)
    assert load_bootstrap(path, coordinator=COORDINATOR, run="demo") == known
    assert known.maddrs == (_maddr(1), _maddr(2))


@pytest.mark.parametrize("of", [{"coordinator": OWN, "run": "demo"}, {"run": "other"}])
def test_another_run_s_peers_are_not_ours(tmp_path: Path, of: dict[str, str]) -> None:
    save_bootstrap(tmp_path / "b.json", EMPTY.learn([_maddr(1)], own=OWN, now=5.0))
    asked = {"coordinator": COORDINATOR} | of
    assert load_bootstrap(tmp_path / "b.json", **asked).maddrs == ()


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe", b"[]", b'{"coordinator": "x"}', b"9" * 100_000]
)
def test_a_damaged_file_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    path = tmp_path / "bootstrap.json"
    path.write_bytes(damage)
    assert load_bootstrap(path, coordinator=COORDINATOR, run="demo") == EMPTY
    assert str(path) in caplog.text


def test_a_folder_that_cannot_be_written_is_told_and_nothing_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_bootstrap(tmp_path / "nowhere" / "bootstrap.json", EMPTY)
    assert "cannot be written" in caplog.text


def test_the_newest_stand_first_and_the_oldest_go() -> None:
    known = EMPTY
    for number in range(MAX_KNOWN + 3):
        known = known.learn([_maddr(number)], own=OWN, now=float(number))
    assert known.maddrs == tuple(_maddr(number) for number in range(MAX_KNOWN + 2, 2, -1))
    later = known.learn([], own=OWN, now=KEPT_SECONDS + 5.5)
    assert later.maddrs == tuple(_maddr(number) for number in range(MAX_KNOWN + 2, 5, -1))


def test_nobody_is_its_own_bootstrap_peer_and_no_news_change_nothing() -> None:
    known = EMPTY.learn([_maddr(1, OWN), _maddr(2)], own=OWN, now=1e9)
    assert known.maddrs == (_maddr(2),)
    assert known.learn([_maddr(2)], own=OWN, now=1e9 + 600) == known
    assert known.learn([_maddr(2)], own=OWN, now=1e9 + 90_000) != known
