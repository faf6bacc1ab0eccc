"""The operator's command line: exit codes, messages, and JSON for programs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.folders import RunFolders
from coordinator.main import main
from protocol import PROTOCOL_VERSION
from protocol.views import ResultTable, TableRow

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`hdee-coordinator` in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hdee-coordinator", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return call


@pytest.fixture
def run_file(tmp_path: Path, call: Call) -> Path:
    """What `init` makes."""
    code, out, _ = call("init", tmp_path / "run")
    assert code == 0
    assert f"next: read {tmp_path / 'run' / 'run.toml'}" in out
    return tmp_path / "run" / "run.toml"


def test_version_names_software_and_protocol(call: Call) -> None:
    assert call("version") == (0, f"hdee-coordinator 0.1.0, protocol {PROTOCOL_VERSION}\n", "")
    code, out, _ = call("version", "--format", "json")
    assert (code, json.loads(out)) == (0, {"software": "0.1.0", "protocol": PROTOCOL_VERSION})


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("check",),
        ("check", "run.toml", "--format", "xml"),
        ("serve", "run.toml", "--role", "janitor"),
        ("version", "--loud"),
        ("status",),
    ],
)
def test_wrong_usage_ends_with_2_and_shows_where_help_is(
    call: Call, arguments: tuple[str, ...]
) -> None:
    code, out, err = call(*arguments)
    assert code == 2
    assert out == ""
    assert "--help" in err


def test_help_shows_defaults_that_stand_in_brackets(call: Call) -> None:
    code, out, _ = call("serve", "--help")
    assert code == 0
    assert "[state/ledger.sqlite]" in out


@pytest.mark.parametrize("command", ["check", "serve", "score"])
def test_a_run_file_that_is_missing_or_wrong_ends_with_2_and_is_named(
    call: Call, command: str, tmp_path: Path
) -> None:
    missing, wrong = tmp_path / "missing.toml", tmp_path / "wrong.toml"
    wrong.write_text("[run]\nname = 3\n")
    for path in (missing, wrong):
        code, out, err = call(command, path)
        assert (code, out) == (2, "")
        assert err.startswith(f"hdee-coordinator: {path}: ")


def test_check_accepts_what_init_makes(call: Call, run_file: Path) -> None:
    code, out, _ = call("check", run_file)
    assert code == 0
    assert out.startswith(f"{run_file} is right: run run, domains ")
    code, out, _ = call("check", run_file, "--format", "json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["run"], facts["folder"]) == ("run", str(run_file.parent))
    assert facts["prepared"] is False
    assert facts["domains"] == sorted(facts["domains"])


@pytest.mark.parametrize("command", ["check", "serve"])
def test_missing_keys_end_with_1_and_the_command_that_makes_them(
    call: Call, run_file: Path, command: str
) -> None:
    key = RunFolders(run_file.parent).coordinator_key
    key.unlink()
    code, out, err = call(command, run_file)
    assert (code, out) == (1, "")
    assert str(key) in err
    assert "hdee-coordinator init" in err


def test_init_touches_nothing_that_is_there(call: Call, run_file: Path) -> None:
    key = RunFolders(run_file.parent).coordinator_key.read_bytes()
    code, _, err = call("init", run_file.parent)
    assert code == 1
    assert "already there" in err
    assert RunFolders(run_file.parent).coordinator_key.read_bytes() == key


def test_serve_refuses_plain_http_beyond_this_machine_before_it_starts_anything(
    call: Call, run_file: Path
) -> None:
    text = run_file.read_text().replace('api_host = "127.0.0.1"', 'api_host = "0.0.0.0"')
    assert "0.0.0.0" in text
    run_file.write_text(text)
    code, _, err = call("serve", run_file)
    assert code == 1
    assert "--insecure" in err
    assert not RunFolders(run_file.parent).state.exists()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "no url", "gopher://host", "http://[::1", "http://host:port"]
)
def test_a_coordinator_that_cannot_be_reached_ends_with_3(call: Call, url: str) -> None:
    code, out, err = call("status", url)
    assert (code, out) == (3, "")
    assert err.startswith(f"hdee-coordinator: {url} gives no status: ")
    assert "is it served" in err


def test_score_prints_the_table_or_json_and_ends_with_1_before_there_is_one(
    call: Call, run_file: Path
) -> None:
    results = RunFolders(run_file.parent).state / "results.json"
    code, _, err = call("score", run_file)
    assert code == 1
    assert f"{results} is missing: the run is not finished" in err
    row = TableRow(domain="python", perplexity={"seed M": 7.25}, bits_per_byte={"seed M": 1.5})
    table = ResultTable(columns=("seed M",), rows=(row,))
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps({"table": table.model_dump(mode="json"), "more": 1}))
    code, out, _ = call("score", run_file)
    assert code == 0
    assert "7.25" in out
    code, out, _ = call("score", run_file, "--format", "json")
    assert json.loads(out)["more"] == 1


def test_check_tells_the_invite_of_a_closed_run_and_none_of_an_open_one(
    call: Call, run_file: Path
) -> None:
    _, out, _ = call("check", run_file, "--format", "json")
    assert json.loads(out)["invite"] is None
    run_file.write_text(run_file.read_text().replace('enrolment = "open"', 'enrolment = "invite"'))
    _, out, _ = call("check", run_file, "--format", "json")
    invite = json.loads(out)["invite"]
    code, shown, _ = call("check", run_file)
    assert code == 0
    assert f"--invite {invite}" in shown
