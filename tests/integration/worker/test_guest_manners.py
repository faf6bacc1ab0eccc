"""A worker that is a good guest: it pauses for its owner, keeps or gives back its lease, and no
process of it stays behind."""

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from coordinator.ledger import queries
from worker.manners.rules import Rules

pytestmark = pytest.mark.timeout(600)
"""Trainers and workers take seconds to load torch, more where others compute as well."""


def is_stopped(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() == psutil.STATUS_STOPPED


def make_old(path: Path) -> None:
    path.touch()
    os.utime(path, (1.0, 1.0))


async def test_a_paused_worker_keeps_its_lease_asks_for_nothing_and_goes_on(
    roles: Any, volunteers: Any, tools: Any, tmp_path: Path
) -> None:
    assignment = roles.open_assignment()
    anna = volunteers("anna")
    board, manners = anna.agent.board, anna.agent.manners
    await tools.until("training", lambda: anna.said.step > 0, seconds=200)
    [trainer] = tools.trainers(tmp_path)
    manners.pause()
    await tools.until("suspended", lambda: is_stopped(trainer))
    await tools.until("it says so", lambda: board.status.state == "paused")
    assert board.status.reason == "paused by its owner"
    before = roles.row(assignment).standing.expires_at
    await tools.until("beats", lambda: roles.row(assignment).standing.expires_at > before + 2)
    assert is_stopped(trainer)
    reached = anna.said.step

    manners.resume()
    await tools.until("training goes on", lambda: anna.said.step > reached)
    assert roles.row(assignment).standing.fencing == 1

    manners.pause()
    await tools.until("suspended again", lambda: is_stopped(trainer))
    other = roles.open_assignment()
    await tools.until("the lease is gone", lambda: "is gone" in anna.said)
    assert tools.trainers(tmp_path) == []

    def seen_at() -> float:
        with roles.ledger.read() as connection:
            return float(queries.find_worker(connection, anna.peer_id).seen_at)

    at = seen_at()
    await tools.until("it only beats", lambda: seen_at() > at + 2)
    assert roles.state(other) == "open"
    assert (board.status.state, board.status.assignment) == ("paused", None)
    manners.resume()
    await tools.until("it takes it", lambda: roles.state(other) == "running")
    assert await anna.stop() == 0


async def test_a_long_pause_gives_memory_and_lease_back_and_training_goes_on_later(
    roles: Any, volunteers: Any, tools: Any, tmp_path: Path
) -> None:
    assignment = roles.open_assignment()
    active = tmp_path / "active"
    make_old(active)
    anna = volunteers(
        "anna", rules=Rules(idle_seconds=10), activity_file=active, free_after_seconds=1.0
    )
    # Who was never seen may just have left: it begins after so long without anybody.
    await tools.until("training", lambda: anna.said.step > 0, seconds=200)
    os.utime(active, (4e9, 4e9))
    await tools.until("released", lambda: "release:stopped" in roles.entries(assignment))
    assert tools.trainers(tmp_path) == []
    assert "giving the memory and the lease back" in "".join(anna.said.lines)
    assert "you used this computer" in anna.agent.board.status.reason
    done = roles.row(assignment)
    assert done.state.value == "open"
    await tools.until("durable", lambda: roles.durable_step(assignment) > 0)
    reached = roles.durable_step(assignment)
    make_old(active)
    anna.said.step = 0
    await tools.until("taken again", lambda: roles.row(assignment).standing.fencing == 2)
    await tools.until("it trains", lambda: anna.said.step > reached, seconds=200)
    assert await anna.stop() == 0


async def test_whatever_is_killed_suspended_or_torn_the_next_life_goes_on_under_the_same_lease(
    roles: Any, commands: Any, tools: Any, tmp_path: Path
) -> None:
    assignment = roles.open_assignment()
    active = tmp_path / "active"
    make_old(active)
    flags = ("--only-when-idle", "10s", "--activity-file", str(active))
    first = commands("first", roles.url, *flags)
    folder = tmp_path / "first"
    await tools.until("a checkpoint", lambda: tools.steps_done(folder) > 0, seconds=200)
    [trainer] = tools.trainers(tmp_path)
    daemons = {
        child.pid: child.create_time()
        for child in psutil.Process(first.process.pid).children()
        if child.name() == "p2pd"
    }
    assert daemons
    await tools.until("they are noted", lambda: all(str(pid) in noted(folder) for pid in daemons))
    os.utime(active, (4e9, 4e9))
    await tools.until("suspended", lambda: is_stopped(trainer))
    for daemon in daemons:
        os.kill(daemon, signal.SIGSTOP)
    first.kill()
    assert is_stopped(trainer)
    with roles.ledger.begin() as connection:
        queries.extend_leases(connection, 120.0)

    make_old(active)
    reached = tools.steps_done(folder)
    again = commands("first", roles.url, *flags)
    await tools.until(
        "the orphan is gone", lambda: trainer not in tools.trainers(tmp_path), seconds=200
    )
    await tools.until("it trains", lambda: tools.steps_done(folder) > reached, seconds=200)
    for daemon, born in daemons.items():
        assert not psutil.pid_exists(daemon) or psutil.Process(daemon).create_time() != born
    assert f"going on with {assignment} after a restart" in again.said
    assert (folder / "worker.log").read_text().count("ended an orphan of this worker") >= 2
    assert roles.row(assignment).standing.fencing == 1

    await tools.until("two checkpoints", lambda: len(checkpoints(folder)) > 1)
    # Who gets no further for thirty heartbeats loses its lease: from here on they count anew.
    await tools.until("it is heard of", lambda: roles.told_step(assignment) > reached, seconds=200)
    [trainer] = tools.trainers(tmp_path)
    os.kill(trainer, signal.SIGSTOP)
    again.kill()
    tools.kill(trainer)
    newer = checkpoints(folder)[-1]
    os.truncate(newer / "optimizer.safetensors", 100)
    with roles.ledger.begin() as connection:
        queries.extend_leases(connection, 120.0)
    last = commands("first", roles.url)
    await tools.until("it trains", lambda: checkpoints(folder)[-1] > newer, seconds=200)
    log = (folder / "worker.log").read_text()
    assert f"a torn checkpoint is passed over path={newer}" in log
    assert roles.row(assignment).standing.fencing == 1
    last.process.send_signal(signal.SIGTERM)
    await tools.until("it ended", lambda: last.process.poll() is not None)
    assert last.process.returncode == 0, last.said


async def test_a_checkpoint_full_of_nan_costs_itself_and_training_goes_on_from_the_older_one(
    roles: Any, volunteers: Any, tools: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="worker.work")
    assignment = roles.open_assignment()
    anna = volunteers("anna")
    folder = tmp_path / "anna"
    await tools.until("two checkpoints", lambda: len(checkpoints(folder)) > 1, seconds=200)
    [trainer] = tools.trainers(tmp_path)
    os.kill(trainer, signal.SIGSTOP)
    older, newer = checkpoints(folder)[-2:]
    damage(newer / "model.safetensors")
    damage(newer / "optimizer.safetensors")
    tools.kill(trainer)
    words = "the newest checkpoint on this disk is damaged: trying an older one"
    await tools.until("it is passed over", lambda: words in anna.said, seconds=200)
    await tools.until("it trains", lambda: checkpoints(folder)[-1] > newer, seconds=200)
    assert f"training starts assignment={assignment} step={int(older.name[5:])}" in caplog.text
    assert "training failed" not in anna.said
    assert "release:trainer_failed" not in roles.entries(assignment)
    assert await anna.stop() == 0


def damage(weights: Path) -> None:
    """Makes every number of a file of tensors NaN, its header and length as before."""
    data = weights.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    spoilt = weights.with_suffix(".spoilt")
    spoilt.write_bytes(data[:begin] + b"\xff" * (len(data) - begin))
    os.replace(spoilt, weights)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(state.parent for state in folder.glob("work/*/checkpoints/step-*/state.json"))


def noted(folder: Path) -> str:
    path = folder / "processes.json"
    return path.read_text() if path.exists() else ""
