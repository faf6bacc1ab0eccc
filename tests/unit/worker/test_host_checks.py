"""What `hdee-worker check` finds of the system around it, on real sockets and folders."""

import resource
import socket

import pytest

from worker import host_checks
from worker.host_checks import (
    LOW_OPEN_FILES,
    MIN_OPEN_FILES,
    judge_open_files,
    judge_power,
    judge_proxies,
    problem_of_folder,
    problem_of_listening,
)

NO_LIMIT = resource.RLIM_INFINITY
URL = "https://hdee.example.org"


def test_a_port_on_which_somebody_listens_is_taken_and_free_again_afterwards():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        maddr = f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}"
        assert problem_of_listening(maddr) == f"{maddr}: another program listens there"
    assert problem_of_listening(maddr) is None
    assert problem_of_listening("/ip4/127.0.0.1/tcp/0") is None


def test_an_address_of_another_machine_is_none_to_listen_at():
    assert "no such address" in str(problem_of_listening("/ip4/192.0.2.1/tcp/0"))


def test_a_folder_on_a_disk_of_this_machine_does_all_that_is_asked(tmp_path):
    assert problem_of_folder(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def test_locks_that_do_not_hold_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(host_checks.fcntl, "flock", lambda *_: None)
    assert "locks do not hold" in problem_of_folder(tmp_path)


def test_a_folder_that_takes_no_file_is_named(tmp_path):
    assert str(tmp_path / "gone") in problem_of_folder(tmp_path / "gone")


@pytest.mark.parametrize(
    ("soft", "hard", "state", "fix"),
    [
        (NO_LIMIT, NO_LIMIT, "ok", ""),
        (LOW_OPEN_FILES, NO_LIMIT, "ok", ""),
        (256, NO_LIMIT, "warning", "ulimit -n 1024"),
        (256, 512, "warning", "administrator"),
        (MIN_OPEN_FILES - 1, 4096, "failure", "ulimit -n 1024"),
    ],
)
def test_few_open_files_are_told(soft, hard, state, fix):
    row = judge_open_files(soft, hard)
    assert row.state == state
    assert fix in row.fix
    assert bool(row.fix) == bool(fix)


@pytest.mark.parametrize(
    ("proxies", "url", "bypassed", "state"),
    [
        ({}, URL, False, "ok"),
        ({"https": "http://proxy:3128"}, URL, False, "warning"),
        ({"https": "http://proxy:3128"}, URL, True, "ok"),
        ({"http": "http://proxy:3128"}, URL, False, "ok"),
        ({"all": "http://proxy:3128"}, URL, False, "warning"),
        ({"http": "http://proxy:3128"}, "http://127.0.0.1:8700", False, "failure"),
    ],
)
def test_a_proxy_in_between_is_told(proxies, url, bypassed, state):
    row = judge_proxies(proxies, url=url, bypassed=bypassed)
    assert (row.state, bool(row.fix)) == (state, state != "ok")


def test_the_password_of_a_proxy_is_shown_to_nobody():
    row = judge_proxies({"all": "http://me:secret@proxy:3128"}, url=URL, bypassed=False)
    assert "secret" not in row.found + row.fix
    assert "http://proxy:3128" in row.found


@pytest.mark.parametrize(("plugged", "state"), [(None, "ok"), (True, "ok"), (False, "warning")])
def test_a_battery_in_use_is_a_warning(plugged, state):
    assert judge_power(plugged, percent=None if plugged is None else 80.0).state == state
