"""Folders with one and the same tiny run, for train-local as a real process."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from runs import Local, write_run


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Callable[[str], Local]]:
    """Makes folders with one and the same run."""
    made: list[Local] = []

    def make(name: str) -> Local:
        write_run(tmp_path / name)
        made.append(Local(tmp_path / name))
        return made[-1]

    yield make
    for one in made:
        one.end()
