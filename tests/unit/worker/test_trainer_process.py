"""The real trainer child: its lines, its signals, its deaths, and what is left after each."""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from protocol.manifests import files_of
from protocol.specs import ExpertSpec, Lora
from shared import model as models
from shared.compute import compute_environment
from shared.shards import BOS_ID, write_shard
from shared.training.assignment import TrainerAssignment
from worker.trainer import loop
from worker.trainer.checkpoint import read_state

Event = dict[str, object]


def nested_spec(make) -> ExpertSpec:
    spec = make.spec(ffn_width=48, num_steps=400)
    train = spec.train.model_copy(update={"micro_batch": 4, "accumulation": 2})
    return spec.model_copy(update={"nested_widths": (16, 32, 48), "train": train})


@pytest.fixture(autouse=True)
def one_thread() -> None:
    loop.prepare_torch("cpu", 1)


@pytest.fixture
def assignment(make, tmp_path: Path) -> TrainerAssignment:
    rng = np.random.default_rng(0)
    texts = [(np.concatenate([[BOS_ID], rng.integers(2, 256, 99)]), 200) for _ in range(20)]
    write_shard(tmp_path / "train.safetensors", texts, vocab_size=256)
    return TrainerAssignment(
        spec=nested_spec(make),
        shard=str(tmp_path / "train.safetensors"),
        parent=None,
        parent_shape=None,
        resume=None,
        folder=str(tmp_path / "work"),
        device="cpu",
        num_threads=1,
        checkpoint_seconds=0.05,
    )


@contextmanager
def trainer(path: Path) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "worker.trainer", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=compute_environment(2),
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@contextmanager
def training(assignment: TrainerAssignment, **changes: object) -> Iterator[subprocess.Popen[str]]:
    path = Path(assignment.folder).with_name("assignment.json")
    path.write_text(assignment.model_copy(update=changes).model_dump_json())
    with trainer(path) as child:
        yield child


def events(child: subprocess.Popen[str]) -> Iterator[Event]:
    assert child.stdout is not None
    for line in child.stdout:
        yield json.loads(line)


def wait_for(child: subprocess.Popen[str], kind: str) -> Event:
    seen = []
    for event in events(child):
        if event["event"] == kind:
            return event
        seen.append(event)
    pytest.fail(f"no {kind} event, but {seen}")


@pytest.mark.timeout(180)
def test_mishap_after_mishap_ends_bit_for_bit_as_if_there_had_been_none(
    assignment: TrainerAssignment, tmp_path: Path
) -> None:
    spec = assignment.spec
    with training(assignment) as child:
        first = wait_for(child, "checkpoint")
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        *before, last = events(child)
        assert last["event"] == "failed"
        assert last["code"] == "disk_full"
        assert child.wait(30) == 1
    full = max([first, *(e for e in before if e["event"] == "checkpoint")], key=lambda e: e["step"])
    folder = Path(str(full["folder"]))
    assert read_state(folder, spec).step == full["step"]
    assert not [entry for entry in folder.parent.iterdir() if entry.name.startswith(".")]

    with training(assignment, resume=str(folder)) as child:
        assert wait_for(child, "started")["step"] == full["step"]
        killed = wait_for(child, "checkpoint")
        child.send_signal(signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL

    with training(assignment, resume=str(killed["folder"]), num_threads=2) as child:
        assert wait_for(child, "started")["step"] == killed["step"]
        child.send_signal(signal.SIGTERM)
        *_, saved, last = events(child)
        assert saved["event"] == "checkpoint"
        assert last == {"event": "stopped", "step": saved["step"]}
        assert child.wait(30) == 0

    resumed = assignment.model_copy(update={"resume": str(saved["folder"])})
    straight = assignment.model_copy(update={"folder": str(tmp_path / "straight")})
    for each in (resumed, straight):
        loaded = loop.load(each)
        loop.run(
            loaded, folder=Path(each.folder), checkpoint_seconds=3600.0, stopping=lambda: False
        )
    interrupted, whole = (
        (tmp_path / name / "expert" / "model.safetensors").read_bytes()
        for name in ("work", "straight")
    )
    assert 0 < full["step"] < killed["step"] <= saved["step"] < spec.train.num_steps
    assert interrupted == whole


@pytest.mark.timeout(180)
def test_a_killed_training_of_adapters_goes_on_from_its_checkpoint_and_parent(
    assignment: TrainerAssignment, make, tmp_path: Path
) -> None:
    spec = make.spec(parent="0" * 64, num_steps=300)
    spec = spec.model_copy(update={"trains": "lora", "lora": Lora(rank=4, alpha=8.0)})
    parent = tmp_path / "parent.safetensors"
    models.save(models.build(spec.shape, rng_seed=5), parent)
    begun = assignment.model_copy(
        update={"spec": spec, "parent": str(parent), "parent_shape": spec.shape}
    )
    with training(begun) as child:
        killed = wait_for(child, "checkpoint")
        child.send_signal(signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL
    with training(begun, resume=str(killed["folder"])) as child:
        assert wait_for(child, "started")["step"] == killed["step"]
        *_, last = events(child)
    assert last["event"] == "finished"
    straight = begun.model_copy(update={"folder": str(tmp_path / "straight")})
    loop.run(
        loop.load(straight),
        folder=Path(straight.folder),
        checkpoint_seconds=3600.0,
        stopping=lambda: False,
    )
    for name in files_of("expert", spec):
        resumed, whole = (tmp_path / root / "expert" / name for root in ("work", "straight"))
        assert resumed.read_bytes() == whole.read_bytes()


def test_a_bad_assignment_is_an_event_that_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "assignment.json"
    path.write_text('{"spec": 1, "num_threads": "two"}')
    with trainer(path) as child:
        (event,) = events(child)
        assert event["event"] == "failed"
        assert event["code"] == "bad_input"
        assert "num_threads" in str(event["message"])
        assert child.wait(30) == 1


def test_a_missing_assignment_is_an_event_that_names_the_file(tmp_path: Path) -> None:
    with trainer(tmp_path / "nowhere.json") as child:
        (event,) = events(child)
        assert event["code"] == "bad_input"
        assert "nowhere.json" in str(event["message"])
        assert child.wait(30) == 1


def test_without_an_assignment_it_says_how_to_call_it() -> None:
    command = [sys.executable, "-m", "worker.trainer"]
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert child.returncode == 2
    assert "usage" in child.stderr
    assert child.stdout == ""


def test_a_trainer_whose_parent_is_gone_ends_at_once(assignment: TrainerAssignment) -> None:
    with training(assignment) as child:
        assert child.stdin is not None
        child.stdin.close()
        child.stdin = None
        assert child.wait(30) == 1
        assert list(events(child)) == []
