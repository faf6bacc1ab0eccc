"""What was measured is kept for a worker that has to hurry, and for nobody else."""

from pathlib import Path

import pytest

from protocol.capability import Capability
from worker.measured import FILE, remember, remembered

FOUND = Capability(
    device="cpu",
    device_name="abacus",
    num_threads=2,
    total_memory_bytes=10**9,
    free_memory_bytes=10**8,
    free_disk_bytes=10**9,
    flops_per_second=1e9,
    bfloat16=False,
)


def test_what_was_measured_with_the_same_flags_is_there_again(tmp_path: Path) -> None:
    assert remembered(tmp_path / FILE, device=None, num_threads=2) is None
    remember(tmp_path / FILE, FOUND, device=None, num_threads=2)
    assert remembered(tmp_path / FILE, device=None, num_threads=2) == FOUND


@pytest.mark.parametrize(("device", "num_threads"), [("cpu", 2), (None, 1), ("cuda:1", 2)])
def test_other_flags_are_measured_anew(
    tmp_path: Path, device: str | None, num_threads: int
) -> None:
    remember(tmp_path / FILE, FOUND, device=None, num_threads=2)
    assert remembered(tmp_path / FILE, device=device, num_threads=num_threads) is None


@pytest.mark.parametrize("torn", [b"", b"{", b'{"device": null}', b"\xff" * 20_000])
def test_a_damaged_note_is_none(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / FILE).write_bytes(torn)
    assert remembered(tmp_path / FILE, device=None, num_threads=2) is None


def test_a_disk_that_takes_nothing_stops_nobody(tmp_path: Path) -> None:
    remember(tmp_path / "missing" / FILE, FOUND, device=None, num_threads=2)
