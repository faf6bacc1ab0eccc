"""`hdee-coordinator report` at the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.cli.report import commands_for
from coordinator.main import main
from tests.outcomes import Case, make_results, write_run

ROOT = Path(__file__).parents[4]
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
    assert call("init", tmp_path / "run")[0] == 0
    return tmp_path / "run" / "run.toml"


def test_a_report_lies_in_the_runs_folder_and_says_what_was_found(run_file: Path, call: Call):
    write_run(run_file.parent, make_results(Case(own=1, schemes=("MHo-IHo",), num_traces=0)))
    code, out, _ = call("report", run_file)
    assert code == 0
    assert "MHo-IHo is scored on 1 own and 2 held-out domains" in out
    folder = run_file.parent / "report"
    assert (folder / "index.html").read_text().startswith("<!DOCTYPE html>")
    numbers = json.loads((folder / "report.json").read_bytes())
    assert numbers["commands"][-1] == "hdee-coordinator report run.toml"
    assert all((folder / one["file"]).is_file() for one in numbers["figures"].values())


def test_programs_are_told_where_the_files_are(run_file: Path, call: Call, tmp_path: Path):
    write_run(run_file.parent, make_results(Case(own=1, schemes=("MHo-IHo",), num_traces=0)))
    code, out, _ = call("report", run_file, "--into", tmp_path / "there", "--format", "json")
    assert code == 0
    told = json.loads(out)
    assert told["page"] == str(tmp_path / "there" / "index.html")
    assert Path(told["report"]).is_file()
    assert all(Path(path).is_file() for path in told["figures"])


def test_an_unfinished_run_has_no_report_and_leaves_no_folder(run_file: Path, call: Call):
    code, _, err = call("report", run_file)
    assert code == 1
    assert "results.json is missing: the run is not finished" in err
    assert not (run_file.parent / "report").exists()


def test_a_folder_that_cannot_be_is_named(run_file: Path, call: Call, tmp_path: Path):
    write_run(run_file.parent, make_results(Case(own=1, schemes=("MHo-IHo",), num_traces=0)))
    (tmp_path / "file").write_text("")
    code, _, err = call("report", run_file, "--into", tmp_path / "file")
    assert code == 1
    assert f"{tmp_path / 'file'}: the report cannot be written" in err


def test_the_same_run_twice_is_no_replicate(run_file: Path, call: Call):
    code, _, err = call("report", run_file, run_file)
    assert code == 2
    assert "named more than once" in err


def test_commands_name_run_files_apart_and_nobodys_folders():
    folder = Path("/home/anna/a run")
    commands = commands_for([folder / "run.toml", folder / "replicates" / "2" / "run.toml"])
    assert commands == [
        "hdee-coordinator train-local run.toml",
        "hdee-coordinator train-local replicates/2/run.toml",
        "hdee-coordinator report run.toml replicates/2/run.toml",
    ]


def test_no_other_verb_waits_for_the_drawing_of_figures():
    code = (
        "import sys, coordinator.main;"
        "print({'matplotlib', 'jinja2', 'scipy'} & set(sys.modules) or 'none')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "none"
