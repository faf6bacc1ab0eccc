"""Real trainers that are paused, hung, killed and torn: no step is lost, no bit is another."""

import asyncio
import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from typing_extensions import override

from protocol.specs import ExpertSpec
from shared.clock import now
from shared.shards import write_shard
from shared.training.assignment import TrainerAssignment
from shared.training.runner import TrainerProcess
from worker import supervision
from worker.checkpoints import local_checkpoints, newest_whole, step_of
from worker.manners.rules import Rules
from worker.manners.senses import Senses
from worker.manners.watch import Manners
from worker.supervision import Silence, Supervised, Terms

pytestmark = pytest.mark.timeout(300)
"""Trainers take seconds to load torch, more where others compute as well."""

NUM_STEPS = 400
WORDS = "what was trained stays on this disk"


class Ground:
    """A folder with text to train on, and what a supervised training in it does."""

    def __init__(self, root: Path, spec: ExpertSpec, tools: Any) -> None:
        self.root = root
        self.tools = tools
        self.spec = spec
        self.said: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.manners = Manners()
        self.runs_out = False
        tokens = np.concatenate([[1], np.random.default_rng(0).integers(3, 256, 300)])
        write_shard(root / "shard", [(tokens, 300)] * 4, vocab_size=256)

    def assignment(self) -> TrainerAssignment:
        return TrainerAssignment(
            spec=self.spec,
            shard=str(self.root / "shard"),
            parent=None,
            parent_shape=None,
            resume=None,
            folder=str(self.root / "work"),
            device="cpu",
            num_threads=1,
            checkpoint_seconds=0.1,
        )

    def supervised(self, *, free_after: float = 1e6) -> Supervised:
        terms = Terms(
            step_seconds=0.01,
            niceness=1,
            free_after_seconds=free_after,
            runs_out=lambda: self.runs_out,
        )
        return Supervised(
            self.assignment(),
            log=self.root / "trainer.log",
            manners=self.manners,
            terms=terms,
            say=self.said.append,
        )

    async def run(self, training: Supervised) -> dict[str, Any]:
        """Its last event."""
        async with contextlib.aclosing(training.events()) as events:
            async for event in events:
                self.events.append(event)
        return self.events[-1]

    def pids(self) -> list[int]:
        return self.tools.trainers(self.root)

    def starts(self) -> list[int]:
        """The steps from which its trainers began."""
        return [event["step"] for event in self.events if event["event"] == "started"]

    def step(self) -> int:
        return max([0, *(event.get("step", 0) for event in self.events)])


@pytest.fixture(scope="module")
def spec(make: Any) -> ExpertSpec:
    spec = make.spec(num_steps=NUM_STEPS)
    train = spec.train.model_copy(update={"micro_batch": 8, "accumulation": 2})
    return spec.model_copy(update={"train": train})


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, spec: ExpertSpec) -> Path:
    """The folder of a training that nothing disturbed."""
    ground = Ground(tmp_path_factory.mktemp("calm"), spec, None)
    last = asyncio.run(ground.run(ground.supervised()))
    assert (last["event"], last["step"]) == ("finished", NUM_STEPS)
    return ground.root / "work"


@pytest.fixture
def ground(tmp_path: Path, spec: ExpertSpec, tools: Any, monkeypatch: pytest.MonkeyPatch) -> Ground:
    monkeypatch.setattr(supervision, "LOOK_SECONDS", 0.05)
    return Ground(tmp_path, spec, tools)


@pytest.fixture
async def owner(ground: Ground) -> Any:
    """Watches over the ground's manners, as an agent does."""
    watching = asyncio.create_task(ground.manners.watch())
    yield ground.manners
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


async def test_a_paused_killed_and_torn_training_ends_bit_for_bit_as_a_calm_one(
    ground: Ground, calm: Path, owner: Manners, tools: Any
) -> None:
    running = asyncio.create_task(ground.run(ground.supervised()))
    folder = ground.root / "work"
    await tools.until("checkpoints", lambda: len(local_checkpoints(folder)) > 1)
    (pid,) = ground.pids()
    assert psutil.Process(pid).nice() == 1
    for _ in range(2):
        owner.pause()
        await tools.until("suspended", lambda: is_stopped(pid))
        assert not running.done()
        owner.resume()
        await tools.until("it goes on", lambda: not is_stopped(pid))
    owner.pause()
    await tools.until("suspended again", lambda: is_stopped(pid))
    older, newer = local_checkpoints(folder)[-2:]
    model = newer / "model.safetensors"
    os.truncate(model, model.stat().st_size // 2)
    os.kill(pid, signal.SIGKILL)
    owner.resume()
    last = await asyncio.wait_for(running, 200)
    assert (last["event"], last["step"]) == ("finished", NUM_STEPS)
    expert = Path("expert", "model.safetensors")
    assert (folder / expert).read_bytes() == (calm / expert).read_bytes()
    assert "training is paused: paused by its owner" in ground.said
    assert any(f"starting it again from {older.name}" in text for text in ground.said)


async def test_activity_suspends_training_until_the_owner_is_away_and_frees_memory_if_they_stay(
    ground: Ground, tools: Any
) -> None:
    active = ground.root / "active"
    rules = Rules(idle_seconds=10)
    active.touch()
    os.utime(active, (1.0, 1.0))
    ground.manners = Manners(rules, senses=Senses(rules, activity_file=active, now=0.0))
    watching = asyncio.create_task(ground.manners.watch())
    training = ground.supervised(free_after=4.0)
    running = asyncio.create_task(ground.run(training))
    await tools.until("it makes steps", lambda: ground.step() > 1)
    (pid,) = ground.pids()
    active.touch()
    await tools.until("suspended", lambda: is_stopped(pid))
    assert "you used this computer" in ground.manners.verdict.reason
    os.utime(active, (1.0, 1.0))
    await tools.until("it goes on", lambda: not is_stopped(pid))
    assert ground.said[-1] == "training goes on"
    os.utime(active, (now() + 1000, now() + 1000))
    last = await asyncio.wait_for(running, 120)
    assert last["event"] == "stopped"
    assert ground.pids() == []
    assert step_of(local_checkpoints(ground.root / "work")[-1]) == last["step"]
    assert training.freed_because.startswith("paused for 4 s: you used this computer")
    assert any(WORDS in text for text in ground.said)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_pause_ends_with_a_checkpoint_before_the_lease_does(
    ground: Ground, owner: Manners, tools: Any
) -> None:
    training = ground.supervised()
    running = asyncio.create_task(ground.run(training))
    await tools.until("it makes steps", lambda: ground.step() > 1)
    owner.pause()
    (pid,) = ground.pids()
    await tools.until("suspended", lambda: is_stopped(pid))
    ground.runs_out = True
    last = await asyncio.wait_for(running, 120)
    assert last["event"] == "stopped"
    assert step_of(local_checkpoints(ground.root / "work")[-1]) == last["step"] > 0
    assert "the coordinator waits no longer: paused by its owner" in training.freed_because


async def test_who_stops_a_training_while_its_process_is_being_started_need_not_wait_for_its_end(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = ground.supervised()

    class StartedSlowly(TrainerProcess):
        @override
        async def __aenter__(self) -> TrainerProcess:
            child = await super().__aenter__()
            await training.stop()
            return child

    monkeypatch.setattr(supervision, "TrainerProcess", StartedSlowly)
    last = await asyncio.wait_for(ground.run(training), 120)
    assert last == {"event": "stopped", "step": 0}
    assert ground.pids() == []


async def test_while_training_may_not_run_nothing_is_started(
    ground: Ground, owner: Manners, tools: Any
) -> None:
    owner.pause()
    await owner.look()
    training = ground.supervised(free_after=0.3)
    assert await ground.run(training) == {"event": "stopped", "step": 0}
    assert training.freed_because
    assert not (ground.root / "trainer.log").exists()


async def test_a_hung_trainer_is_killed_and_goes_on_from_its_newest_checkpoint(
    ground: Ground, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "MIN_HANG_SECONDS", 2.0)
    monkeypatch.setattr(supervision, "HANG_GAPS", 1)
    training = ground.supervised()
    running = asyncio.create_task(ground.run(training))
    await tools.until("a checkpoint", lambda: local_checkpoints(ground.root / "work"))
    await tools.until("two signs of life", lambda: len(ground.events) > 3)
    (pid,) = ground.pids()
    os.kill(pid, signal.SIGSTOP)
    await tools.until("another one", lambda: ground.pids() not in ([], [pid]))
    assert not psutil.pid_exists(pid)
    assert "the trainer said nothing for 2 s: starting it again from step-" in ground.said[-1]
    monkeypatch.setattr(supervision, "MIN_HANG_SECONDS", 60.0)
    await tools.until("it began again", lambda: len(ground.starts()) > 1)
    first, second = ground.starts()
    assert first == 0 < second
    await training.kill()
    assert (await running)["event"] == "stopped"


async def test_a_trainer_that_dies_where_it_died_before_is_given_up(
    ground: Ground, tools: Any
) -> None:
    running = asyncio.create_task(ground.run(ground.supervised()))
    killed: list[int] = []
    while len(killed) <= supervision.MAX_RESTARTS:
        await tools.until("one", lambda: [pid for pid in ground.pids() if pid not in killed])
        (pid,) = [pid for pid in ground.pids() if pid not in killed]
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
    last = await asyncio.wait_for(running, 60)
    assert (last["event"], last["code"]) == ("failed", "trainer_failed")
    assert "exit code -9" in last["message"]
    assert "3 times without getting past" in last["message"]


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("model.safetensors", -1),
        ("optimizer.safetensors", 0),
        ("state.json", 20),
        ("state.json", 0),
    ],
)
def test_whatever_file_is_torn_the_one_before_is_found(
    calm: Path,
    tmp_path: Path,
    name: str,
    length: int,
    caplog: pytest.LogCaptureFixture,
    spec: ExpertSpec,
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(calm, folder)
    older, newer = local_checkpoints(folder)[-2:]
    assert newest_whole(folder, spec) == newer
    size = (newer / name).stat().st_size
    os.truncate(newer / name, length if length >= 0 else size + length)
    assert newest_whole(folder, spec) == older
    assert not newer.exists()
    assert "a torn checkpoint is passed over" in caplog.text


def test_a_silence_is_judged_by_the_trainers_own_pace() -> None:
    silence = Silence(expected=1.0)
    assert silence.allowed == supervision.START_SECONDS
    assert Silence(expected=100.0).allowed == 100.0 * supervision.HANG_GAPS
    stepping = Silence(expected=1.0, writing=500.0).broken(by_step=True).longer(1.0)
    assert stepping.broken(by_step=True).allowed == 500.0 + supervision.MIN_HANG_SECONDS
    stepped = silence.longer(200.0).broken(by_step=False).longer(50.0).broken(by_step=True)
    assert stepped.allowed == supervision.START_SECONDS
    fast = stepped.longer(1.0).broken(by_step=True)
    assert fast.allowed == supervision.MIN_HANG_SECONDS
    slow = fast.longer(30.0).broken(by_step=True).longer(2.0).broken(by_step=True)
    assert slow.allowed == 30.0 * supervision.HANG_GAPS
    assert slow.seconds == 0.0
