"""`hdee-worker` as a process: its exit codes, and what signals do to it and to its trainer."""

import asyncio
import http.server
import json
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.ledger import queries
from protocol import PROTOCOL_VERSION
from worker.errors import CoordinatorUnreachable, NotTheSameCoordinator
from worker.folder import WorkerFolder
from worker.main import main

pytestmark = pytest.mark.timeout(300)
"""Trainers and workers take seconds to load torch, more where others compute as well."""

OTHER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"


@pytest.fixture
def plain_server(tmp_path: Path) -> Iterator[str]:
    """The URL of a web server that is no coordinator: it answers 404 in HTML."""
    handler = type("Quiet", (http.server.BaseHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_the_exit_code_and_the_last_line_say_why_nothing_was_done(
    roles: Any,
    commands: Any,
    volunteers: Any,
    tools: Any,
    plain_server: str,
    free_ports: Any,
    tmp_path: Path,
) -> None:
    [port] = free_ports(1)
    nobody = commands("nobody", f"http://127.0.0.1:{port}")
    held = WorkerFolder(tmp_path / "held")
    second = commands("held", roles.url)
    (tmp_path / "pinned").mkdir()
    (tmp_path / "pinned" / "coordinators.json").write_text(json.dumps({roles.url: OTHER}))
    with pytest.raises(NotTheSameCoordinator, match=f"but it was {OTHER} when") as refused:
        await volunteers("pinned").task
    assert refused.value.exit_code == 4
    with pytest.raises(CoordinatorUnreachable, match="is this an HDEE coordinator") as unreachable:
        await volunteers("plain", url=plain_server).task
    assert unreachable.value.exit_code == 3
    for command, code, words in (
        (second, 1, "another hdee-worker (process "),
        (nobody, 3, f"http://127.0.0.1:{port}: ConnectError"),
    ):
        await tools.until("it ended", lambda command=command: command.process.poll() is not None)
        last = command.said.splitlines()[-1]
        assert command.process.returncode == code, command.said
        assert last.startswith("hdee-worker: ")
        assert words in last
        assert "Traceback" not in command.said
    held.close()


async def test_a_stop_ends_the_search_for_a_coordinator(volunteers: Any, free_ports: Any) -> None:
    [port] = free_ports(1)
    lost = volunteers("lost", url=f"http://127.0.0.1:{port}")
    await asyncio.sleep(0)
    assert await lost.stop() == 0
    assert lost.said.lines == []


async def test_a_killed_worker_leaves_no_trainer_and_goes_on_and_a_stopped_one_hands_over(
    roles: Any, commands: Any, volunteers: Any, tools: Any, tmp_path: Path
) -> None:
    assignment = roles.open_assignment()
    first = commands("first", roles.url)
    await tools.until("a checkpoint", lambda: tools.steps_done(tmp_path / "first") > 0)
    [trainer] = tools.trainers(tmp_path)
    first.kill()
    with roles.ledger.begin() as connection:
        queries.extend_leases(connection, 60.0)
    await tools.until("the trainer is gone", lambda: trainer not in tools.trainers(tmp_path))
    reached = tools.steps_done(tmp_path / "first")

    again = commands("first", roles.url)
    await tools.until("it trains", lambda: tools.steps_done(tmp_path / "first") > reached)
    assert f"going on with {assignment} after a restart" in again.said
    log = (tmp_path / "first" / "worker.log").read_text()
    assert roles.row(assignment).standing.fencing == 1
    await tools.until("durable", lambda: roles.durable_step(assignment) > reached)
    again.process.send_signal(signal.SIGTERM)
    await tools.until("it ended", lambda: again.process.poll() is not None)
    assert again.process.returncode == 0, again.said
    assert "Traceback" not in again.said + log
    assert tools.trainers(tmp_path) == []
    assert "release:stopped" in roles.entries(assignment)
    handed_over = roles.durable_step(assignment)
    assert handed_over > reached
    assert not (tmp_path / "first" / "work" / assignment).exists(), "nothing is left on the disk"

    second = volunteers("second")
    await tools.until("it trains", lambda: second.said.step > 0)
    assert f"going on from durable step {handed_over} of" in second.said
    assert second.said.step > handed_over
    assert roles.row(assignment).standing.fencing == 2
    assert await second.stop() == 0


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`hdee-worker` in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hdee-worker", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return call


def test_version_names_software_and_protocol(call: Any) -> None:
    assert call("version") == (0, f"hdee-worker 0.1.0, protocol {PROTOCOL_VERSION}\n", "")
    code, out, _ = call("version", "--format", "json")
    assert (code, json.loads(out)) == (0, {"software": "0.1.0", "protocol": PROTOCOL_VERSION})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("join",), "Missing argument"),
        (("join", "http://127.0.0.1:1", "--threads", "two"), "--threads 'two': expected a number"),
        (("join", "host:1"), "expected http://host:port"),
        (("join", "http://192.0.2.1"), "plain http would show your token"),
        (("join", "http://127.0.0.1:1", "--threads", "0"), "--threads 0: expected at least 1"),
        (("join", "http://127.0.0.1:1", "--memory", "lots"), "--memory 'lots': expected a number"),
        (("join", "http://127.0.0.1:1", "--for", "8"), "--for '8': expected how long to stay"),
    ],
)
def test_wrong_usage_ends_with_2(call: Any, arguments: tuple[str, ...], words: str) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_a_cap_beyond_the_machine_ends_with_1_and_is_named(
    roles: Any, call: Any, tmp_path: Path
) -> None:
    code, _, err = call(
        "join", roles.url, "--folder", tmp_path / "anna", "--yes", "--threads", 4096
    )
    assert code == 1
    assert err.splitlines()[-1].startswith("hdee-worker: --threads 4096: expected from 1 to ")
