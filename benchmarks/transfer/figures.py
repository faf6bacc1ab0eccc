"""Medians, ratios of pairs, and an interval. Pure."""

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CPU_PARTS = ("sender python", "sender p2pd", "fetcher python", "fetcher p2pd")
_RESAMPLES = 4000


@dataclass(frozen=True)
class Transfer:
    """One transfer: seconds, CPU seconds by CPU_PARTS, bytes by which the fetcher's memory grew."""

    seconds: float
    written_seconds: float | None
    cpu_seconds: Mapping[str, float]
    python_bytes: int | None
    p2pd_bytes: int | None


@dataclass(frozen=True)
class Summary:
    """Of one method: megabytes (10^6 bytes) a second, its ratios to the raw stream's, and costs.

    `ratios` are of pairs of the same round. `written` is the rate without the sync in the end,
    where it is known. CPU seconds are medians for each 256 MiB; memory is the most of all rounds.
    """

    name: str
    title: str
    median: float
    best: float
    written: float | None
    ratios: tuple[float, ...]
    ratio: float
    cpu_seconds: Mapping[str, float]
    python_bytes: int | None
    p2pd_bytes: int | None


def summarize(
    name: str, title: str, transfers: Sequence[Transfer], raw: Sequence[Transfer], *, size: int
) -> Summary:
    """From the transfers of one method and those of the raw stream in the same rounds."""
    rates = [size / 1e6 / one.seconds for one in transfers]
    written = [one.written_seconds for one in transfers if one.written_seconds is not None]
    ratios = tuple(base.seconds / one.seconds for one, base in zip(transfers, raw, strict=False))
    scale = 256 * 2**20 / size
    return Summary(
        name=name,
        title=title,
        median=statistics.median(rates),
        best=max(rates),
        written=size / 1e6 / statistics.median(written) if written else None,
        ratios=ratios,
        ratio=statistics.median(ratios),
        cpu_seconds={
            part: scale * statistics.median(one.cpu_seconds.get(part, 0.0) for one in transfers)
            for part in CPU_PARTS
        },
        python_bytes=_most([one.python_bytes for one in transfers]),
        p2pd_bytes=_most([one.p2pd_bytes for one in transfers]),
    )


@dataclass(frozen=True)
class Slowdown:
    """Training steps a second in pairs of (idle, serving), and what the agent did meanwhile.

    `low` and `high` bound the ratio of the sums in 95 % of bootstrap samples of the pairs.
    """

    pairs: tuple[tuple[float, float], ...]
    ratio: float
    low: float
    high: float
    served_bytes_per_second: float
    agent_cpu_share: float


def slowdown(
    pairs: Sequence[tuple[float, float]], *, served: float, agent_cpu_share: float
) -> Slowdown:
    """The speed that training keeps while its agent serves `served` bytes a second."""
    draw = random.Random(1)
    samples = sorted(_ratio(draw.choices(pairs, k=len(pairs))) for _ in range(_RESAMPLES))
    tail = int(0.025 * _RESAMPLES)
    return Slowdown(
        pairs=tuple(pairs),
        ratio=_ratio(pairs),
        low=samples[tail],
        high=samples[-tail - 1],
        served_bytes_per_second=served,
        agent_cpu_share=agent_cpu_share,
    )


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return sum(serving for _, serving in pairs) / sum(idle for idle, _ in pairs)


def _most(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None
