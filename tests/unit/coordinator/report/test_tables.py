"""What tables and sentences claim: no more than the intervals say."""

import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.report.comparison_tables import counts_table, replicates_table
from coordinator.report.plan_tables import (
    allotments,
    budget_table,
    checkpoints_table,
    difficulty_table,
    provenance_table,
    search_table,
)
from coordinator.report.score_tables import (
    baselines_table,
    contestants,
    contestants_table,
    each_run_table,
    modes_table,
)
from coordinator.report.study import Study
from coordinator.report.summary import noise_words, rate_words, summary_of
from coordinator.report.values import Cell, Table
from coordinator.scoring.outcome import SearchCost
from tests.outcomes import SCHEMES, Case, make_results

cases = st.builds(
    Case,
    own=st.integers(1, 7),
    held_out=st.integers(0, 4),
    schemes=st.integers(1, 5).map(lambda count: SCHEMES[:count]),
    has_dense=st.booleans(),
    has_probes=st.booleans(),
    rng_seed=st.integers(1, 50),
)


def study_of(case: Case, *, replicates: int = 1) -> Study:
    seeds = range(case.rng_seed, case.rng_seed + replicates)
    return Study(
        runs=tuple(make_results(Case(**{**vars(case), "rng_seed": seed})) for seed in seeds)
    )


def marked(table: Table) -> Iterator[tuple[str, str, Cell]]:
    """(domain, column, cell) of every marked cell."""
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            if cell.marks:
                yield str(row.cells[0].value), column.key, cell


@given(case=cases, replicates=st.integers(1, 3), with_seed=st.booleans())
@settings(max_examples=25, deadline=None)
def test_marks_are_never_surer_than_intervals(case: Case, replicates: int, with_seed: bool):
    study = study_of(case, replicates=replicates)
    reference = study.schemes[0] + ("+seed" if with_seed else "")
    names = contestants(study, with_seed=with_seed)
    table = contestants_table(study, with_seed=with_seed, quantity="perplexity")
    groups = {"geometric mean, own": "own", "geometric mean, held-out": "held-out"}
    for label, column, cell in marked(table):
        where = study.group_of("trained") if groups.get(label) == "own" else label
        where = study.group_of("held-out") if groups.get(label) == "held-out" else where
        assert where is not None
        if "best" in cell.marks:
            for other in set(names) - {column}:
                if study.is_tied(where, column, other):
                    continue
                effect = study.effects.between(column, other, where)
                assert effect is not None
                assert effect.verdict == "tie" or effect.high < 0
        effect = study.effects.between(column, reference, where)
        if "better" in cell.marks:
            assert effect is not None
            assert effect.high < 0
        if "worse" in cell.marks:
            assert effect is not None
            assert effect.low > 0


@given(case=cases)
@settings(max_examples=25, deadline=None)
def test_group_means_are_geometric_means_of_the_rows_above(case: Case):
    table = contestants_table(study_of(case), with_seed=False, quantity="perplexity")
    values: list[float] = []
    for row in table.rows:
        value = row.cells[-1].value
        assert isinstance(value, float)
        if row.is_group:
            assert value == pytest.approx(math.exp(math.fsum(map(math.log, values)) / len(values)))
            values = []
        else:
            values.append(value)


def test_one_run_shows_its_numbers_as_they_are():
    study = study_of(Case())
    scores = study.domains[0]
    table = contestants_table(study, with_seed=False, quantity="perplexity")
    assert table.records()[0]["dense"] == scores.columns["dense"].perplexity


def test_replicates_show_the_mean_of_nats():
    study = study_of(Case(), replicates=3)
    domain = study.domains[0].domain
    each = [one.columns["dense"].perplexity for one in study.scores(domain)]
    measure = study.measure(domain, "dense")
    assert measure is not None
    assert measure.perplexity == pytest.approx(math.prod(each) ** (1 / 3))
    rows = each_run_table(study).records()
    assert [one["dense"] for one in rows if one["domain"] == domain] == each


@given(case=cases)
@settings(max_examples=25, deadline=None)
def test_every_domain_is_counted_once_in_the_verdicts(case: Case):
    study = study_of(case)
    for record in counts_table(study, with_seed=False).records():
        counts = [record[verdict] for verdict in ("better", "worse", "unclear", "tie")]
        assert sum(counts) == record["domains"]  # type: ignore[arg-type]
        expected = case.own if record["group"] == "own" else case.held_out
        assert record["domains"] == expected


def test_ties_by_construction_are_counted_as_ties():
    study = study_of(Case(own=3, schemes=("MHo-IHo", "MHo-IHe")))
    records = {
        (one["a"], one["b"], one["group"]): one
        for one in counts_table(study, with_seed=False).records()
    }
    own = records["MHo-IHe", "MHo-IHo", "own"]
    assert own["tie"] == 1, "the moderate domain has the same steps in both"


@given(case=cases, replicates=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_the_summary_calls_no_interval_with_0_in_it_better_or_worse(case: Case, replicates: int):
    study = study_of(case, replicates=replicates)
    text = " ".join(summary_of(study))
    for effect in study.effects.all:
        if effect.where in study.groups and effect.low <= 0 <= effect.high:
            written = f"{effect.difference:+.2f}".replace("-", "−")
            for claim in ("better", "worse"):
                low = f"{effect.low:+.2f}".replace("-", "−")
                assert f"{claim}, {written} points (95 % from {low}" not in text


def test_one_run_says_that_the_noise_of_training_is_missing():
    assert "noise of training" in noise_words(study_of(Case()))
    assert "is not" not in noise_words(study_of(Case(), replicates=3))


def test_few_replicates_are_called_few():
    assert "3 replicates are few" in noise_words(study_of(Case(), replicates=3))


def test_each_replicate_keeps_its_own_interval_beside_the_common_one():
    study = study_of(Case(), replicates=2)
    record = replicates_table(study).records()[0]
    first, second = study.effects.all[0].each
    assert (record["difference_1"], record["low_2"]) == (first.difference, second.low)
    assert record["difference"] == pytest.approx((first.difference + second.difference) / 2)


def test_shares_of_a_budget_sum_to_one():
    run = make_results(Case(own=5, schemes=SCHEMES))
    for scheme in run.schemes:
        shares = [one.share for one in allotments(run) if one.scheme == scheme]
        assert sum(shares) == pytest.approx(1)


def test_the_oracle_is_marked_as_a_bound_and_nothing_else_is_there():
    table = baselines_table(study_of(Case()))
    for column, cell in zip(table.columns, table.rows[0].cells, strict=True):
        assert cell.marks == (("bound",) if column.key.startswith("oracle") else ())


def test_every_checkpoint_stands_with_its_digests_and_its_worker():
    study = study_of(Case(worker="anna"))
    records = checkpoints_table(study).records()
    assert {one["spec"] for one in records} == {one.spec for one in study.base.checkpoints}
    assert {one["file"] for one in records} == {one.file for one in study.base.checkpoints}
    assert {one["worker"] for one in records} == {"anna"}
    assert "marks" not in records[0]


def test_plans_of_all_replicates_are_shown():
    study = study_of(Case(), replicates=2)
    for table in (budget_table(study), difficulty_table(study), provenance_table(study)):
        assert {one["rng_seed"] for one in table.records()} == {1, 2}


def test_a_budget_out_of_balance_is_named_with_its_distance():
    run = make_results(Case(schemes=("MHo-IHo", "MHe-IHe")))
    off = run.budgets[1].model_copy(update={"flops_ratio": 1.0123})
    study = Study(runs=(run.model_copy(update={"budgets": (run.budgets[0], off)}),))
    assert "differs by 1.230 %" in budget_table(study).note


SEARCH = SearchCost(
    purpose="trials of the dense baseline", num_trainings=3, flops=2e9, diverged=(0.002, 0.004)
)


def test_what_the_search_cost_has_a_table_of_its_own():
    run = make_results(Case()).model_copy(update={"search": (SEARCH,)})
    (line,) = search_table(Study(runs=(run,))).records()
    assert line["purpose"] == "trials of the dense baseline"
    assert (line["trainings"], line["flops"]) == (3, 2e9)
    assert line["diverged"] == "0.002, 0.004"
    assert search_table(study_of(Case())).records() == []


def test_a_rate_below_those_that_diverged_is_not_at_the_edge():
    run = make_results(Case()).model_copy(update={"search": (SEARCH,)})
    assert rate_words(Study(runs=(run,))) == (
        "The dense baseline took 0.001, the lowest of the learning rates tried: it might be better "
        "at a lower one.",
    )


def test_every_mode_of_every_scheme_is_there():
    study = study_of(Case())
    records = modes_table(study, quantity="perplexity").records()
    for scores in study.domains:
        for scheme, found in scores.schemes.items():
            for mode, measure in found.modes.items():
                assert {
                    "domain": scores.domain,
                    "mode": mode,
                    scheme: measure.perplexity,
                }.items() <= (
                    next(
                        one
                        for one in records
                        if (one["domain"], one["mode"]) == (scores.domain, mode)
                    ).items()
                )


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ((0.0005, 0.001, 0.002), ()),
        ((), ()),
        ((0.0005, 0.0007), ("0.001, the highest of the learning rates", "at a higher one")),
        ((0.002,), ("0.001, the lowest of the learning rates", "at a lower one")),
    ],
)
def test_a_rate_at_the_edge_of_those_tried_is_told(tried, expected):
    results = make_results(Case())
    dense = next(one for one in results.checkpoints if one.name == results.dense)
    trials = [
        dense.model_copy(
            update={
                "name": f"trial-{rate}",
                "train": dense.train.model_copy(update={"peak_learning_rate": rate}),
            }
        )
        for rate in tried
    ]
    checkpoints = (*results.checkpoints, *trials)
    found = rate_words(Study(runs=(results.model_copy(update={"checkpoints": checkpoints}),)))
    assert len(found) == bool(expected)
    assert all(words in found[0] for words in expected)
