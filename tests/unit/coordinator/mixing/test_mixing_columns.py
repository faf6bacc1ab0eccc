"""Labels to columns: who stands in the table, and who is better, over which texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.mixing.columns import (
    Line,
    best_single,
    column_labels,
    comparisons,
    document_sums,
    geometric_means,
    groups_of,
    mean_shares,
    rating,
    text_perplexities,
)
from coordinator.mixing.texts import Text
from coordinator.scoring.ensembles import ShardScores
from shared.ensemble import perplexity
from shared.shards import BOS_ID, Shard

LINE = Line(seed="seed-1", dense="dense-1", members=("law-1", "sea-1"))


def text(name, role="trained", documents=6, length=5):
    sizes = [1 + length] * documents
    tokens = np.tile(np.asarray([BOS_ID, *range(10, 10 + length)], "<u2"), documents)
    return Text(
        name=name,
        role=role,
        digest=name,
        shard=Shard(
            tokens=tokens,
            document_offsets=np.concatenate([[0], np.cumsum(sizes)]).astype("<i8"),
            document_bytes=np.asarray([9] * documents, "<i8"),
        ),
    )


def scores(one, means, *, rng_seed=0):
    rng = np.random.default_rng(rng_seed)
    labels = {
        name: (mean + 0.01 * rng.standard_normal(one.num_labels)).astype("<f4")
        for name, mean in means.items()
    }
    return one.scores(labels, 4)


MEANS = {"seed-1": -3.0, "dense-1": -2.0, "law-1": -1.0, "sea-1": -4.0, "mixture": -1.1}


def test_columns_are_the_seed_dense_ensembles_and_what_else_was_measured():
    columns = column_labels(scores(text("law"), MEANS), LINE)
    assert set(columns) == {
        "seed",
        "dense",
        "dense+seed",
        "ensemble",
        "ensemble+seed",
        "mixture",
    }
    found = text_perplexities(columns)
    assert found["ensemble"] < found["dense"] < found["seed"]
    assert found["mixture"] == pytest.approx(np.exp(1.1), rel=0.02)


def test_without_a_dense_baseline_its_columns_are_missing():
    columns = column_labels(scores(text("law"), MEANS), Line("seed-1", None, ("law-1", "sea-1")))
    assert set(columns) == {"seed", "ensemble", "ensemble+seed", "mixture", "dense-1"}


def test_the_best_single_expert_is_one_for_all_texts():
    texts = [
        scores(text("law"), {"law-1": -1.0, "sea-1": -2.0}),
        scores(text("sea"), {"law-1": -9.0, "sea-1": -1.5}),
    ]
    assert best_single(texts, ["law-1", "sea-1"]) == "sea-1"


def test_shares_follow_who_finds_the_text_likely_and_sum_to_one():
    texts = [
        scores(text("law"), {"law-1": -1.0, "sea-1": -3.0}),
        scores(text("sea"), {"law-1": -3.0, "sea-1": -1.0}),
    ]
    shares = mean_shares(texts[:1], {"law": "law-1", "sea": "sea-1"})
    assert shares["law"] > 0.7
    both = mean_shares(texts, {"law": "law-1", "sea": "sea-1"})
    assert both["law"] == pytest.approx(0.5, abs=0.02)
    assert sum(both.values()) == pytest.approx(1)


@given(st.lists(st.floats(1.01, 1e4), min_size=3, max_size=3))
def test_a_group_is_the_geometric_mean_of_its_texts(values):
    texts = [text("a"), text("b"), text("c", role="held-out")]
    means = geometric_means(dict(zip("abc", values, strict=True)), groups_of(texts))
    assert means["own"] == pytest.approx(np.sqrt(values[0] * values[1]))
    assert means["held-out"] == pytest.approx(values[2])
    assert rating(means, "own") == means["own"]
    assert rating(means, "all") == pytest.approx(np.sqrt(means["own"] * means["held-out"]))


def test_a_mixture_is_compared_with_every_other_column_on_texts_and_groups():
    texts = [text("law"), text("sea"), text("law > sea", role="spliced")]
    found = {one.name: scores(one, MEANS, rng_seed=number) for number, one in enumerate(texts)}
    columns = {name: column_labels(one, LINE) for name, one in found.items()}
    sums = [document_sums(one, found[one.name], columns[one.name]) for one in texts]
    made = comparisons(sums, groups_of(texts), ["mixture"])
    assert {one.b for one in made} == set(columns["law"]) - {"mixture"}
    assert {one.where for one in made} == {"law", "sea", "law > sea", "own", "spliced"}
    by = {(one.b, one.where): one for one in made}
    assert by["seed", "own"].verdict == "better"
    assert by["seed", "own"].difference == pytest.approx(-190, abs=3)
    assert by["dense", "spliced"].verdict == "better"
    for one in made:
        expected = perplexity(columns["law"]["mixture"]) / perplexity(columns["law"][one.b])
        if one.where == "law":
            assert one.difference == pytest.approx(100 * np.log(expected), abs=1e-6)


def test_labels_of_a_text_lie_in_windows_of_documents():
    one = text("law", documents=2, length=5)
    found: ShardScores = scores(one, {"seed-1": -1.0})
    assert found.starts.tolist() == [0, 4, 5, 9]
    assert found.label_counts().tolist() == [5, 5]
