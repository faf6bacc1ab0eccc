"""The scoring benchmark at its smallest: real checkpoints, both ways, figures that fit."""

import json

import pytest
import torch

from benchmarks.scoring.main import main
from benchmarks.scoring.rounds import BenchmarkError, check_agreement

SMALLEST = (
    "--rounds 2 --recomputed-rounds 2 --domains 2 --test-windows 3 --dev-windows 2 "
    "--hidden 32 --layers 1 --ffn 16 --vocab 64 --context 16"
)


@pytest.fixture(autouse=True)
def same_threads():
    """The benchmark sets the process's threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_an_eighth_checkpoint_costs_its_own_passes_and_one_model_is_in_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main([*SMALLEST.split(), "--format", "json"])
    report = json.loads(capsys.readouterr().out)
    found = report["found"]
    assert found["eighth"]["passes_of_seven"] == 7 * 2 * 2
    assert found["eighth"]["passes"] == 2 * 2
    assert found["eighth"]["most_models"] == 1
    assert found["difference"] <= 1e-6
    assert report["over_bare"]["pairs"] == report["recomputed_over_ours"]["pairs"] == 2


def test_perplexities_that_differ_end_the_benchmark() -> None:
    key = ("MHe-IHo", "average", "domain-0")
    assert check_agreement({key: 10.0}, {key: 10.0 + 5e-6}) == pytest.approx(5e-7, rel=1e-3)
    with pytest.raises(BenchmarkError, match="MHe-IHo, average, domain-0"):
        check_agreement({key: 10.0}, {key: 10.0 + 2e-5})
