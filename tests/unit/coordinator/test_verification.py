"""Decisions on submissions: each typed outcome, and the properties of the three-way rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.scoring.verification import (
    Accepted,
    Comparison,
    Inconclusive,
    Rejected,
    decide,
    find_changed_frozen,
    find_copy,
)
from shared.tensorfiles import is_trained


def comparison(difference, *, spread=0.05, num_documents=40, width=64, against="its parent"):
    """A candidate that is better by `difference` nats per token, give or take `spread`."""
    rng = np.random.default_rng(3)
    labels = num_documents * 25
    baseline = -rng.gamma(4.0, 1.0, labels)
    candidate = baseline + difference + rng.normal(0.0, spread, labels)
    documents = np.repeat(np.arange(num_documents), 25)
    return Comparison(
        candidate=candidate,
        baseline=baseline,
        documents=documents,
        against=against,
        ffn_width=width,
    )


def test_wholly_better_is_accepted():
    assert isinstance(decide([comparison(0.2)], rng_seed=1), Accepted)


def test_wholly_worse_is_rejected_with_a_coarse_reason():
    decision = decide([comparison(-0.2)], rng_seed=1)
    assert isinstance(decision, Rejected)
    assert decision.reason == "worse than its parent on held-out text"
    assert "interval" in decision.detail


def test_a_difference_within_the_noise_is_inconclusive():
    assert isinstance(decide([comparison(0.0, spread=1.0)], rng_seed=1), Inconclusive)


def test_the_same_likelihoods_are_never_accepted():
    assert isinstance(decide([comparison(0.0, spread=0.0)], rng_seed=1), Inconclusive)


@pytest.mark.parametrize(
    ("standard", "difference", "expected"),
    [
        ("any", 0.0, Accepted),
        ("any", -0.2, Accepted),
    ],
)
def test_what_is_only_measured_need_not_be_better(standard, difference, expected):
    one = comparison(difference, spread=0.0 if difference == 0 else 0.05)
    decision = decide([comparison(0.2), one], rng_seed=1, standard=standard)
    assert isinstance(decision, expected)
    assert "better" not in decision.reason


def test_a_single_document_that_gained_does_not_carry_the_others():
    shard = comparison(0.0, spread=1.0)
    candidate = np.where(shard.documents == 0, shard.baseline + 5.0, shard.baseline)
    lucky = Comparison(candidate, shard.baseline, shard.documents, "its parent", 64)
    assert isinstance(decide([lucky], rng_seed=1), Inconclusive)


def test_a_seed_that_fails_at_one_of_its_widths_is_rejected():
    good, bad = comparison(0.3, width=64), comparison(-0.3, width=32, against="a unigram model")
    decision = decide([good, bad], rng_seed=1)
    assert isinstance(decision, Rejected)
    assert decision.reason == "worse than a unigram model on held-out text"


def test_a_decision_without_evidence_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="comparisons"):
        decide([], rng_seed=1)


@settings(max_examples=25, deadline=None)
@given(difference=st.floats(-0.5, 0.5), spread=st.floats(0.01, 1.0))
def test_exchanging_candidate_and_baseline_exchanges_acceptance_and_rejection(difference, spread):
    one = comparison(difference, spread=spread)
    other = Comparison(one.baseline, one.candidate, one.documents, "its parent", 64)
    opposite = {Accepted: Rejected, Rejected: Accepted, Inconclusive: Inconclusive}
    assert isinstance(decide([other], rng_seed=1), opposite[type(decide([one], rng_seed=1))])


def test_a_copy_of_a_known_checkpoint_is_refused():
    decision = find_copy(["f" * 64, "e" * 64], {"e" * 64: "the tensors of its parent"})
    assert isinstance(decision, Rejected)
    assert decision.reason == "equal to a known checkpoint"
    assert find_copy(["f" * 64], {"e" * 64: "the tensors of its parent"}) is None


TENSORS = {
    "model.embed_tokens.weight": np.ones((4, 2), np.float32),
    "model.layers.0.self_attn.q_proj.weight": np.ones((2, 2), np.float32),
    "model.layers.0.mlp.gate_proj.weight": np.ones((3, 2), np.float32),
    "model.layers.0.input_layernorm.weight": np.ones(2, np.float32),
    "model.norm.weight": np.zeros(2, np.float32),
    "lm_head.weight": np.ones((4, 2), np.float32),
}


@pytest.mark.parametrize(
    ("trains", "free"),
    [
        ("all", set(TENSORS)),
        ("ffn", {"model.layers.0.mlp.gate_proj.weight"}),
        (
            "ffn_embeddings",
            {
                "model.layers.0.mlp.gate_proj.weight",
                "model.embed_tokens.weight",
                "lm_head.weight",
            },
        ),
    ],
)
def test_only_what_the_spec_trains_may_change(trains, free):
    assert {name for name in TENSORS if is_trained(trains, name)} == free
    for name in TENSORS:
        changed = {**TENSORS, name: TENSORS[name] + np.float32(1e-7)}
        decision = find_changed_frozen(changed, TENSORS, trains)
        assert (decision is None) == (name in free)
        if decision is not None:
            assert decision.reason == "changed a tensor that its spec freezes"
            assert name in decision.detail


def test_a_zero_of_the_other_sign_is_a_change():
    changed = {**TENSORS, "model.norm.weight": -TENSORS["model.norm.weight"]}
    assert isinstance(find_changed_frozen(changed, TENSORS, "ffn"), Rejected)
