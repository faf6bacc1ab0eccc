"""A served run with work to do, and the operator's verbs as an operator types them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.main import main
from tests.integration.operating.served import Run, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Run]:
    made = Run(write_run(tmp_path_factory.mktemp("run")))
    made.prepare()
    made.serve()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def work(run) -> list[str]:
    return sorted(run.add_work(6))


@pytest.fixture
def call(monkeypatch, capsys, run):
    """`hdee-coordinator VERB RUN_FILE ...` in this process: exit code, output, errors."""

    def call(verb: str, *arguments: object, run_file: Path | None = None):
        argv = ["hdee-coordinator", *verb.split(), run_file or run.run_file, *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return call


@pytest.fixture
def told(call):
    """As `call --format json`, of a verb that succeeds: the value."""

    def told(verb: str, *arguments: object):
        code, out, err = call(verb, *arguments, "--format", "json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return told
