"""`hdee-worker` in this process, for tests of its command line."""

import sys

import pytest

from worker import main as command
from worker.settings import JoinSettings


@pytest.fixture
def run(monkeypatch, capsys):
    """`hdee-worker ...` in this process: exit code, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hdee-worker", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            command.main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture
def joined(monkeypatch) -> list[JoinSettings]:
    """The settings that `join` would begin with."""
    found: list[JoinSettings] = []

    async def begin(settings: JoinSettings, _consent: object) -> int:
        found.append(settings)
        return 0

    monkeypatch.setattr(command, "_join", begin)
    monkeypatch.setattr(command, "_consent", lambda _settings, _yes: object())
    return found
