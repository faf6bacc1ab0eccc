"""A trainer that stays: each assignment as by a fresh process, whatever became of the last one."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from protocol.specs import ExpertSpec
from shared.blobs import piece_list_of
from shared.shards import write_shard
from shared.training.assignment import TrainerAssignment
from shared.training.resident import ResidentTrainer
from shared.training.runner import Event, TrainerProcess


@pytest.fixture
def assign(tmp_path: Path):
    tokens = np.concatenate([[1], np.random.default_rng(0).integers(3, 256, 300)])
    write_shard(tmp_path / "shard", [(tokens, 300)] * 4, vocab_size=256)

    def build(spec: ExpertSpec, name: str) -> TrainerAssignment:
        return TrainerAssignment(
            spec=spec,
            shard=str(tmp_path / "shard"),
            parent=None,
            parent_shape=None,
            resume=None,
            folder=str(tmp_path / name),
            device="cpu",
            num_threads=1,
            checkpoint_seconds=1000.0,
        )

    return build


def digest(event: Event) -> str:
    assert event["event"] == "finished", event
    return piece_list_of(Path(event["file"])).ref().digest


async def last_of(trainer: ResidentTrainer, assignment: TrainerAssignment) -> Event:
    return [event async for event in trainer.train(assignment)][-1]


async def test_assignments_in_one_process_give_the_bits_of_fresh_ones(
    make: Any, assign: Any, tmp_path: Path
) -> None:
    specs = [make.spec(rng_seed=1), make.spec(rng_seed=2), make.spec(rng_seed=1)]
    log = tmp_path / "log"
    async with ResidentTrainer(num_threads=1, log=log) as trainer:
        pid = (await trainer.start()).pid
        stayed = [
            digest(await last_of(trainer, assign(spec, f"stayed {number}")))
            for number, spec in enumerate(specs)
        ]
        assert (await trainer.start()).pid == pid
    assert not psutil.pid_exists(pid)
    async with TrainerProcess(assign(specs[1], "fresh"), log=log) as child:
        fresh = [event async for event in child.events()][-1]
    assert stayed[1] == digest(fresh)
    assert stayed[0] == stayed[2] != stayed[1]


async def test_after_a_failure_and_a_death_the_next_assignment_gets_a_new_process(
    make: Any, assign: Any, tmp_path: Path
) -> None:
    endless = assign(make.spec(num_steps=1_000_000), "endless")
    good = assign(make.spec(), "good")
    lost = good.model_copy(update={"shard": str(tmp_path / "none"), "folder": str(tmp_path / "x")})
    async with ResidentTrainer(num_threads=1, log=tmp_path / "log") as trainer:
        failed = await last_of(trainer, lost)
        assert (failed["event"], failed["code"]) == ("failed", "bad_input")
        pid = (await trainer.start()).pid
        async for event in trainer.train(endless):
            if event["event"] == "started":
                os.kill(pid, signal.SIGKILL)
        assert (event["event"], event["code"]) == ("failed", "trainer_failed")
        assert "exit code -9" in event["message"]
        assert (await last_of(trainer, good))["event"] == "finished"
        async for event in trainer.train(endless):
            if event["event"] == "started":
                await trainer.stop()
        assert event["event"] == "stopped"
