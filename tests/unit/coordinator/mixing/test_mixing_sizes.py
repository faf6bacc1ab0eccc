"""Widths by preset, as they are typed for."""

import json

import pytest
from typer.testing import CliRunner

from coordinator.cli.errors import WrongUsage
from coordinator.main import app


def sizes(*arguments: str) -> str:
    result = CliRunner().invoke(app, ("mix", "sizes", *arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_widths_have_their_mean_and_their_proportions() -> None:
    said = json.loads(
        sizes("--preset", "geometric", "--mean", "240", "--count", "4", "--format", "json")
    )
    assert said["widths"] == [64, 128, 256, 512]
    assert said["ffn_parameters"] is None
    hybrid = json.loads(
        sizes("--preset", "hybrid", "--mean", "192", "--count", "4", "--format", "json")
    )
    assert hybrid["widths"] == [96, 96, 192, 384]


def test_three_widths_are_said_as_a_run_file_says_them() -> None:
    shown = sizes("--preset", "arithmetic", "--mean", "128", "--multiple", "8")
    assert shown.endswith("[widths]\nS = 72\nM = 128\nL = 184\n")
    assert "[widths]" not in sizes("--mean", "240", "--count", "4")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--mean"),
        (("--preset", "hybrid", "--mean", "64"), "at least 4 for 'hybrid'"),
        (("--mean", "1", "--count", "9"), "too little"),
    ],
)
def test_what_does_not_go_together_is_named(arguments: tuple[str, ...], words: str) -> None:
    error = CliRunner().invoke(app, ("mix", "sizes", *arguments)).exception
    assert isinstance(error, WrongUsage)
    assert words in str(error)
