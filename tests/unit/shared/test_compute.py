"""The environment in which torch is started."""

import os

import pytest

from shared.compute import compute_environment


def test_a_computing_child_gets_our_environment_its_threads_and_gives_waiting_cores_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("HDEE_TEST", "kept")
    environment = compute_environment(3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["GOMP_SPINCOUNT"] == "2000"
    assert environment["HDEE_TEST"] == "kept"
    assert os.environ["OMP_NUM_THREADS"] == "64"
