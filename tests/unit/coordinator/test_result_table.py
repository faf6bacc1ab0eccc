"""What people see of the results: columns, groups of domains, ties, who is better."""

import json

import pytest

from coordinator.scoring.outcome import (
    CheckpointFacts,
    Comparison,
    DomainScores,
    Measure,
    Results,
    SchemeScores,
)
from coordinator.scoring.table import (
    MAX_WIDTH,
    render_comparisons,
    render_contents,
    render_results,
    render_table,
    result_table,
    results_json,
)
from protocol.specs import ModelShape, TrainSpec
from protocol.views import ResultTable, TableRow

SHAPE = ModelShape(
    vocab_size=8, hidden_size=8, num_layers=1, num_heads=1, ffn_width=8, context_length=8
)
TRAIN = TrainSpec(
    num_steps=1,
    schedule_steps=1,
    warmup_steps=0,
    peak_learning_rate=0.1,
    final_learning_rate=0.1,
    micro_batch=1,
    accumulation=1,
    sequence_length=8,
    clip_norm=1.0,
    rng_seed=0,
    compile=False,
)
DIGEST = "0" * 64


def measure(perplexity):
    return Measure(perplexity=perplexity, bits_per_byte=perplexity / 10)


def checkpoint(name, dev):
    return CheckpointFacts(
        name=name,
        kind="expert",
        domain="law",
        round=1,
        spec=DIGEST,
        file=DIGEST,
        parent=None,
        ingredients=(),
        shape=SHAPE,
        trains="all",
        train=TRAIN,
        flops=1.0,
        worker="w",
        schemes=("A",),
        curve=(),
        dev_perplexity=dict.fromkeys(("law", "news"), dev),
    )


def domain(name, role="trained", *, dense=True):
    columns = {"seed M": measure(9.0), "A": measure(5.0), "B": measure(5.0)}
    columns |= {"A+seed": measure(4.0), "B+seed": measure(4.0)}
    if dense:
        columns |= {"dense": measure(6.0), "dense+seed": measure(5.5)}
    return DomainScores(
        domain=name,
        role=role,
        round=1,
        difficulty="easy",
        seed_dev_perplexity=9.0,
        num_documents=3,
        num_labels=30,
        num_bytes=60,
        columns=columns,
        models={"x": measure(7.0), "y": measure(6.5), "z": measure(6.1)},
        schemes={
            "A": SchemeScores(modes={}, best_single="x", oracle="z"),
            "B": SchemeScores(modes={}, best_single="y", oracle="y"),
        },
        tied=(("A", "B"),),
    )


def results(*, dense=True):
    comparison = Comparison(
        a="B",
        b="A",
        where="own",
        num_domains=1,
        difference=-1.25,
        low=-2.0,
        high=-0.5,
        verdict="better",
    )
    return Results(
        run="tiny",
        rng_seed=0,
        seed="seed",
        dense="dense-1" if dense else None,
        schemes={"A": {"law": "x"}, "B": {"law": "y"}},
        members={"A": ("x",), "B": ("y",)},
        unit="flops",
        budgets=(),
        checkpoints=(checkpoint("x", 3.0), checkpoint("y", 2.0), checkpoint("z", 1.0)),
        domains=(domain("law", dense=dense), domain("news", "held-out", dense=dense)),
        comparisons=(comparison, comparison.model_copy(update={"where": "law"})),
        remembered=(),
        traces=(),
        versions={},
        digests={},
    )


def test_columns_are_baselines_then_schemes_then_all_with_the_seed() -> None:
    assert result_table(results()).columns == (
        "seed M",
        "dense",
        "best single",
        "oracle",
        "A",
        "B",
        "dense+seed",
        "A+seed",
        "B+seed",
    )
    without = result_table(results(dense=False))
    assert "dense" not in without.columns
    assert "dense+seed" not in without.columns
    for row in result_table(results()).rows:
        assert set(row.perplexity) == set(row.bits_per_byte) == set(result_table(results()).columns)


def test_the_best_single_is_the_members_best_on_dev_and_the_oracle_the_best_on_test() -> None:
    row = result_table(results()).rows[0]
    assert row.best_single == "y", "z has a lower dev perplexity, but no scheme chose it"
    assert row.perplexity["best single"] == 6.5
    assert row.perplexity["oracle"] == 6.1


def test_results_json_holds_the_table_and_all_else_in_full_precision() -> None:
    exact = results().domains[0].columns["A"].perplexity
    loaded = json.loads(results_json(results()))
    assert ResultTable.model_validate(loaded.pop("table")) == result_table(results())
    assert Results.model_validate_json(json.dumps(loaded)) == results()
    assert loaded["domains"][0]["columns"]["A"]["perplexity"] == exact


def table_row(domain, **changes):
    values = {
        "domain": domain,
        "perplexity": {"seed M": 100.0, "MHo-IHo": 20.0, "MHe-IHo": 20.0},
        "bits_per_byte": {"seed M": 2.0, "MHo-IHo": 1.0, "MHe-IHo": 1.0},
        **changes,
    }
    return TableRow(**values)


GO = table_row(
    "go",
    perplexity={"seed M": 4.0, "MHo-IHo": 5.0, "MHe-IHo": 1.25},
    best_single="go-ffn512-1a2b3c4d",
)
GEOGRAPHY = table_row(
    "geography", tied=(("MHo-IHo", "MHe-IHo"),), best_single="geography-ffn512-1a2b3c4d"
)
COLUMNS = ("seed M", "MHo-IHo", "MHe-IHo")


def test_the_rendered_table_is_aligned_and_names_ties_and_the_geometric_mean() -> None:
    text = render_table(ResultTable(columns=COLUMNS, rows=(GEOGRAPHY, GO)))
    assert text.splitlines()[1:5] == [
        "domain          seed M   MHo-IHo   MHe-IHo",
        "geography       100.00     20.00=    20.00=",
        "go                4.00      5.00      1.25",
        "geometric mean   20.00     10.00      5.00",
    ]
    assert "go: go-ffn512-1a2b3c4d" in text
    assert "by construction" in text


def test_own_and_held_out_domains_have_means_of_their_own() -> None:
    held_out = GO.model_copy(update={"held_out": True})
    text = render_table(ResultTable(columns=COLUMNS, rows=(GEOGRAPHY, held_out)))
    assert text.splitlines()[2:7] == [
        "geography       100.00     20.00=    20.00=",
        "go                4.00      5.00      1.25",
        "mean, own       100.00     20.00     20.00",
        "mean, held-out    4.00      5.00      1.25",
        "mean, all        20.00     10.00      5.00",
    ]


def test_many_columns_are_cut_into_baselines_schemes_and_those_with_the_seed() -> None:
    schemes = ("MHo-IHo", "MHo-IHe", "MHe-IHo", "MHe-IHe", "adaptive")
    columns = (
        "seed M",
        "dense",
        "best single",
        "oracle",
        *schemes,
        "dense+seed",
        *(scheme + "+seed" for scheme in schemes),
    )
    cells = dict.fromkeys(columns, 123.456)
    rows = tuple(
        TableRow(domain=f"domain-number-{number}", perplexity=cells, bits_per_byte=cells)
        for number in range(21)
    )
    text = render_table(ResultTable(columns=columns, rows=rows))
    assert max(map(len, text.splitlines())) <= MAX_WIDTH
    headers = [line.split()[1:] for line in text.splitlines() if line.startswith("domain  ")]
    assert headers[:3] == [
        ["seed", "M", "dense", "best", "single", "oracle"],
        ["seed", "M", *schemes],
        ["seed", "M", "dense", *schemes],
    ]
    assert "With the seed as a further member (+seed):" in text
    assert "a bound, no method" in text


def test_who_is_better_stands_in_a_line_for_each_pair() -> None:
    text = render_comparisons(results().comparisons)
    assert text.splitlines()[-2].split() == ["own"]
    assert text.splitlines()[-1].startswith("B against A  -1.25 [-2.00, -0.50] better")


def test_score_shows_the_same_from_the_file_and_the_table_alone_of_older_ones() -> None:
    loaded = json.loads(results_json(results()))
    assert render_contents(loaded) == render_results(results())
    older = {"table": loaded["table"]}
    assert render_contents(older) == render_table(result_table(results()))


def test_comparisons_that_do_not_fit_beside_each_other_stand_below_each_other() -> None:
    one = results().comparisons[0].model_copy(update={"a": "MHe-IHe+seed", "b": "MHo-IHo+seed"})
    some = [one.model_copy(update={"where": group}) for group in ("own", "held-out", "all")]
    lines = render_comparisons(some).splitlines()
    assert max(map(len, lines)) <= MAX_WIDTH
    assert [line.split() for line in lines[3::2]] == [["own"], ["held-out"], ["all"]]


@pytest.mark.parametrize("group", ["own", "held-out", "all"])
def test_every_group_that_was_compared_has_a_column(group) -> None:
    one = results().comparisons[0].model_copy(update={"where": group})
    assert render_comparisons([one]).splitlines()[-2].split() == [group]
