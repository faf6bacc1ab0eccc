"""The promises of a whole swarm, kept by real processes under SIGKILL."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from swarm import BIN, Swarm, running_in

from coordinator.ledger import Ledger, queries
from protocol.assignments import AssignmentState
from shared.blobs import BlobStore, piece_list_of
from shared.training.assignment import TrainerAssignment

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1500)]

STEPS = 800


def accepted(swarm: Swarm):
    """The canonical checkpoints by spec digest, from the ledger itself."""
    ledger = Ledger(f"sqlite:///{swarm.run_folder / 'state' / 'ledger.sqlite'}")
    try:
        with ledger.read() as connection:
            return queries.accepted(connection)
    finally:
        ledger.close()


def train_alone(swarm: Swarm, spec, rows, folder: Path) -> str:
    """The digest of the weights that a spec gives in one calm process, without a swarm."""
    store = BlobStore(swarm.run_folder / "state" / "blobs")
    parent = rows[spec.parent] if spec.parent else None
    folder.mkdir()
    assignment = TrainerAssignment(
        spec=spec,
        shard=str(store.path(spec.train_shard)),
        parent=str(store.path(parent.manifest.files[0].blob.digest)) if parent else None,
        parent_shape=parent.spec.shape if parent else None,
        resume=None,
        folder=str(folder),
        device="cpu",
        num_threads=1,
        checkpoint_seconds=600.0,
    )
    path = folder / "assignment.json"
    path.write_text(assignment.model_dump_json())
    command = [sys.executable, "-m", "worker.trainer", str(path)]
    # The trainer ends when its standard input does, so the pipe stays open until its last line.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer:
        finished = [json.loads(line) for line in trainer.stdout][-1]
    assert finished["event"] == "finished", finished
    return piece_list_of(Path(finished["file"])).ref().digest


def running_experts(swarm: Swarm):
    """Experts in training that have a durable checkpoint and are not done."""
    return [
        view
        for view in swarm.assignments()
        if view["kind"] == "expert"
        and view["backup_of"] is None
        and view["state"] == "running"
        and view["durable_step"]
        and view["durable_step"] < 0.7 * STEPS
    ]


@pytest.fixture
def swarm(tmp_path):
    with Swarm(tmp_path, steps=STEPS) as swarm:
        yield swarm
    assert running_in(tmp_path) == []


def test_another_worker_goes_on_from_the_last_durable_checkpoint_to_the_same_bits(swarm, tmp_path):
    swarm.serve()
    swarm.join("first")
    swarm.join("second")
    victim = swarm.wait_for("an expert is halfway", lambda: running_experts(swarm), seconds=600)[0]
    name = swarm.names()[victim["worker"]]
    swarm.kill(name)

    def taken_over():
        # Under a new lease, or as a backup that was made while the old lease still lasted.
        return any(
            view["state"] == "accepted" and view["worker"] != victim["worker"]
            for view in swarm.assignments()
            if view["spec"] == victim["spec"]
        )

    swarm.wait_for("another worker finished it", taken_over, seconds=600)
    survivor = next(other for other in ("first", "second") if other != name)
    said = (tmp_path / f"{survivor}.out").read_text()
    assert "going on from durable step" in said
    swarm.wait_for("the run is finished", swarm.finished, seconds=600)

    rows = accepted(swarm)
    row = rows[victim["spec"]]
    assert row.worker != victim["worker"]
    assert row.manifest.files[0].blob.digest == train_alone(
        swarm, row.spec, rows, tmp_path / "calm"
    )


def test_killing_each_role_loses_nothing_and_http_alone_is_enough(swarm, tmp_path):
    swarm.serve()
    swarm.join("wired")
    swarm.join("fenced", "--http-only")
    swarm.wait_for("an expert is halfway", lambda: running_experts(swarm), seconds=600)
    for role in ("api", "network", "scorer"):
        pid = swarm.kill_role(role)
        swarm.wait_for(f"{role} is back", lambda r=role, p=pid: swarm.role_pid(r) != p, seconds=120)
    swarm.wait_for("the run is finished", swarm.finished, seconds=600)

    views = swarm.assignments()
    won = [view for view in views if view["state"] == AssignmentState.ACCEPTED.value]
    assert sorted(view["spec"] for view in won) == sorted({view["spec"] for view in views})
    # Of two who did the same spec, a straggler and its backup, one was called off.
    lost = {view["state"] for view in views if view not in won}
    assert lost <= {AssignmentState.CANCELLED.value}
    names = swarm.names()
    assert {names[view["worker"]] for view in won} == {"wired", "fenced"}
    assert "route=http" in swarm.role_logged("network")
    assert "route=direct" in swarm.role_logged("network")
    for worker in ("wired", "fenced"):
        assert swarm.processes[worker].wait(60) == 0
    score = subprocess.run(
        [str(BIN / "hdee-coordinator"), "score", str(swarm.run_file)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    for column in ("seed M", "best single", "MHo-IHo", "MHe-IHo"):
        assert column in score.stdout
