"""From log-likelihoods to what is reported of a domain: columns, modes, baselines, ties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scoring.ensembles import ShardScores
from coordinator.scoring.lineup import Contestants
from coordinator.scoring.outcome import MODES
from coordinator.scoring.results import (
    DomainText,
    best_on,
    compare_all,
    compared_pairs,
    score_domain,
    tied_columns,
)

SEED, DENSE = "seed-ffn512-0", "dense-ffn512-0"
EASY, MIDDLE, HARD, WIDE_HARD = "easy-ffn512-1", "mid-ffn512-1", "hard-ffn512-1", "hard-ffn640-1"
MODELS = (SEED, DENSE, EASY, MIDDLE, HARD, WIDE_HARD)
WINDOWS, LENGTH = 6, 20


def contestants(**changes):
    values = {
        "seed": SEED,
        "dense": DENSE,
        "members": {
            "MHo-IHo": tuple(sorted((EASY, HARD, MIDDLE))),
            "MHe-IHo": tuple(sorted((EASY, WIDE_HARD, MIDDLE))),
        },
        "experts": {
            "MHo-IHo": {"easy": EASY, "hard": HARD, "mid": MIDDLE},
            "MHe-IHo": {"easy": EASY, "hard": WIDE_HARD, "mid": MIDDLE},
        },
        "rounds": {"easy": 1, "hard": 1, "mid": 1},
        "classes": {"easy": "easy", "hard": "difficult", "mid": "moderate"},
        "parents": {},
        **changes,
    }
    return Contestants(**values)


def shard_scores(rng, models=MODELS):
    labels = WINDOWS * LENGTH
    return ShardScores(
        by_model={
            name: -rng.gamma(3.0 + index / 4, 1.0, labels).astype(np.float32)
            for index, name in enumerate(models)
        },
        starts=np.arange(WINDOWS) * LENGTH,
        documents=np.array([0, 0, 1, 2, 3, 3]),
        num_bytes=labels * 4,
    )


def domain_text(domain="easy", rng_seed=0, *, role="trained", **kwargs):
    rng = np.random.default_rng(rng_seed)
    return DomainText(domain, role, shard_scores(rng), shard_scores(rng), **kwargs)


def scored(domain="easy", rng_seed=0, *, who=None, **kwargs):
    return score_domain(domain_text(domain, rng_seed, **kwargs), who or contestants())[0]


def test_columns_are_seed_dense_and_schemes_and_the_last_two_with_the_seed() -> None:
    found = scored()
    assert set(found.columns) == {
        "seed M",
        "dense",
        "MHo-IHo",
        "MHe-IHo",
        "dense+seed",
        "MHo-IHo+seed",
        "MHe-IHo+seed",
    }
    assert set(scored(who=contestants(dense=None)).columns) == {
        "seed M",
        "MHo-IHo",
        "MHe-IHo",
        "MHo-IHo+seed",
        "MHe-IHo+seed",
    }


def test_a_domain_says_what_it_is() -> None:
    found = scored("hard")
    assert (found.role, found.round, found.difficulty) == ("trained", 1, "difficult")
    assert (found.num_documents, found.num_labels, found.num_bytes) == (4, 120, 480)
    text = domain_text("hard")
    expected = math.exp(-text.dev.by_model[SEED].astype(np.float64).mean())
    assert found.seed_dev_perplexity == pytest.approx(expected)
    other = scored("news", role="held-out")
    assert (other.role, other.round, other.difficulty) == ("held-out", None, None)


def test_a_single_models_measures_are_those_of_its_labels() -> None:
    labels = domain_text().test.by_model[SEED].astype(np.float64)
    found = scored()
    assert found.models[SEED] == found.columns["seed M"]
    assert found.models[SEED].perplexity == pytest.approx(math.exp(-labels.mean()), rel=1e-12)
    bits = -math.fsum(labels) / math.log(2) / 480
    assert found.models[SEED].bits_per_byte == pytest.approx(bits, rel=1e-12)
    assert set(found.models) == set(MODELS)


def test_a_schemes_column_telescopes_window_by_window() -> None:
    matrix = domain_text().test.matrix([EASY, HARD, MIDDLE]).reshape(3, WINDOWS, LENGTH).sum(2)
    total = np.logaddexp.reduce(matrix - math.log(3), axis=0).sum()
    found = scored()
    assert found.columns["MHo-IHo"].perplexity == pytest.approx(math.exp(-total / 120), rel=1e-12)
    assert found.columns["MHo-IHo"] == found.schemes["MHo-IHo"].modes["posterior"]


@settings(max_examples=20, deadline=None)
@given(rng_seed=st.integers(0, 10_000))
def test_with_the_seed_a_column_loses_at_most_log_of_its_members_a_window_to_it(rng_seed) -> None:
    found = scored(rng_seed=rng_seed)
    seed = found.columns["seed M"].perplexity
    for column, members in (("MHo-IHo+seed", 4), ("MHe-IHo+seed", 4), ("dense+seed", 2)):
        bound = seed * math.exp(math.log(members) / LENGTH)
        assert found.columns[column].perplexity <= bound * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(rng_seed=st.integers(0, 10_000))
def test_an_average_is_never_worse_than_the_mean_of_its_members_losses(rng_seed) -> None:
    found = scored(rng_seed=rng_seed)
    losses = [math.log(found.models[name].perplexity) for name in (EASY, HARD, MIDDLE)]
    average = found.schemes["MHo-IHo"].modes["average"].perplexity
    assert math.log(average) <= sum(losses) / 3 + 1e-9


def test_every_mode_is_there_with_and_without_the_seed_and_its_top_k() -> None:
    names = {
        mode + top + seed
        for mode in MODES
        for top in ("", " top-1", " top-2")
        for seed in ("", "+seed")
    }
    assert set(scored().schemes["MHo-IHo"].modes) == names


def test_a_top_k_of_as_many_as_there_are_is_left_out() -> None:
    pair = contestants(members={"MHo-IHo": (EASY, HARD)}, experts={"MHo-IHo": {"easy": EASY}})
    modes = scored(who=pair).schemes["MHo-IHo"].modes
    assert "posterior top-1" in modes
    assert "posterior top-2" not in modes
    assert "posterior top-2+seed" in modes


def test_weight_averages_are_modes_beside_the_ensembles() -> None:
    labels = np.full(120, -2.0, np.float32)
    found = scored(weight_averages={"MHo-IHo": {"average of weights, uniform": labels}})
    average = found.schemes["MHo-IHo"].modes["average of weights, uniform"]
    assert average.perplexity == pytest.approx(math.exp(2))
    assert average.bits_per_byte == pytest.approx(240 / math.log(2) / 480)
    assert "average of weights, uniform" not in found.schemes["MHe-IHo"].modes


def test_the_best_single_is_chosen_on_dev_and_the_oracle_on_test() -> None:
    text = domain_text()
    flat = {name: np.full(120, -9.0) for name in MODELS}
    dev = ShardScores({**flat, EASY: np.full(120, -1.0)}, text.dev.starts, text.dev.documents, 480)
    test = ShardScores(
        {**flat, HARD: np.full(120, -1.0)}, text.test.starts, text.test.documents, 480
    )
    found, _ = score_domain(DomainText("easy", "trained", dev, test), contestants())
    assert (found.schemes["MHo-IHo"].best_single, found.schemes["MHo-IHo"].oracle) == (EASY, HARD)
    assert found.schemes["MHe-IHo"].oracle == EASY, "of equals the first by name"
    assert best_on(dev, [MIDDLE, HARD]) == HARD


def test_the_oracle_may_be_an_expert_that_others_followed() -> None:
    later = contestants(
        members={"MHo-IHo": (HARD,)}, experts={"MHo-IHo": {"easy": EASY, "hard": HARD}}
    )
    text = domain_text()
    test = ShardScores(
        {**text.test.by_model, EASY: np.full(120, -0.5)},
        text.test.starts,
        text.test.documents,
        480,
    )
    found, _ = score_domain(DomainText("easy", "trained", text.dev, test), later)
    assert found.schemes["MHo-IHo"].oracle == EASY
    assert found.schemes["MHo-IHo"].best_single == HARD


def test_schemes_tie_where_they_trained_the_same_expert() -> None:
    tied = (("MHo-IHo", "MHe-IHo"), ("MHo-IHo+seed", "MHe-IHo+seed"))
    assert tied_columns("easy", contestants()) == tied
    assert tied_columns("hard", contestants()) == ()


def test_on_a_domain_nobody_trained_on_only_equal_ensembles_tie() -> None:
    assert tied_columns("news", contestants()) == ()
    same = contestants(
        members={"A": (EASY, HARD), "B": (EASY, HARD)},
        experts={"A": {"easy": EASY, "hard": HARD}, "B": {"easy": EASY, "hard": HARD}},
    )
    assert tied_columns("news", same) == (("A", "B"), ("A+seed", "B+seed"))


def test_along_lineages_whole_ensembles_tie_and_not_experts_that_went_on() -> None:
    experts = {"A": {"easy": EASY, "hard": HARD}, "B": {"easy": EASY, "hard": WIDE_HARD}}
    differ = contestants(members={"A": (HARD,), "B": (WIDE_HARD,)}, experts=experts)
    assert tied_columns("easy", differ) == (), "the expert of easy is a member of neither"
    same = contestants(members={"A": (HARD,), "B": (HARD,)}, experts=experts)
    assert tied_columns("easy", same) == (("A", "B"), ("A+seed", "B+seed"))


def test_equal_ensembles_have_exactly_equal_columns() -> None:
    members = (EASY, HARD)
    same = contestants(
        members={"A": members, "B": members},
        experts={"A": {"easy": EASY}, "B": {"hard": HARD}},
    )
    found = scored(who=same)
    assert found.columns["A"] == found.columns["B"]
    assert found.schemes["A"].modes == found.schemes["B"].modes


def test_every_contestant_meets_its_like_and_the_seed() -> None:
    assert set(compared_pairs(contestants())) == {
        ("MHe-IHo", "MHo-IHo"),
        ("MHe-IHo+seed", "MHo-IHo+seed"),
        ("MHo-IHo", "dense"),
        ("MHe-IHo", "dense"),
        ("MHo-IHo+seed", "dense+seed"),
        ("MHe-IHo+seed", "dense+seed"),
        ("dense", "seed M"),
        ("dense+seed", "seed M"),
        ("MHo-IHo", "seed M"),
        ("MHe-IHo", "seed M"),
        ("MHo-IHo+seed", "seed M"),
        ("MHe-IHo+seed", "seed M"),
    }
    assert len(set(compared_pairs(contestants(dense=None)))) == 6


def test_groups_are_own_held_out_and_all_domains() -> None:
    texts = [
        domain_text("easy", 0),
        domain_text("hard", 1),
        domain_text("news", 2, role="held-out"),
    ]
    both = [score_domain(text, contestants()) for text in texts]
    found = compare_all([one for one, _ in both], [sums for _, sums in both], contestants())
    sizes = {one.where: one.num_domains for one in found}
    assert sizes == {"easy": 1, "hard": 1, "news": 1, "own": 2, "held-out": 1, "all": 3}
    cells = {(one.a, one.b, one.where): one for one in found}
    tie = cells["MHe-IHo", "MHo-IHo", "easy"]
    assert tie.verdict == "tie"
    for one in found:
        difference = 100 * math.log(
            both[0][0].columns[one.a].perplexity / both[0][0].columns[one.b].perplexity
        )
        if one.where == "easy":
            assert one.difference == pytest.approx(difference)


def test_without_held_out_domains_there_is_no_such_group() -> None:
    both = [score_domain(domain_text("easy"), contestants())]
    found = compare_all([one for one, _ in both], [sums for _, sums in both], contestants())
    assert {one.where for one in found} == {"easy", "own", "all"}
