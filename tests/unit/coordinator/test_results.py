"""The arithmetic of the results table, and how it is shown."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scoring.results import (
    DomainScores,
    ShardScores,
    best_on_dev,
    compute_results,
    render_table,
    result_table,
    results_json,
    tied_columns,
)
from protocol.messages import ResultTable, TableRow

SEED = "seed-ffn512-00000000"
EASY, MIDDLE, HARD, LONG_HARD = "easy-ffn512-1", "mid-ffn512-1", "hard-ffn512-1", "hard-ffn640-1"
SCHEMES = {
    "MHo-IHo": {"easy": EASY, "hard": HARD, "mid": MIDDLE},
    "MHe-IHo": {"easy": EASY, "hard": LONG_HARD, "mid": MIDDLE},
}
MODELS = (SEED, EASY, MIDDLE, HARD, LONG_HARD)


def shard_scores(rng, *, windows=6, length=20, models=MODELS):
    labels = windows * length
    return ShardScores(
        by_model={
            name: -rng.gamma(3.0 + index / 4, 1.0, labels).astype(np.float32)
            for index, name in enumerate(models)
        },
        starts=np.arange(windows) * length,
        num_bytes=labels * 4,
    )


def domain_scores(name, rng_seed=0, **kwargs):
    rng = np.random.default_rng(rng_seed)
    return DomainScores(name, shard_scores(rng, **kwargs), shard_scores(rng, **kwargs))


def results_of(*domains):
    return compute_results(
        [domain_scores(name, number) for number, name in enumerate(domains)],
        run="tiny",
        seed=SEED,
        schemes=SCHEMES,
    )


def test_columns_are_seed_best_schemes_and_schemes_with_the_seed():
    table = result_table(results_of("easy", "mid", "hard"))
    assert table.columns == (
        "seed M",
        "best single",
        "MHo-IHo",
        "MHe-IHo",
        "MHo-IHo+seed",
        "MHe-IHo+seed",
    )
    assert [row.domain for row in table.rows] == ["easy", "mid", "hard"]
    for row in table.rows:
        assert set(row.perplexity) == set(row.bits_per_byte) == set(table.columns)


def test_a_single_models_measures_are_those_of_its_labels():
    scores = domain_scores("easy")
    results = compute_results([scores], run="tiny", seed=SEED, schemes=SCHEMES)
    labels = scores.test.by_model[SEED].astype(np.float64)
    measure = results.domains[0].models[SEED]
    assert measure.perplexity == pytest.approx(math.exp(-labels.mean()), rel=1e-12)
    nats = -math.fsum(labels)
    assert measure.bits_per_byte == pytest.approx(nats / math.log(2) / 480, rel=1e-12)


def test_the_posterior_ensemble_telescopes_window_by_window():
    scores = domain_scores("easy")
    results = compute_results([scores], run="tiny", seed=SEED, schemes=SCHEMES)
    matrix = scores.test.matrix([EASY, HARD, MIDDLE]).reshape(3, 6, 20).sum(axis=2)
    total = np.logaddexp.reduce(matrix - math.log(3), axis=0).sum()
    posterior = results.domains[0].schemes["MHo-IHo"].posterior
    assert posterior.perplexity == pytest.approx(math.exp(-total / 120), rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(rng_seed=st.integers(0, 10_000))
def test_with_the_seed_an_ensemble_loses_at_most_log_4_a_window_to_it(rng_seed):
    scores = domain_scores("easy", rng_seed)
    results = compute_results([scores], run="tiny", seed=SEED, schemes=SCHEMES)
    ensemble = results.domains[0].schemes["MHo-IHo"].posterior_with_seed
    bound = results.domains[0].models[SEED].perplexity * math.exp(math.log(4) / 20)
    assert ensemble.perplexity <= bound * (1 + 1e-9)


def test_the_best_single_expert_is_chosen_on_dev_and_not_on_test():
    good, bad = np.full(20, -1.0, np.float32), np.full(20, -2.0, np.float32)
    starts = np.array([0])
    scores = DomainScores(
        "easy",
        dev=ShardScores({EASY: good, HARD: bad}, starts, 80),
        test=ShardScores({EASY: bad, HARD: good}, starts, 80),
    )
    assert best_on_dev(scores, [HARD, EASY]) == EASY


def test_the_best_single_column_shows_an_experts_own_perplexity():
    results = results_of("easy", "mid")
    for row, domain in zip(result_table(results).rows, results.domains, strict=True):
        assert row.best_single == domain.best_single != SEED
        expected = domain.models[domain.best_single].perplexity
        assert row.perplexity["best single"] == expected


def test_schemes_tie_where_they_trained_the_same_expert():
    tied = (("MHo-IHo", "MHe-IHo"), ("MHo-IHo+seed", "MHe-IHo+seed"))
    assert tied_columns("easy", SCHEMES) == tied
    assert tied_columns("hard", SCHEMES) == ()


def test_on_a_domain_nobody_trained_on_only_equal_schemes_tie():
    assert tied_columns("held-out", SCHEMES) == ()
    assert tied_columns("held-out", {"A": SCHEMES["MHo-IHo"], "B": SCHEMES["MHo-IHo"]}) == (
        ("A", "B"),
        ("A+seed", "B+seed"),
    )


def test_ties_are_exact_where_all_members_are_the_same():
    scores = [domain_scores("easy")]
    same = {"MHo-IHo": SCHEMES["MHo-IHo"], "MHe-IHo": SCHEMES["MHo-IHo"]}
    row = result_table(compute_results(scores, run="t", seed=SEED, schemes=same)).rows[0]
    assert row.perplexity["MHo-IHo"] == row.perplexity["MHe-IHo"]


def test_the_order_of_domains_in_a_scheme_changes_nothing():
    reordered = {scheme: dict(reversed(experts.items())) for scheme, experts in SCHEMES.items()}
    one = compute_results([domain_scores("easy")], run="t", seed=SEED, schemes=SCHEMES)
    other = compute_results([domain_scores("easy")], run="t", seed=SEED, schemes=reordered)
    assert result_table(one) == result_table(other)


def test_results_json_holds_every_mode_in_full_precision():
    results = results_of("easy")
    loaded = json.loads(results_json(results))
    assert ResultTable.model_validate(loaded["table"]) == result_table(results)
    scheme = loaded["domains"][0]["schemes"]["MHe-IHo"]
    assert set(scheme) == {
        "average",
        "posterior",
        "dev_prior_posterior",
        "average_with_seed",
        "posterior_with_seed",
        "dev_prior_posterior_with_seed",
        "best_single",
    }
    exact = results.domains[0].schemes["MHe-IHo"].average.perplexity
    assert scheme["average"]["perplexity"] == exact
    assert loaded["schemes"]["MHe-IHo"]["hard"] == LONG_HARD


def test_the_rendered_table_is_aligned_and_names_ties_and_the_geometric_mean():
    table = ResultTable(
        columns=("seed M", "MHo-IHo", "MHe-IHo"),
        rows=(
            TableRow(
                domain="geography",
                perplexity={"seed M": 100.0, "MHo-IHo": 20.0, "MHe-IHo": 20.0},
                bits_per_byte={"seed M": 2.0, "MHo-IHo": 1.0, "MHe-IHo": 1.0},
                best_single="geography-ffn512-1a2b3c4d",
                tied=(("MHo-IHo", "MHe-IHo"),),
            ),
            TableRow(
                domain="go",
                perplexity={"seed M": 4.0, "MHo-IHo": 5.0, "MHe-IHo": 1.25},
                bits_per_byte={"seed M": 0.5, "MHo-IHo": 0.25, "MHe-IHo": 1.0},
                best_single="go-ffn512-1a2b3c4d",
            ),
        ),
    )
    text = render_table(table)
    lines = text.splitlines()
    assert lines[1:5] == [
        "domain          seed M   MHo-IHo   MHe-IHo",
        "geography       100.00     20.00=    20.00=",
        "go                4.00      5.00      1.25",
        "geometric mean   20.00     10.00      5.00",
    ]
    assert "go: go-ffn512-1a2b3c4d" in text
    assert "by construction" in text
