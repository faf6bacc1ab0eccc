"""Log lines: where they go, what they say, and that nothing is left open."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import logs


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    """The root logger without handlers, given back as it was."""
    logger = logging.getLogger()
    kept, level = logger.handlers[:], logger.level
    logger.handlers[:] = []
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.level = kept, level


def test_a_line_holds_level_logger_and_message_and_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "role.log"
    logs.configure(path=path)
    logging.getLogger("coordinator.network.serve").info("fetched %s", logs.facts(bytes=12))
    logs.configure(path=path)
    logging.getLogger("worker").warning("again")
    first, second = path.read_text().splitlines()
    assert first.endswith(" I coordinator.network.serve: fetched bytes=12")
    assert second.endswith(" W worker: again")


def test_without_a_path_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logging.getLogger("worker").error("broken")
    shown = capsys.readouterr()
    assert shown.err.endswith(" E worker: broken\n")
    assert shown.out == ""


def test_configuring_again_closes_the_file_and_doubles_no_line(
    tmp_path: Path, root: logging.Logger
) -> None:
    logs.configure(path=tmp_path / "one.log")
    [former] = root.handlers
    logs.configure(path=tmp_path / "two.log")
    logging.getLogger("worker").info("hello")
    assert isinstance(former, logging.FileHandler)
    assert former.stream is None
    assert (tmp_path / "one.log").read_text() == ""
    assert (tmp_path / "two.log").read_text().count("hello") == 1


def test_what_libraries_say_of_their_daily_work_is_left_out_and_ours_by_choice(
    tmp_path: Path,
) -> None:
    logs.configure(path=tmp_path / "log")
    logging.getLogger("worker").debug("detail")
    for noisy in ("httpx", "httpcore", "hivemind", "asyncio", "urllib3"):
        logging.getLogger(noisy).info("chatter")
    assert (tmp_path / "log").read_text() == ""
    logs.configure(path=tmp_path / "log", verbose=True)
    logging.getLogger("worker").debug("detail")
    assert "detail" in (tmp_path / "log").read_text()


def test_facts_cut_digests_and_round_floats_and_leave_the_rest() -> None:
    digest = "0123456789abcdef" * 4
    assert (
        logs.facts(digest=digest, seconds=1.23456789, step=7, name="anna", upper=digest.upper())
        == f"digest=0123456789ab seconds=1.235 step=7 name=anna upper={digest.upper()}"
    )
    assert logs.facts() == ""
