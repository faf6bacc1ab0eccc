"""`hdee-worker` as it is typed: flags become settings, or words that name the flag."""

from pathlib import Path

import pytest

from worker.settings import JoinSettings

URL = "http://127.0.0.1:1"


def test_flags_of_join_become_settings(run, joined, tmp_path):
    code, _, _ = run(
        *("join", URL, "--folder", tmp_path, "--name", "anna", "--memory", "2GB"),
        *("--listen", "/ip4/0.0.0.0/tcp/4001", "--listen", "/ip6/::/tcp/4001"),
        *("--announce", "my.example.org:4001", "--announce", "[2001:db8::7]:5001"),
        *("--upload", "2MB", "--download", "10MB/s", "--disk", "20GB"),
    )
    assert code == 0
    assert joined == [
        JoinSettings(
            url=URL,
            folder=Path(tmp_path),
            name="anna",
            memory_bytes=2 * 10**9,
            listen=("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"),
            announce=("/dns/my.example.org/tcp/4001", "/ip6/2001:db8::7/tcp/5001"),
            upload_bytes_per_second=2e6,
            download_bytes_per_second=1e7,
            disk_bytes=20 * 10**9,
        )
    ]


def test_without_flags_nothing_is_capped_and_any_port_will_do(run, joined):
    assert run("join", URL)[0] == 0
    (settings,) = joined
    assert settings.listen == ("/ip4/0.0.0.0/tcp/0",)
    assert settings.announce == ()
    assert settings.upload_bytes_per_second is None
    assert settings.download_bytes_per_second is None
    assert settings.disk_bytes is None


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--upload", "2"),
        ("--download", "fast"),
        ("--disk", "0"),
        ("--announce", "203.0.113.7"),
        ("--listen", "/ip4/0.0.0.0/udp/4001/quic-v1"),
    ],
)
def test_a_flag_that_makes_no_sense_is_named_and_nothing_starts(run, joined, flag, value):
    code, out, err = run("join", URL, flag, value)
    assert (code, out, joined) == (2, "", [])
    assert err.startswith(f"hdee-worker: {flag} ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "flags", [("--announce", "4001"), ("--listen", "4001"), ("--announce", "a:1", "--http-only")]
)
def test_a_check_with_flags_that_make_no_sense_leaves_no_folder(run, tmp_path, flags):
    code, out, err = run("check", URL, "--folder", tmp_path / "worker", *flags)
    assert (code, out) == (2, "")
    assert flags[0] in err
    assert not (tmp_path / "worker").exists()


def test_no_more_addresses_than_a_record_has_room_for(run, joined):
    flags = [word for port in range(1, 6) for word in ("--announce", f"203.0.113.7:{port}")]
    code, _, err = run("join", URL, *flags)
    assert (code, joined) == (2, [])
    assert "--announce: 5 addresses, expected at most 4" in err


@pytest.mark.parametrize("verb", ["join", "check", "version", "can-join", "install-service"])
def test_every_verb_has_its_place(run, verb):
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert verb in out


@pytest.mark.parametrize("verb", ["join", "check", "can-join", "install-service"])
def test_help_teaches_with_an_example(run, verb):
    _, out, _ = run(verb, "--help")
    assert f"Example: hdee-worker {verb} https://hdee.example.org" in " ".join(out.split())


def test_the_blobs_of_a_folder_are_looked_after_here(run):
    code, out, _ = run("blobs", "--help")
    assert code == 0
    assert "verify" in out


def test_check_ends_with_what_it_found(run, tmp_path):
    code, out, _ = run("check", URL, "--folder", tmp_path / "worker")
    assert code == 3
    found = dict(reversed(line.split()[:2]) for line in out.splitlines() if line[0] != " ")
    assert (found["python"], found["folder"], found["coordinator"]) == ("ok", "ok", "failure")
