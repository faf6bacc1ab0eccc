"""The transfer benchmark runs: it is a command of the documentation, not only of its day."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.transfer.figures import CPU_PARTS
from benchmarks.transfer.methods import METHODS

ROOT = Path(__file__).parents[2]
SMALL = {"megabytes": 5, "rounds": 1, "training-rounds": 1, "training-seconds": 0.5}


@pytest.mark.timeout(300)
def test_a_small_file_goes_all_ways_and_training_goes_on(tmp_path: Path) -> None:
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    words += ["--folder", str(tmp_path), "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.transfer", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    found = {one["name"]: one for one in report["transfers"]}
    assert set(found) == {method.name for method in METHODS}
    assert found["raw"]["ratios"] == [1.0]
    for one in found.values():
        assert one["median"] > 0
        assert set(one["cpu_seconds"]) == set(CPU_PARTS)
    training = report["training"]
    assert training["low"] <= training["ratio"] <= training["high"]
    assert 0 < training["served_bytes_per_second"] < 3e6
    assert list(tmp_path.iterdir()) == []
