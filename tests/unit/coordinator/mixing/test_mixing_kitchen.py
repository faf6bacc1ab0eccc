"""What mixing leaves on the way."""

import os
import subprocess
import sys

from coordinator.mixing.kitchen import sweep


def test_what_a_killed_process_left_goes_and_what_is_in_use_stays(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f".mixing-{os.getpid()}-a", f".mixing-{gone.pid}-b", ".mixing-abc", "blobs"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {names[0], "blobs"}
