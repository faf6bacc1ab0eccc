"""The training benchmark at its smallest: real processes, the same losses, figures that fit."""

import json
from pathlib import Path

import pytest

from benchmarks.training.main import main
from benchmarks.training.report import rows
from benchmarks.training.rounds import BenchmarkError, Course, check_same_work
from benchmarks.training.sides import TITLES, Orders, side
from benchmarks.training.work import make_assignment
from protocol.specs import ModelShape

SMALLEST = "--rounds 2 --steps 1 --lives 1 --hidden 32 --layers 1 --ffn 32 --vocab 64 --context 16"


class CountedOrders(Orders):
    """Asks for the steps of `counts`, and keeps the losses."""

    def __init__(self, *counts: int) -> None:
        self._counts = iter(counts)
        self.losses: list[float] = []

    def next(self) -> int:
        return next(self._counts, 0)

    def done(self, loss: float) -> None:
        self.losses.append(loss)


def test_every_side_sees_the_same_losses(tmp_path: Path) -> None:
    shape = ModelShape(
        vocab_size=64, hidden_size=32, num_layers=1, num_heads=1, ffn_width=32, context_length=16
    )
    assignment = make_assignment(tmp_path, shape=shape, batch=2, compiled=False, num_threads=1)
    losses = {}
    for name in TITLES:
        orders = CountedOrders(1, 1, 3, 1)
        side(name)(assignment, orders, 6)
        losses[name] = orders.losses
    assert all(len(set(found)) == 4 for found in losses.values())
    check_same_work(losses)


def test_a_run_says_how_ours_compares_with_a_peer(capsys: pytest.CaptureFixture[str]) -> None:
    main([*SMALLEST.split(), "--sides", "loop", "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["rows"]] == ["ours", "loop"]
    assert all(row["tokens_per_cpu_second"] > 0 for row in found["rows"])
    assert [row["ratio"] and row["ratio"]["pairs"] for row in found["rows"]] == [None, 2]


def test_sides_that_did_other_work_have_no_figures() -> None:
    check_same_work({"ours": [5.0, 4.0], "loop": [5.00005, 4.0]})
    with pytest.raises(BenchmarkError, match=r"step 1: ours 4\.000000, loop 4\.000200"):
        check_same_work({"ours": [5.0, 4.0], "loop": [5.0, 4.0002]})


def test_ours_over_a_peer_is_above_one_when_the_peer_needs_more_cpu_time() -> None:
    ours, peer = (Course(cpu, (1.0,), (5.0,)) for cpu in ((1.0, 2.0), (1.5, 3.0)))
    first, second = rows({"ours": ours, "loop": peer}, tokens_per_round=300)
    assert (first.tokens_per_cpu_second, second.tokens_per_cpu_second) == (
        200,
        pytest.approx(400 / 3),
    )
    assert first.ratio is None
    assert second.ratio is not None
    assert second.ratio.mean == pytest.approx(1.5)
