"""Memory that runs out: smaller micro-batches of the same batch, or a failure with its peak."""

import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.manifests import TrainerState
from protocol.specs import ExpertSpec
from shared.compute import compute_environment
from shared.shards import BOS_ID, write_shard
from shared.tensorfiles import read_tensors
from shared.training.assignment import TrainerAssignment
from shared.training.ends import Conditions, CurveEnds
from worker.trainer import loop
from worker.trainer.failures import classify
from worker.trainer.memory import peak_bytes, smaller

Event = dict[str, object]
Assign = Callable[..., TrainerAssignment]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    loop.prepare_torch("cpu", 1)


@pytest.fixture
def assign(tmp_path: Path) -> Assign:
    rng = np.random.default_rng(0)
    texts = [(np.concatenate([[BOS_ID], rng.integers(2, 256, 599)]), 1200) for _ in range(30)]
    write_shard(tmp_path / "train.safetensors", texts, vocab_size=256)

    def build(spec: ExpertSpec, name: str = "work", **changes: object) -> TrainerAssignment:
        return TrainerAssignment.model_validate(
            {
                "spec": spec,
                "shard": str(tmp_path / "train.safetensors"),
                "parent": None,
                "parent_shape": None,
                "resume": None,
                "folder": str(tmp_path / name),
                "device": "cpu",
                "num_threads": 1,
                "checkpoint_seconds": 3600.0,
                **changes,
            }
        )

    return build


def with_train(spec: ExpertSpec, **train: object) -> ExpertSpec:
    return spec.model_copy(update={"train": spec.train.model_copy(update=train)})


def wide_batch(make) -> ExpertSpec:
    """Small weights, and some 200 MB of activations."""
    spec = make.spec(num_steps=3)
    shape = spec.shape.model_copy(update={"hidden_size": 64, "num_heads": 4, "context_length": 256})
    spec = spec.model_copy(update={"shape": shape})
    return with_train(spec, micro_batch=48, accumulation=1, sequence_length=256, schedule_steps=30)


def train(assignment: TrainerAssignment) -> list[Event]:
    """The events of a real trainer child."""
    path = Path(assignment.folder).with_suffix(".json")
    path.write_text(assignment.model_dump_json())
    with subprocess.Popen(
        [sys.executable, "-m", "worker.trainer", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=compute_environment(1),
    ) as child:
        assert child.stdout is not None
        try:
            return [json.loads(line) for line in child.stdout]
        finally:
            child.kill()


@given(size=st.integers(1, 4096))
def test_a_smaller_micro_batch_is_the_largest_divisor_that_halves_it(size: int) -> None:
    found = smaller(size)
    if size == 1:
        assert found is None
        return
    assert found is not None
    assert size % found == 0
    assert found <= size / 2
    assert not any(size % larger == 0 for larger in range(found + 1, size // 2 + 1))


@given(size=st.integers(1, 4096))
def test_every_micro_batch_comes_down_to_one(size: int) -> None:
    tried = [size]
    while (fewer := smaller(tried[-1])) is not None:
        tried.append(fewer)
    assert tried[-1] == 1
    assert len(tried) <= 1 + math.log2(size)


def test_smaller_micro_batches_give_the_same_loss_and_nearly_the_same_weights(
    make, assign: Assign, capsys
) -> None:
    spec = with_train(make.spec(num_steps=30), micro_batch=4, accumulation=2)
    losses, weights = [], []
    for size in (4, 2, 1):
        training = loop.load(assign(spec))
        stepper = loop.Stepper(training)
        stepper.micro_batch = size
        losses.append([stepper.step(step) for step in range(30)])
        weights.append(training.model.lm_head.weight.detach().numpy().copy())
    for other, others in zip(losses[1:], weights[1:], strict=True):
        assert np.abs(np.subtract(losses[0], other)).max() < 1e-3
        assert np.abs(weights[0] - others).max() < 1e-3


@pytest.mark.timeout(300)
def test_a_trainer_that_runs_out_of_memory_goes_on_with_smaller_micro_batches(
    make, assign: Assign, tmp_path: Path
) -> None:
    spec = wide_batch(make)
    straight = train(assign(spec, "straight"))[-1]
    assert straight["event"] == "finished"
    assert straight["inexact_from"] is None
    little = train(assign(with_train(spec, micro_batch=12, accumulation=4), "little"))[-1]
    needed, enough = int(str(straight["peak_memory_bytes"])), int(str(little["peak_memory_bytes"]))
    assert needed > enough + 50_000_000
    cap = (needed + enough) // 2
    *before, last = train(assign(spec, "capped", memory_bytes=cap))
    reduced = [event for event in before if event["event"] == "reduced"]
    begins = reduced[0]["step"]
    assert all(event["micro_batch"] in (24, 12, 6, 3, 1) for event in reduced)
    assert last["event"] == "finished"
    assert last["inexact_from"] == begins
    # Pages of libraries that are read when their code first runs come on top, some 20 MB.
    assert int(str(last["peak_memory_bytes"])) < 1.1 * cap
    assert abs(float(str(last["loss"])) - float(str(straight["loss"]))) < 1e-3
    capped, whole = (read_tensors(Path(str(one["file"]))) for one in (last, straight))
    assert all(np.allclose(capped[name], whole[name], atol=1e-3) for name in whole)

    end = Path(str(last["end"]))
    state = TrainerState.model_validate_json((end / "state.json").read_bytes())
    assert state.inexact_from == begins
    kept = CurveEnds(tmp_path / "ends", cap_bytes=10**9)
    conditions = Conditions.of(assign(spec), parent=None)
    assert not kept.keep(spec, conditions, end)
    assert kept.lay_out(spec, conditions, tmp_path / "laid") is None
    longer = with_train(spec, num_steps=4)
    resume = tmp_path / "resume"
    end.rename(resume)
    renamed = state.model_copy(update={"spec": longer.digest})
    (resume / "state.json").write_text(renamed.model_dump_json())
    assert train(assign(longer, "longer", resume=str(resume)))[-1]["inexact_from"] == begins


@pytest.mark.timeout(120)
def test_what_fits_in_no_way_is_a_failure_with_the_memory_that_it_had(make, assign: Assign) -> None:
    shape = make.spec().shape.model_copy(update={"hidden_size": 512, "ffn_width": 2048})
    spec = make.spec(num_steps=3).model_copy(update={"shape": shape})
    (last,) = train(assign(spec, memory_bytes=1_000_000))
    assert last["event"] == "failed"
    assert last["code"] == "out_of_memory"
    assert 100_000_000 < int(str(last["peak_memory_bytes"])) < 1_000_000_000


@pytest.mark.skipif(platform.system() != "Linux", reason="the limit on private memory is Linux's")
def test_a_limit_leaves_room_for_the_threads_that_compute() -> None:
    """OpenMP ends a process that cannot start them, and nobody learns that memory was short."""
    compute = """
import psutil
import torch
from worker.trainer.loop import prepare_torch
from worker.trainer.memory import limit
prepare_torch("cpu", 4)
left = torch.randn(300, 300)
limit("cpu", psutil.Process().memory_info().rss + 4_000_000)
try:
    kept = [left @ left for _ in range(1000)]
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", compute],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=compute_environment(4),
    )
    assert "can't allocate memory" in done.stdout


def test_the_peak_counts_what_was_freed_again() -> None:
    block = np.ones(100_000_000, np.uint8)
    held = psutil.Process().memory_info().rss
    assert peak_bytes("cpu") >= 0.98 * held
    del block
    assert peak_bytes("cpu") >= 0.98 * held


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
        RuntimeError("Could not allocate memory to change Tensor SizesAndStrides!"),
        ImportError("lib.so: failed to map segment from shared object: Cannot allocate memory"),
    ],
)
def test_every_way_to_say_that_memory_is_short_is_understood(error: Exception) -> None:
    assert classify(error) == "out_of_memory"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other ways")
def test_steps_use_the_memory_of_the_step_before() -> None:
    """A trainer of its own: what other tests left in this process would say nothing."""
    script = """
import resource
import torch
from worker.trainer.memory import give_back, keep_freed, peak_bytes

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [torch.ones(1 << 20) for _ in range(16)]
    del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

keep_freed()
first = faults_of_a_step()
later = [faults_of_a_step() for _ in range(8)][4:]
kept = resident()
give_back("cpu")
print(first, max(later), kept - resident())
"""
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=compute_environment(1),
    )
    first, later, returned = map(int, found.stdout.split())
    assert later < 100 < first
    assert returned > 50_000_000
