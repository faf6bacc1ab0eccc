"""Ends of curves: a longer training that starts from one gives the bits of one from the start."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from protocol.specs import ExpertSpec
from shared.blobs import piece_list_of
from shared.shards import BOS_ID, write_shard
from shared.tensorfiles import read_tensors
from shared.training.assignment import TrainerAssignment
from shared.training.ends import Conditions, CurveEnds
from worker.trainer import loop

CAP = 10**8
SHORT, LONG = 5, 9


@pytest.fixture(autouse=True)
def one_thread() -> None:
    loop.prepare_torch("cpu", 1)


@pytest.fixture
def assign(tmp_path: Path) -> Callable[..., TrainerAssignment]:
    rng = np.random.default_rng(0)
    texts = [(np.concatenate([[BOS_ID], rng.integers(2, 256, 99)]), 200) for _ in range(20)]
    write_shard(tmp_path / "shard", texts, vocab_size=256)

    def build(spec: ExpertSpec, name: str, **changes: object) -> TrainerAssignment:
        values: dict[str, object] = {
            "spec": spec,
            "shard": str(tmp_path / "shard"),
            "parent": None,
            "parent_shape": None,
            "resume": None,
            "folder": str(tmp_path / name),
            "device": "cpu",
            "num_threads": 1,
            "checkpoint_seconds": 3600.0,
        }
        return TrainerAssignment.model_validate(values | changes)

    return build


def stopping_at(make, num_steps: int) -> ExpertSpec:
    spec = make.spec(ffn_width=48)
    train = spec.train.model_copy(update={"num_steps": num_steps, "schedule_steps": 12})
    return spec.model_copy(update={"nested_widths": (16, 32, 48), "train": train})


def run(assignment: TrainerAssignment, capsys) -> dict[str, object]:
    """The `finished` event, and how it began under "began"."""
    loop.run(
        loop.load(assignment),
        folder=Path(assignment.folder),
        checkpoint_seconds=assignment.checkpoint_seconds,
        stopping=lambda: False,
    )
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {**events[-1], "began": events[0]["step"]}


def digest(event: dict[str, object]) -> str:
    return piece_list_of(Path(str(event["file"]))).ref().digest


@pytest.fixture
def kept(make, assign, tmp_path: Path, capsys) -> CurveEnds:
    """Ends, of which one is that of a short training."""
    short = assign(stopping_at(make, SHORT), "short")
    finished = run(short, capsys)
    ends = CurveEnds(tmp_path / "ends", cap_bytes=CAP)
    assert ends.keep(short.spec, Conditions.of(short, parent=None), Path(str(finished["end"])))
    shutil.rmtree(tmp_path / "short")
    return ends


def test_a_longer_training_from_an_end_has_the_bits_and_curve_of_one_from_the_start(
    make, assign, kept: CurveEnds, tmp_path: Path, capsys
) -> None:
    spec = stopping_at(make, LONG)
    whole = run(assign(spec, "whole"), capsys)
    assignment = assign(spec, "long")
    conditions = Conditions.of(assignment, parent=None)
    assert kept.lay_out(spec, conditions, tmp_path / "prefix") == SHORT
    resumed = run(assign(spec, "long", resume=str(tmp_path / "prefix")), capsys)
    assert (whole["began"], resumed["began"]) == (0, SHORT)
    assert digest(resumed) == digest(whole)
    assert resumed["curve"] == whole["curve"]
    assert [point["step"] for point in whole["curve"]] == list(range(1, LONG + 1))
    for name in ("model.safetensors", "optimizer.safetensors"):
        ends = [read_tensors(Path(str(event["end"])) / name) for event in (whole, resumed)]
        assert all(np.array_equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_the_last_step_of_a_whole_schedule_leaves_no_end(make, assign, capsys) -> None:
    assert run(assign(stopping_at(make, 12), "all"), capsys)["end"] is None


def test_a_shorter_training_starts_afresh(make, assign, kept: CurveEnds, tmp_path: Path) -> None:
    spec = stopping_at(make, SHORT - 1)
    conditions = Conditions.of(assign(spec, "x"), parent=None)
    assert kept.lay_out(spec, conditions, tmp_path / "prefix") is None
    assert kept.size_on_disk() > 0


@pytest.mark.parametrize(
    "change",
    [{"curve": "1" * 64}, {"parent": "2" * 64}, {"num_threads": 2}, {"software": "another"}],
)
def test_an_end_made_under_other_conditions_is_not_used(
    make, assign, kept: CurveEnds, tmp_path: Path, change: dict[str, object]
) -> None:
    spec = stopping_at(make, LONG)
    conditions = Conditions.of(assign(spec, "x"), parent=None)
    assert kept.lay_out(spec, conditions, tmp_path / "other") == SHORT
    changed = conditions.model_copy(update=change)
    assert kept.lay_out(spec, changed, tmp_path / "prefix") is None
    assert not (tmp_path / "prefix").exists()


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: flip_a_bit(place / "model.safetensors"),
        lambda place: flip_a_bit(place / "optimizer.safetensors"),
        lambda place: (place / "optimizer.safetensors").unlink(),
        lambda place: (place / "end.json").write_text("{}"),
        lambda place: place.rename(place.with_name("step-00000006")),
    ],
)
def test_a_damaged_end_is_deleted_and_training_starts_normally(
    make, assign, kept: CurveEnds, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    spec = stopping_at(make, LONG)
    [place] = (tmp_path / "ends").glob("*/step-*")
    damage(place)
    conditions = Conditions.of(assign(spec, "x"), parent=None)
    assert kept.lay_out(spec, conditions, tmp_path / "prefix") is None
    assert not (tmp_path / "prefix").exists()
    assert list((tmp_path / "ends").glob("*/step-*")) == []


def test_an_end_of_another_spec_in_the_place_of_one_is_not_used(
    make, assign, kept: CurveEnds, tmp_path: Path
) -> None:
    other = stopping_at(make, LONG).model_copy(update={"domain": "another"})
    conditions = Conditions.of(assign(stopping_at(make, LONG), "x"), parent=None)
    assert kept.lay_out(other, conditions, tmp_path / "prefix") is None


def test_ends_used_longest_ago_go_when_there_are_too_many_bytes(
    make, assign, kept: CurveEnds, tmp_path: Path, capsys
) -> None:
    one = kept.size_on_disk()
    small = CurveEnds(tmp_path / "ends", cap_bytes=2 * one + one // 2)
    conditions = Conditions.of(assign(stopping_at(make, LONG), "x"), parent=None)
    for steps in (6, 7):
        if steps == 7:
            kept.lay_out(stopping_at(make, SHORT), conditions, tmp_path / "prefix")
        assignment = assign(stopping_at(make, steps), f"of {steps}")
        end = Path(str(run(assignment, capsys)["end"]))
        small.keep(assignment.spec, conditions, end)
    found = sorted(path.name for path in (tmp_path / "ends").glob("*/step-*"))
    assert found == ["step-00000005", "step-00000007"]
    assert small.make_room(1) == one
    assert not CurveEnds(tmp_path / "none", cap_bytes=10).keep(assignment.spec, conditions, end)
