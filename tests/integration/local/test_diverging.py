"""A trial that diverges under a local trainer: its rate has lost, and the trainer goes on."""

import asyncio
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coordinator.ledger import Ledger, queries
from coordinator.local.leases import Leases
from coordinator.local.screen import Screen
from coordinator.local.slot import Bench, Slot, TrainingFails
from coordinator.scoring.verification import Accepted
from protocol.assignments import AssignmentState
from protocol.specs import ExpertSpec
from shared import clock
from shared import model as models
from shared.blobs import BlobStore
from shared.shards import BOS_ID, write_shard
from shared.training.ends import CurveEnds

pytestmark = pytest.mark.timeout(400)
WORKER = "12D3KooW" + "A" * 44


class Workshop:
    """A ledger whose accepted seed has finite weights from which every training diverges."""

    def __init__(self, root: Path, ledger: Ledger, make: Any) -> None:
        self.store, self.ledger = BlobStore(root / "blobs"), ledger
        rng = np.random.default_rng(0)
        texts = [(np.concatenate([[BOS_ID], rng.integers(2, 256, 99)]), 200) for _ in range(20)]
        write_shard(root / "shard", texts, vocab_size=256)
        shard = self.store.add_file(root / "shard")
        self.shard = make.shard("python", "train").model_copy(update={"blob": shard})
        self.seed = make.spec().model_copy(update={"train_shard": shard.digest})
        self.said = io.StringIO()
        self.leases = Leases(
            ledger, self.store, heartbeat_seconds=100.0, max_attempts=2, now=clock.now
        )
        self.bench = Bench(
            leases=self.leases,
            store=self.store,
            ends=CurveEnds(root / "ends", cap_bytes=10**8),
            work=root / "work",
            log=root / "trainer.log",
            device="cpu",
            num_threads=1,
            checkpoint_seconds=60.0,
            screen=Screen(self.said),
            changed=lambda: None,
        )
        with ledger.begin() as connection:
            queries.create_run(connection, run="r", coordinator=WORKER, now=clock.now())
            queries.add_shard(connection, self.shard, now=clock.now())
        self.leases.begin([WORKER], [], make.capability())
        self._accept_seed(root / "model.safetensors")

    def add(self, spec: ExpertSpec, *schemes: str) -> str:
        with self.ledger.begin() as connection:
            return queries.add_assignment(
                connection, spec, shard=self.shard.blob, schemes=schemes, now=clock.now()
            )

    def state(self, assignment: str) -> AssignmentState:
        with self.ledger.read() as connection:
            return queries.get_assignment(connection, assignment).state

    def trial(self) -> ExpertSpec:
        return self.seed.model_copy(update={"kind": "dense", "parent": self.seed.digest})

    def _accept_seed(self, file: Path) -> None:
        model = models.build(self.seed.shape, rng_seed=0)
        with torch.no_grad():
            model.lm_head.weight.fill_(3e38)
        models.save(model, file)
        self.add(self.seed, "A")
        lease = self.leases.take(WORKER)
        assert lease is not None
        last = {"step": self.seed.train.num_steps, "loss": 1.0, "file": str(file), "curve": []}
        last |= {"tokens_per_second": 1.0, "train_seconds": 1.0, "inexact_from": None}
        self.leases.hand_in(lease, last)
        with self.ledger.begin() as connection:
            queries.record_verification(
                connection, lease.assignment, lease.fencing, Accepted(), "", clock.now()
            )


@pytest.fixture
def workshop(tmp_path: Path, make: Any) -> Any:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    ledger.create()
    yield Workshop(tmp_path, ledger, make)
    ledger.close()


async def test_a_trial_that_diverges_fails_and_its_trainer_goes_on(workshop: Workshop) -> None:
    trial = workshop.add(workshop.trial(), "dense trial")
    slot = Slot(workshop.bench, WORKER)
    running = asyncio.create_task(slot.run())
    deadline = time.monotonic() + 300
    while workshop.state(trial) is not AssignmentState.FAILED:
        assert time.monotonic() < deadline
        assert not running.done(), running.exception()
        await asyncio.sleep(0.05)
    assert not running.done()
    await slot.stop()
    await running
    with workshop.ledger.read() as connection:
        assert queries.snapshot(connection).diverged == {workshop.trial().digest}
    assert workshop.said.getvalue().count("Diverged: step 0") == 2


async def test_an_expert_that_diverges_ends_the_training_with_the_reason(
    workshop: Workshop,
) -> None:
    workshop.add(workshop.trial(), "A")
    with pytest.raises(TrainingFails, match="Diverged: step 0"):
        await Slot(workshop.bench, WORKER).run()
