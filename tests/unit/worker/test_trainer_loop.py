"""Training in this process: what it writes, what it freezes, what it refuses to resume."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from protocol.specs import ExpertSpec, ModelShape
from shared import model as models
from shared.ensemble import perplexity
from shared.likelihood import label_log_likelihoods
from shared.shards import BOS_ID, Shard, ShardError, write_shard
from shared.tensorfiles import TensorFileError, read_tensors, write_tensors
from shared.training.assignment import BadInput, TrainerAssignment
from worker.trainer import loop
from worker.trainer.failures import classify
from worker.trainer.watch import Watch

Assign = Callable[..., TrainerAssignment]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    loop.prepare_torch("cpu", 1)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Documents that repeat themselves, so that there is something to learn."""
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(20):
        tokens = np.tile(rng.integers(2, 60, 7), 10)
        texts.append((np.concatenate([[BOS_ID], tokens]), 200))
    write_shard(tmp_path / "train.safetensors", texts, vocab_size=256)
    return tmp_path / "train.safetensors"


@pytest.fixture
def assign(tmp_path: Path, shard: Path) -> Assign:
    def build(spec: ExpertSpec, **changes: object) -> TrainerAssignment:
        values: dict[str, object] = {
            "spec": spec,
            "shard": str(shard),
            "parent": None,
            "parent_shape": None,
            "resume": None,
            "folder": str(tmp_path / "work"),
            "device": "cpu",
            "num_threads": 1,
            "checkpoint_seconds": 3600.0,
        }
        return TrainerAssignment.model_validate({**values, **changes})

    return build


def with_train(spec: ExpertSpec, **train: object) -> ExpertSpec:
    return spec.model_copy(update={"train": spec.train.model_copy(update=train)})


def run(assignment: TrainerAssignment, *, stop_at: int | None = None) -> loop.TrainerState:
    training = loop.load(assignment)
    steps = iter(range(training.state.step, 10**9))
    return loop.run(
        training,
        folder=Path(assignment.folder),
        checkpoint_seconds=assignment.checkpoint_seconds,
        stopping=lambda: stop_at is not None and next(steps) >= stop_at,
    )


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_training_finishes_with_an_expert_that_has_learned(make, assign: Assign, capsys) -> None:
    spec = with_train(make.spec(), num_steps=60, schedule_steps=60, peak_learning_rate=5e-3)
    state = run(assign(spec))
    events = said(capsys)
    assert events[1]["event"] == "progress"
    assert {event["event"] for event in events[1:-1]} == {"progress"}
    assert events[0] == {"event": "started", "step": 0, "num_steps": 60}
    assert events[1].keys() == {
        "event",
        "step",
        "num_steps",
        "loss",
        "tokens_per_second",
        "eta_seconds",
        "peak_memory_bytes",
    }
    assert events[-1]["event"] == "finished"
    assert events[-1]["step"] == state.step == 60
    assert events[-1]["tokens_per_second"] > 0
    assert events[-1]["train_seconds"] > 0
    assert events[1]["loss"] == pytest.approx(np.log(256), abs=0.1)
    assert events[-1]["loss"] < 5
    models.load(Path(str(events[-1]["file"])), spec.shape)


def test_a_nested_seed_learns_at_every_width(make, assign: Assign, shard: Path, capsys) -> None:
    spec = with_train(
        make.spec(ffn_width=48), num_steps=80, schedule_steps=80, peak_learning_rate=5e-3
    ).model_copy(update={"nested_widths": (16, 32, 48)})
    run(assign(spec))
    file = Path(str(said(capsys)[-1]["file"]))
    text = Shard.read(shard, vocab_size=256)
    for width in spec.nested_widths:
        shape = spec.shape.model_copy(update={"ffn_width": width})
        trained, fresh = models.load(file, shape), models.build(shape, rng_seed=0)
        before, after = (
            perplexity(label_log_likelihoods(model, text, length=32, batch=8))
            for model in (fresh, trained)
        )
        assert after < before / 3


GROUPED = {"num_heads": 4, "num_kv_heads": 2, "tied_embeddings": True, "rope_theta": 5e5}


@pytest.mark.parametrize("changes", [{}, GROUPED], ids=["plain", "grouped"])
@pytest.mark.parametrize(
    ("trains", "frozen"),
    [
        ("all", ()),
        ("ffn", ("embed_tokens", "self_attn", "norm", "lm_head")),
        ("ffn_embeddings", ("self_attn", "norm")),
    ],
)
def test_frozen_tensors_stay_bit_equal_to_the_parents(
    make,
    assign: Assign,
    tmp_path: Path,
    capsys,
    trains: str,
    frozen: tuple[str, ...],
    changes: dict[str, object],
) -> None:
    wide = make.spec(ffn_width=96).shape.model_copy(update=changes)
    parent = tmp_path / "parent.safetensors"
    models.save(models.build(wide, rng_seed=9), parent)
    spec = make.spec(parent="0" * 64, ffn_width=64, num_steps=3)
    shape = wide.model_copy(update={"ffn_width": 64})
    spec = spec.model_copy(update={"trains": trains, "shape": shape})
    assignment = assign(spec, parent=str(parent), parent_shape=wide)
    run(assignment, stop_at=2)
    stopped = said(capsys)
    resume = str(stopped[-2]["folder"])
    run(assignment.model_copy(update={"resume": resume}))
    trained = read_tensors(Path(str(said(capsys)[-1]["file"])))
    for name, before in read_tensors(parent).items():
        narrowed = before[tuple(slice(0, extent) for extent in trained[name].shape)]
        expected = any(part in name for part in frozen)
        assert np.array_equal(trained[name], narrowed) == expected, name


def test_a_stop_before_the_first_step_still_leaves_a_checkpoint(
    make, assign: Assign, capsys
) -> None:
    state = run(assign(make.spec()), stop_at=0)
    events = said(capsys)
    assert state.step == 0
    assert [event["event"] for event in events] == ["started", "checkpoint", "stopped"]
    assert events[1]["loss"] is None
    run(assign(make.spec(), resume=str(events[1]["folder"])))
    assert said(capsys)[-1]["event"] == "finished"


def test_a_stop_at_the_resumed_step_keeps_that_checkpoint(make, assign: Assign, capsys) -> None:
    run(assign(make.spec()), stop_at=5)
    first = said(capsys)[-2]
    run(assign(make.spec(), resume=str(first["folder"])), stop_at=0)
    assert said(capsys)[-2] == first
    assert (Path(str(first["folder"])) / "state.json").exists()


def test_the_speed_is_that_of_this_process_and_before_its_first_step_that_of_earlier_ones(
    make, assign: Assign, capsys
) -> None:
    spec = make.spec(num_steps=20)
    run(assign(spec), stop_at=5)
    folder = Path(str(said(capsys)[-2]["folder"]))
    change_state(folder, train_seconds=1e6)
    resumed = assign(spec, resume=str(folder))
    slow = 5 * spec.train.tokens_per_step / 1e6
    for assignment, speed in ((resumed, slow), (assign(spec), 0.0)):
        training = loop.load(assignment)
        assert Watch(training).tokens_per_second(training.state) == pytest.approx(speed)
    run(resumed)
    events = said(capsys)
    assert events[-1]["train_seconds"] > 1e6
    told = [event["tokens_per_second"] for event in events if "tokens_per_second" in event]
    assert min(told) > 1000 * slow


def test_the_newest_two_checkpoints_are_kept_and_leftovers_removed(
    make, assign: Assign, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "work" / "checkpoints"
    for leftover in (".step-00000003", "step-00000099"):
        (folder / leftover).mkdir(parents=True)
    run(assign(make.spec(num_steps=6), checkpoint_seconds=1e-9))
    named = [event["step"] for event in said(capsys) if event["event"] == "checkpoint"]
    assert named == [1, 2, 3, 4, 5]
    assert sorted(entry.name for entry in folder.iterdir()) == ["step-00000004", "step-00000005"]
    assert sorted(file.name for file in (folder / "step-00000005").iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def change_state(folder: Path, **changes: object) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, **changes}))


def change_tensor(folder: Path, file: str, name: str, value: float | None) -> None:
    tensors = {key: tensor.copy() for key, tensor in read_tensors(folder / file).items()}
    if value is None:
        del tensors[name]
    else:
        tensors[name].reshape(-1)[0] = value
    write_tensors(folder / file, tensors)


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (lambda f: change_state(f, spec="1" * 64), BadInput, "checkpoint of spec 1111"),
        (lambda f: change_state(f, step=21), BadInput, "step 21, expected at most 20"),
        (lambda f: change_state(f, format=2), BadInput, "format"),
        (lambda f: change_state(f, extra=1), BadInput, "extra"),
        (lambda f: (f / "state.json").write_text(" " * 5000), BadInput, "more than 4096"),
        (lambda f: (f / "state.json").unlink(), FileNotFoundError, "state.json"),
        (
            lambda f: change_tensor(f, "model.safetensors", "lm_head.weight", None),
            TensorFileError,
            "'lm_head.weight' is missing",
        ),
        (
            lambda f: change_tensor(f, "model.safetensors", "lm_head.weight", float("nan")),
            TensorFileError,
            "lm_head.weight has NaN",
        ),
        (
            lambda f: change_tensor(
                f, "optimizer.safetensors", "exp_avg.model.norm.weight", float("inf")
            ),
            TensorFileError,
            "exp_avg.model.norm.weight has NaN or infinite",
        ),
        (
            lambda f: change_tensor(
                f, "optimizer.safetensors", "exp_avg_sq.model.norm.weight", -1.0
            ),
            BadInput,
            "exp_avg_sq.model.norm.weight has negative",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    make, assign: Assign, tmp_path: Path, damage, error: type[Exception], match: str
) -> None:
    run(assign(make.spec()), stop_at=2)
    resume = tmp_path / "resume"
    shutil.copytree(tmp_path / "work" / "checkpoints" / "step-00000002", resume)
    damage(resume)
    with pytest.raises(error, match=match) as caught:
        loop.load(assign(make.spec(), resume=str(resume)))
    assert classify(caught.value) == "bad_input"


def test_a_checkpoint_of_another_spec_is_refused(make, assign: Assign, tmp_path: Path) -> None:
    run(assign(make.spec()), stop_at=2)
    resume = str(tmp_path / "work" / "checkpoints" / "step-00000002")
    with pytest.raises(BadInput, match="expected"):
        loop.load(assign(make.spec(rng_seed=1), resume=resume))


def test_a_training_that_diverges_stops_without_a_checkpoint(
    make, assign: Assign, tmp_path: Path
) -> None:
    shape = make.spec().shape
    model = models.build(shape, rng_seed=0)
    with torch.no_grad():
        model.lm_head.weight.fill_(3e38)
    models.save(model, tmp_path / "parent.safetensors")
    assignment = assign(
        make.spec(parent="0" * 64), parent=str(tmp_path / "parent.safetensors"), parent_shape=shape
    )
    with pytest.raises(loop.Diverged, match="step 0") as caught:
        run(assignment)
    assert classify(caught.value) == "diverged"
    assert list((tmp_path / "work" / "checkpoints").iterdir()) == []


def test_a_parent_that_is_not_finite_is_refused(make, assign: Assign, tmp_path: Path) -> None:
    shape = make.spec().shape
    model = models.build(shape, rng_seed=0)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    models.save(model, tmp_path / "parent.safetensors")
    with pytest.raises(TensorFileError, match=r"model\.norm\.weight has NaN"):
        loop.load(
            assign(
                make.spec(parent="0" * 64),
                parent=str(tmp_path / "parent.safetensors"),
                parent_shape=shape,
            )
        )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"parent": "x"}, "expected both"),
        ({"num_threads": 0}, "num_threads"),
        ({"checkpoint_seconds": 0.0}, "checkpoint_seconds"),
        ({"device": "tpu"}, "device"),
        ({"token": "secret"}, "token"),
    ],
)
def test_an_assignment_that_contradicts_itself_is_refused(
    make, assign: Assign, change: dict[str, object], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        assign(make.spec(), **change)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"ffn_width": 32}, "ffn_width 32"), ({"vocab_size": 300}, "parent_shape.vocab_size 300")],
)
def test_a_parent_of_another_shape_is_refused(
    make, assign: Assign, change: dict[str, int], match: str
) -> None:
    spec = make.spec(parent="0" * 64)
    shape: ModelShape = spec.shape.model_copy(update=change)
    with pytest.raises(ValueError, match=match):
        assign(spec, parent="p", parent_shape=shape)


def test_an_expert_without_its_parents_file_is_refused(make, assign: Assign) -> None:
    with pytest.raises(ValueError, match="exactly when the spec names one"):
        assign(make.spec(parent="0" * 64))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (OSError(errno.EIO, "Input/output error"), "trainer_failed"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "bad_input"),
        (ShardError("tokens"), "bad_input"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "out_of_memory"),
        (RuntimeError("something else"), "trainer_failed"),
        (KeyError("x"), "trainer_failed"),
    ],
)
def test_every_failure_has_a_code(error: Exception, code: str) -> None:
    assert classify(error) == code


def test_a_batch_that_fits_no_memory_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert classify(caught.value) == "out_of_memory"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_on_a_gpu_repeats_itself_bit_for_bit(make, assign: Assign, capsys) -> None:
    loop.prepare_torch("cuda", 1)
    experts = []
    for _ in range(2):
        run(assign(make.spec(), device="cuda"))
        experts.append(Path(str(said(capsys)[-1]["file"])).read_bytes())
    assert experts[0] == experts[1]
