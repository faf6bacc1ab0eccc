"""Rows of routers that nobody trains: each against its definition, and on the sums alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mixing.evidence import StatisticsError, TokenCounts
from shared.mixing.routers import (
    MAX_CONDITION,
    condition_number,
    degeneracy,
    hidden_rows,
    noisy_rows,
    prompt_rows,
    ridge_rows,
)
from shared.mixing.statistics import GRID, ExpertStatistics

NAMES = ("cooking", "python", "plays", "law")
LAYERS = 2


def states_of(rng_seed: int, positions: int, hidden: int) -> np.ndarray:
    """float64 [LAYERS + 1, positions, hidden] on the grid, about a mean of their own."""
    rng = np.random.default_rng(rng_seed)
    drawn = rng.normal(size=(LAYERS + 1, positions, hidden)) + rng.normal(size=hidden)
    return np.rint(drawn / GRID) * GRID


def statistics_of(states: np.ndarray) -> ExpertStatistics:
    with_one = np.concatenate([states, np.ones((*states.shape[:2], 1))], axis=2)
    counts = TokenCounts(1, np.asarray([1, 0]))
    return ExpertStatistics(counts, with_one.transpose(0, 2, 1) @ with_one)


def experts(rng_seed: int, count: int, hidden: int = 5) -> dict[str, np.ndarray]:
    return {name: states_of(rng_seed + k, 20 + k, hidden) for k, name in enumerate(NAMES[:count])}


def of(states: dict[str, np.ndarray]) -> dict[str, ExpertStatistics]:
    return {name: statistics_of(one) for name, one in states.items()}


def least_squares(states: dict[str, np.ndarray], strength: float, *, bias: bool) -> np.ndarray:
    """[LAYERS + 1, experts, hidden (+ 1)], from all hidden states at once."""
    rows = []
    for layer in range(LAYERS + 1):
        x = np.concatenate([one[layer] for one in states.values()])
        if bias:
            x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        sizes = [one.shape[1] for one in states.values()]
        y = np.repeat(np.eye(len(states)), sizes, axis=0)
        ridge = np.sqrt(strength) * np.eye(x.shape[1])
        stacked = np.concatenate([x, ridge])
        wanted = np.concatenate([y, np.zeros((x.shape[1], len(states)))])
        weights = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
        rows.append((weights / np.linalg.norm(weights[: one_size(states)], axis=0)).T)
    return np.stack(rows)


def one_size(states: dict[str, np.ndarray]) -> int:
    return next(iter(states.values())).shape[2]


seeds = st.integers(0, 2**31)


@given(
    rng_seed=seeds,
    count=st.integers(1, 4),
    hidden=st.integers(2, 12),
    strength=st.sampled_from([1e-3, 1e-2, 1.0, 30.0]),
    bias=st.booleans(),
)
def test_ridge_from_sums_is_ridge_on_all_hidden_states(
    rng_seed, count, hidden, strength, bias
) -> None:
    states = experts(rng_seed, count, hidden)
    found = ridge_rows(of(states), strength=strength, bias=bias)
    expected = least_squares(states, strength, bias=bias)
    assert np.allclose(found.rows, expected[:, :, :hidden], rtol=1e-6, atol=1e-8)
    biases = expected[:, :, hidden] if bias else np.zeros(found.biases.shape)
    assert np.allclose(found.biases, biases, rtol=1e-6, atol=1e-8)
    assert np.allclose(np.linalg.norm(found.rows, axis=2), 1.0)


@given(rng_seed=seeds, order=st.permutations(range(4)))
def test_the_order_of_experts_is_the_order_of_rows(rng_seed, order) -> None:
    statistics = of(experts(rng_seed, 4))
    names = list(statistics)
    other = {names[k]: statistics[names[k]] for k in order}
    assert np.array_equal(hidden_rows(other), hidden_rows(statistics)[:, order])
    there, here = ridge_rows(other, bias=True), ridge_rows(statistics, bias=True)
    assert np.allclose(there.rows, here.rows[:, order], atol=1e-12)
    assert np.allclose(there.biases, here.biases[:, order], atol=1e-12)


@given(rng_seed=seeds)
def test_an_expert_that_left_leaves_no_trace_in_the_ridge(rng_seed) -> None:
    statistics = of(experts(rng_seed, 4))
    without = {name: one for name, one in statistics.items() if name != "plays"}
    again = {
        name: (one + statistics["plays"]) - statistics["plays"] for name, one in without.items()
    }
    left, never = ridge_rows(again, bias=True), ridge_rows(without, bias=True)
    assert left.rows.tobytes() == never.rows.tobytes()
    assert left.biases.tobytes() == never.biases.tobytes()


def test_ridge_tells_domains_apart_that_means_of_hidden_states_do_not() -> None:
    """Two domains on one side of the origin: far means are alike, the difference is small."""
    rng = np.random.default_rng(5)
    centre = 10 * np.eye(6)[0]
    shift = 0.5 * np.eye(6)[1]
    states = {
        name: np.rint((rng.normal(scale=0.1, size=(LAYERS + 1, 200, 6)) + at) / GRID) * GRID
        for name, at in (("cooking", centre + shift), ("python", centre - shift))
    }
    ridge = ridge_rows(of(states), bias=True)
    for number, one in enumerate(states.values()):
        scores = one @ ridge.rows.swapaxes(1, 2) + ridge.biases[:, None]
        assert (scores.argmax(axis=2) == number).mean() > 0.99
    assert degeneracy(hidden_rows(of(states)), list(states)) is not None


@given(rng_seed=seeds, count=st.integers(1, 4))
def test_hidden_rows_are_unit_means(rng_seed, count) -> None:
    states = experts(rng_seed, count)
    for number, one in enumerate(states.values()):
        mean = one.mean(axis=1)
        unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        assert np.allclose(hidden_rows(of(states))[:, number], unit)


def test_prompt_rows_point_from_the_negative_to_the_positive_prompts() -> None:
    rng = np.random.default_rng(3)
    positive = {name: rng.normal(size=(LAYERS + 1, 5)) for name in NAMES}
    negative = {"python": rng.normal(size=(LAYERS + 1, 5))}
    rows = prompt_rows(positive, negative)
    assert rows.shape == (LAYERS + 1, 4, 5)
    difference = positive["python"] - negative["python"]
    assert np.allclose(rows[:, 1], difference / np.linalg.norm(difference, axis=1, keepdims=True))
    assert np.array_equal(rows[:, 0], prompt_rows(positive)[:, 0])


def test_noisy_rows_of_an_expert_do_not_depend_on_the_others() -> None:
    sizes = {"num_layers": 3, "hidden_size": 64, "std": 0.02}
    rows = noisy_rows(NAMES, rng_seed=1, **sizes)
    assert rows.shape == (4, 4, 64)
    alone = noisy_rows(NAMES[2:3], rng_seed=1, **sizes)
    assert rows[:, 2:3].tobytes() == alone.tobytes()
    assert not np.allclose(rows, noisy_rows(NAMES, rng_seed=2, **sizes))
    assert len(np.unique(rows)) == rows.size


def test_noisy_rows_are_normal() -> None:
    rows = noisy_rows(NAMES, rng_seed=1, num_layers=9, hidden_size=500, std=0.5).ravel() / 0.5
    assert abs(rows.mean()) < 0.05
    assert abs(rows.std() - 1) < 0.03
    assert abs(np.mean(np.abs(rows) < 1) - 0.6827) < 0.02
    assert abs(np.mean(np.abs(rows) < 2) - 0.9545) < 0.01


def test_rows_alike_are_told_by_name() -> None:
    rng = np.random.default_rng(0)
    good = np.linalg.qr(rng.normal(size=(8, 4)))[0].T
    assert condition_number(good) == pytest.approx(1.0)
    assert degeneracy(good[None], NAMES) is None
    bad = good.copy()
    bad[3] = good[1] + 0.01 * good[0]
    assert condition_number(bad) > MAX_CONDITION
    words = degeneracy(np.stack([good, bad]), NAMES)
    assert words is not None
    assert "1 of 2 routers" in words
    assert "router 1" in words
    assert "python and law (cosine 1.000)" in words
    assert degeneracy(bad[None, :1], NAMES[:1]) is None


def test_rows_of_nothing_are_refused_by_name() -> None:
    whole = of(experts(1, 2))
    tokens = TokenCounts(1, np.asarray([1, 0]))
    for make in (hidden_rows, lambda statistics: ridge_rows(statistics, bias=True)):
        with pytest.raises(ValueError, match="experts: none"):
            make({})
        with pytest.raises(StatisticsError, match="hidden: none for 'law'"):
            make({**whole, "law": ExpertStatistics(tokens)})
        empty = statistics_of(np.zeros((LAYERS + 1, 0, 5)))
        with pytest.raises(StatisticsError, match="hidden: none for 'law'"):
            make({**whole, "law": empty})
        other = statistics_of(states_of(1, 9, 4))
        with pytest.raises(StatisticsError, match=r"\(3, 5, 5\) for 'law', expected \(3, 6, 6\)"):
            make({**whole, "law": other})
    still = statistics_of(np.zeros((LAYERS + 1, 4, 5)))
    with pytest.raises(StatisticsError, match="norm 0 for 'law'"):
        hidden_rows({**whole, "law": still})
    for strength in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            ridge_rows(whole, strength=strength, bias=True)


def test_prompts_that_say_nothing_are_refused_by_name() -> None:
    one = np.ones((LAYERS + 1, 5))
    with pytest.raises(StatisticsError, match="norm 0 for 'python'"):
        prompt_rows({"cooking": one, "python": one}, {"python": one})
    with pytest.raises(StatisticsError, match="norm nan for 'python'"):
        prompt_rows({"cooking": one, "python": np.full((LAYERS + 1, 5), np.nan)})
    with pytest.raises(StatisticsError, match="negative: 'law'"):
        prompt_rows({"cooking": one}, {"law": one})
    with pytest.raises(StatisticsError, match="expected \\[layers \\+ 1, hidden\\]"):
        prompt_rows({"cooking": one, "python": one[:, :3]})
    with pytest.raises(ValueError, match="expected different names"):
        noisy_rows(["law", "law"], rng_seed=1, num_layers=1, hidden_size=2, std=1.0)
