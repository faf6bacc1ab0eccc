"""Medians, ratios and the interval of the transfer benchmark."""

import pytest

from benchmarks.transfer.figures import CPU_PARTS, Transfer, slowdown, summarize

SIZE = 512 * 2**20


def transfer(seconds: float, *, cpu: float = 1.0, memory: int | None = None) -> Transfer:
    return Transfer(
        seconds=seconds,
        written_seconds=None,
        cpu_seconds={"sender python": cpu},
        python_bytes=memory,
        p2pd_bytes=None,
    )


def test_ratios_are_of_pairs_of_the_same_round() -> None:
    raw = [transfer(1.0), transfer(2.0), transfer(4.0)]
    ours = [transfer(2.0), transfer(2.0), transfer(2.0)]
    found = summarize("fetch", "fetch", ours, raw, size=SIZE)
    assert found.ratios == (0.5, 1.0, 2.0)
    assert found.ratio == 1.0
    assert found.median == found.best == pytest.approx(SIZE / 1e6 / 2.0)


def test_cpu_seconds_are_for_256_mebibytes_and_memory_is_the_most() -> None:
    ours = [transfer(1.0, cpu=3.0, memory=5), transfer(1.0, cpu=3.0, memory=7), transfer(1.0)]
    found = summarize("fetch", "fetch", ours, ours, size=SIZE)
    assert found.cpu_seconds == {part: 1.5 * (part == "sender python") for part in CPU_PARTS}
    assert (found.python_bytes, found.p2pd_bytes, found.written) == (7, None, None)


def test_the_interval_holds_the_ratio_and_grows_with_the_noise() -> None:
    calm = slowdown([(100.0, 95.0), (101.0, 96.0)] * 5, served=2e6, agent_cpu_share=0.02)
    wild = slowdown([(100.0, 50.0), (100.0, 140.0)] * 5, served=2e6, agent_cpu_share=0.02)
    assert calm.low <= calm.ratio <= calm.high
    assert calm.ratio == pytest.approx(0.95, abs=0.01)
    assert wild.high - wild.low > 10 * (calm.high - calm.low)
