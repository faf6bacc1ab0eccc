"""`hdee-worker install-service`: what systemd and launchd are told, and what they cannot hold."""

import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from worker.service import launchd_plist, quote, service_name, systemd_unit
from worker.settings import BadSetting

URL = "https://hdee.example.org:8700"


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home and a configuration folder of its own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("--threads", "--threads"),
        (URL, URL),
        ("", '""'),
        ("two words", '"two words"'),
        ("50%", '"50%%"'),
        ('say "no"', '"say \\"no\\""'),
        ("back\\slash", '"back\\\\slash"'),
        (";", '";"'),
        ("für", '"für"'),
    ],
)
def test_a_word_stays_one_word(word, written):
    assert quote(word) == written


def test_arguments_are_no_variables_and_the_program_is_taken_as_it_is():
    unit = systemd_unit(["/opt/$x/python", "$HOME", "a${b}"], about=URL)
    assert 'ExecStart="/opt/$x/python" "$$HOME" "a$${b}"\n' in unit


@pytest.mark.parametrize("word", ["two\nlines", "bell\x07", "nul\x00", "tab\t"])
def test_what_is_no_line_of_text_is_refused(word):
    with pytest.raises(BadSetting, match="expected no line breaks"):
        systemd_unit(["/usr/bin/python3", word], about=URL)
    with pytest.raises(BadSetting, match="expected no line breaks"):
        launchd_plist(["/usr/bin/python3", word], label="org.hdee", log=Path("/tmp/log"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "hdee-worker-hdee.example.org-8700"),
        ("anna's box", "hdee-worker-anna-s-box"),
        ("///", "hdee-worker-worker"),
        ("x" * 300, f"hdee-worker-{'x' * 60}"),
    ],
)
def test_a_service_has_a_name_that_files_and_systemd_can_bear(name, expected):
    assert service_name(URL, name) == expected


def test_the_agent_of_a_mac_keeps_every_word_and_ends_in_good_order():
    words = ["/usr/bin/python3", "hdee-worker", "join", URL, "--name", 'a "b" & <c>']
    parsed = plistlib.loads(launchd_plist(words, label="org.hdee", log=Path("/tmp/log")))
    assert parsed["ProgramArguments"] == words
    assert parsed["ExitTimeOut"] >= 60


def test_installing_writes_a_unit_that_systemd_takes_and_says_what_to_do(run, home):
    code, out, err = run(
        *("install-service", URL, "--name", "anna 50% $x", "--memory", "2GB"),
        *("--folder", home / "a folder"),
    )
    assert (code, err) == (0, "")
    unit = home / "config" / "systemd" / "user" / "hdee-worker-anna-50-x.service"
    assert f"wrote {unit}" in out
    for words in ("enable --now hdee-worker-anna-50-x", "journalctl --user -u", "rm "):
        assert words in out
    text = unit.read_text()
    (starts,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    assert starts.startswith(f"ExecStart={Path(sys.executable).absolute()} /")
    assert starts.endswith(f'join {URL} --name "anna 50%% $$x" --memory 2GB --folder '
                           f'"{home}/a folder" --yes')  # fmt: skip
    assert unit.stat().st_mode & 0o777 == 0o600
    analyze = shutil.which("systemd-analyze")
    if analyze is not None:
        seen = subprocess.run(
            [analyze, "verify", "--user", "--man=no", str(unit)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            # Without a folder for sockets it looks at nothing.
            env={**os.environ, "XDG_RUNTIME_DIR": str(home)},
        )
        assert (seen.returncode, seen.stderr) == (0, "")


def test_printing_writes_no_file(run, home):
    code, out, err = run("install-service", URL, "--print")
    assert (code, err) == (0, "")
    assert out.startswith("# Written by `hdee-worker install-service`")
    assert f"--folder {home}/home/.local/share/hdee/hdee.example.org_8700 --yes" in out
    assert not (home / "config").exists()
    assert not (home / "home").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--memory", "lots"), "--memory 'lots'"),
        (("--no-such-flag",), "No such option"),
        (("--http-only", "--announce", "a:1"), "--announce with --http-only"),
        (("--name", "a\nb"), "expected no line breaks"),
    ],
)
def test_flags_that_make_no_sense_to_join_make_no_service(run, home, flags, words):
    code, out, err = run("install-service", URL, *flags)
    assert (code, out) == (2, "")
    assert words in err
    assert not (home / "config").exists()


def test_a_relative_folder_is_the_one_meant_here(run, home, monkeypatch):
    monkeypatch.chdir(home)
    code, out, _ = run("install-service", URL, "--folder", "mine", "--print")
    assert code == 0
    assert f"--folder {home}/mine --yes" in out


@pytest.mark.parametrize("flag", [("--offer-domain", "mine=texts"), ("--offer-domain=mine=texts",)])
def test_text_at_a_relative_path_is_the_one_meant_here(run, home, monkeypatch, flag):
    (home / "texts").mkdir()
    monkeypatch.chdir(home)
    code, out, _ = run("install-service", URL, *flag, "--print")
    assert code == 0
    assert f"mine={home}/texts --folder" in out


def test_a_place_that_cannot_be_written_is_named(run, home):
    (home / "config").write_text("")
    code, _, err = run("install-service", URL)
    assert code == 1
    assert "--print writes the file to standard output" in err
