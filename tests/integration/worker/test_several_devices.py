"""`hdee-worker join --device cpu --device cpu`: one worker, two trainers, a lease each."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from coordinator.ledger import queries, tables
from coordinator.scoring.verification import Accepted
from protocol.messages import Offer
from shared.clock import now
from worker.control.client import ask
from worker.control.messages import PauseRequest, ResumeRequest, StatusRequest, StopRequest
from worker.status import WorkerStatus

pytestmark = pytest.mark.timeout(1200)
"""Trainers and workers take seconds to load torch, more where others compute as well."""

SECONDS = 300.0
"""Two trainers and two roles on a machine that others use, too."""

FIRST_STEPS = 4
"""Too few to say how fast a device is: one that seems slow leaves long work to the other."""

SEEDS = itertools.count(4711)
TWICE = ("--device", "cpu", "--device", "cpu", "--threads", "2")


def open_two(roles: Any, make: Any) -> list[str]:
    """Two long assignments; what was handed in before stays."""
    shard = roles.shard.blob
    with roles.ledger.begin() as connection:
        return [
            queries.add_assignment(
                connection,
                make.spec(num_steps=1_000_000, rng_seed=next(SEEDS)).model_copy(
                    update={"train_shard": shard.digest}
                ),
                shard=shard,
                schemes=("a",),
                now=now(),
            )
            for _ in range(2)
        ]


def held(roles: Any, worker: str) -> dict[int, str]:
    with roles.ledger.read() as connection:
        return {
            one.device_number: one.assignment for one in queries.live_leases_of(connection, worker)
        }


def give_time(roles: Any) -> None:
    """On a busy machine a worker may take minutes to start again: no lease ends meanwhile."""
    with roles.ledger.begin() as connection:
        queries.extend_leases(connection, SECONDS)
        later = tables.progress.c.progressed_at + SECONDS
        connection.execute(tables.progress.update().values(progressed_at=later))


def saved(folder: Path, assignment: str) -> int:
    """The newest step of which a checkpoint of the assignment lies in a worker's folder."""
    steps = (folder / "work" / assignment / "checkpoints").glob("step-*/state.json")
    return max((int(one.parent.name.removeprefix("step-")) for one in steps), default=0)


def devices_of(folder: Path) -> tuple[WorkerStatus, ...]:
    return ask(folder, StatusRequest()).status.devices


async def test_two_devices_work_at_once_and_a_killed_worker_goes_on_with_both(
    roles: Any, commands: Any, tools: Any, make: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "anna"
    first = roles.open_assignment(num_steps=FIRST_STEPS)
    anna = commands("anna", roles.url, *TWICE)
    await tools.until("submitted", lambda: roles.state(first) == "submitted", seconds=SECONDS)
    await tools.until(
        "collected", lambda: roles.row(first).standing.expires_at is None, seconds=SECONDS
    )
    standing = roles.row(first).standing
    leases = open_two(roles, make)
    await tools.until("it trains", lambda: len(held(roles, standing.worker)) == 1, seconds=SECONDS)
    words = "holds one lease at a time"
    await tools.until("the other waits", lambda: words in anna.said, seconds=SECONDS)
    assert len(held(roles, standing.worker)) == 1, "nothing of its work is accepted yet"

    with roles.ledger.begin() as connection:
        queries.record_verification(connection, first, standing.fencing, Accepted(), "", now())
    await tools.until(
        "both train", lambda: all(saved(folder, one) > 0 for one in leases), seconds=SECONDS
    )
    assert set(held(roles, standing.worker)) == {0, 1}
    assert set(held(roles, standing.worker).values()) == set(leases)
    assert len(tools.trainers(folder)) == 2
    shown = devices_of(folder)
    assert [one.device for one in shown] == ["cpu 1", "cpu 2"]
    assert {one.assignment for one in shown} == set(leases)

    anna.kill()
    give_time(roles)
    await tools.until("no trainer is left", lambda: not tools.trainers(folder), seconds=SECONDS)
    reached = {one: saved(folder, one) for one in leases}
    fencing = {one: roles.row(one).standing.fencing for one in leases}
    assert all(step > 0 for step in reached.values())

    again = commands("anna", roles.url, *TWICE)
    await tools.until(
        "both go on",
        lambda: all(saved(folder, one) > step for one, step in reached.items()),
        seconds=SECONDS,
    )
    for assignment in leases:
        assert f"going on with {assignment} after a restart" in again.said
        assert roles.row(assignment).standing.fencing == fencing[assignment]

    ask(folder, PauseRequest())
    await tools.until(
        "both are paused",
        lambda: [one.state for one in devices_of(folder)] == ["paused"] * 2,
        seconds=SECONDS,
    )
    ask(folder, ResumeRequest())
    await tools.until(
        "both train", lambda: {one.state for one in devices_of(folder)} == {"training"}
    )
    ask(folder, StopRequest())
    await tools.until("it ended", lambda: again.process.poll() is not None, seconds=SECONDS)
    assert again.process.returncode == 0, again.said
    assert tools.trainers(folder) == []
    assert held(roles, standing.worker) == {}
    for assignment in leases:
        assert "release:stopped" in roles.entries(assignment)
    assert "Traceback" not in again.said + (folder / "worker.log").read_text()


async def test_a_worker_with_one_device_never_gets_two_leases(
    roles: Any, volunteers: Any, tools: Any, make: Any
) -> None:
    first = roles.open_assignment(num_steps=FIRST_STEPS)
    bert = volunteers("bert")
    stale = Offer(
        assignment="a0123456789abcdef",
        fencing=1,
        expires_in=1.0,
        spec=make.spec(),
        shard=roles.shard.blob,
        parent=None,
        resume=None,
        checkpoint_seconds=1.0,
        reason="",
    )
    bert.folder.remember_offer(stale, 1)
    await tools.until("submitted", lambda: roles.state(first) == "submitted", seconds=SECONDS)
    await tools.until(
        "collected", lambda: roles.row(first).standing.expires_at is None, seconds=SECONDS
    )
    with roles.ledger.begin() as connection:
        fencing = roles.row(first).standing.fencing
        queries.record_verification(connection, first, fencing, Accepted(), "", now())
    assert f"{stale.assignment} is left: its device is not among those given" in bert.said
    assert bert.folder.remembered_offer(1) is None
    leases = open_two(roles, make)
    await tools.until("it trains", lambda: bert.said.step > 0 and held(roles, bert.peer_id))
    step = bert.said.step
    await tools.until("it goes on", lambda: bert.said.step > step + 20, seconds=SECONDS)
    assert list(held(roles, bert.peer_id)) == [0]
    assert sorted(roles.state(one) for one in leases) == ["open", "running"]
    assert await bert.stop() == 0
