"""The load benchmark runs: it is a command of the documentation, not only a script of its day."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = {
    "workers": 20,
    "join-burst": 10,
    "join-seconds": 1,
    "seconds": 2,
    "heartbeats": 10,
    "leases": 5,
    "specs": 60,
}


def test_a_small_load_is_carried_without_errors():
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", *words, "--format", "json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["failed"] == 0
    assert (report["joined"], report["alive"], report["expired"]) == (20, 20, 0)
    phases = {phase["name"]: phase for phase in report["phases"]}
    steady = phases["steady"]
    assert steady["routes"]["heartbeat"]["count"] > 0
    assert steady["events"]["acknowledged"] > 0
    assert 0 < steady["server_cpu_share"] < 2
    assert {"heartbeat", "lease", "acknowledge", "submit", "release"} <= set(report["costs"])
